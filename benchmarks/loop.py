"""The README's loop with a simulated rater: from so many judgements to a policy, and how often the rater prefers it.

python benchmarks/loop.py [--judgements 60 150] [--ways criterion question live] [--seeds 0 1 2] [--steps 20]

The rater prefers what VADER finds more positive, and turns one answer in twenty over. Ways:

  criterion  pairs of the base's completions are judged first, a reward is learned with words for what is sought
  question   the same without such words
  live       `--reward people`: each step's completions are judged as they are drawn, until the judgements are used up

Rollout on the 32 held-out openers × 4, before against after with the same random numbers, by VADER without noise: the
share in which the rater prefers the trained policy, with its 95 % interval over openers.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import math
import socket
import statistics
import tempfile
import threading
import time
from importlib import resources
from pathlib import Path

from rich.console import Console

from klimb.config.pairwise import LabelConfig
from klimb.config.reward import RewardConfig
from klimb.config.train import TrainConfig
from klimb.data.prompts import read_prompts
from klimb.demo.demo import demo_config
from klimb.demo.model import fetch_model
from klimb.feedback.records import Answer
from klimb.feedback.store.store import Store
from klimb.pairwise.candidates import draw_to_label, find_models
from klimb.reward.learn.training import train_reward
from klimb.reward.vader import vader
from klimb.training.report.console import Display
from klimb.training.run import train
from klimb.training.storage.folder import RunFolder

NOISE = 0.05
CRITERION = "good, happy, positive, cheerful, great, wonderful / bad, sad, negative, gloomy, terrible, awful"
OPENERS = Path(str(resources.files("klimb.demo"))) / "train_openers.jsonl"


def answer_next(store: Store) -> bool:
    """Judge one pair, by a noise that hangs on its texts alone; False where nothing is asked."""
    question = store.next_question("robot")
    if question is None:
        return False
    first, second = vader([question.first, question.second])
    drawn = int(hashlib.sha256(f"{question.first}\0{question.second}".encode()).hexdigest()[:8], 16) / 2**32
    best = "tie" if first == second else "first" if (first > second) != (drawn < NOISE) else "second"
    store.judge(Answer(question.pair_id, "robot", best, f"robot-{question.pair_id:06}"))
    return True


def learned_first(
    model: Path, folder: Path, count: int, seed: int, criterion: str | None
) -> tuple[Path, str]:
    """Judge so many pairs of the base's completions, and learn a reward from them."""
    rows = read_prompts(OPENERS)
    config = LabelConfig(
        model=(str(model),),
        prompts=OPENERS,
        max_new_tokens=20,
        temperature=0.8,
        seed=seed,
        num_pairs_per_prompt=math.ceil(1.2 * count / len(rows)),
    )
    pairs, _ = draw_to_label(find_models(config.model), rows, config)
    with Store.open(folder / "feedback.db") as store:
        store.add_pairs(pairs)
        for _ in range(count):
            answer_next(store)
    reward = RewardConfig(
        (str(folder / "feedback.db"),), str(model), folder / "reward", criterion=criterion, seed=seed
    )
    found = train_reward(reward).held_out
    return reward.out, f"{found.accuracy:.2f} ({found.accuracy_low:.2f} to {found.accuracy_high:.2f})"


def live(config: TrainConfig, count: int, steps_prompts: int) -> TrainConfig:
    """People as the reward: as many steps as the judgements allow, four of a ring for each prompt."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    steps = max(count // (steps_prompts * config.completions_per_prompt), 1)
    return dataclasses.replace(
        config,
        reward=("people",),
        people_port=port,
        people_rater="robot",
        prompts_per_step=steps_prompts,
        num_steps=steps,
        checkpoint_every=max(steps // 2, 1),
    )


def robot(file: Path, has_ended: threading.Event) -> None:
    """Answer what a live run asks."""
    while not file.exists() and not has_ended.wait(0.2):
        pass
    with Store.open(file) as store:
        while not has_ended.wait(0.02):
            answer_next(store)


def win_rate(folder: Path) -> str:
    """The share of pairs, before and after, in which VADER prefers what came after."""
    rows = RunFolder.open(folder).read("evaluations")
    before, after = ([row for row in rows if row["when"] == when] for when in ("before", "after"))
    by_prompt: dict[int, list[float]] = {}
    for a, b in zip(before, after, strict=True):
        x, y = vader([a["completion"], b["completion"]])
        by_prompt.setdefault(a["prompt_index"], []).append(0.5 if x == y else float(y > x))
    shares = [statistics.fmean(values) for values in by_prompt.values()]
    half = 1.96 * statistics.stdev(shares) / math.sqrt(len(shares))
    kl = statistics.fmean(row["kl"] for row in after)
    return f"{statistics.fmean(shares):.3f} ± {half:.3f}, {kl:.1f} nats"


def main() -> None:
    """Print a line for each loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judgements", type=int, nargs="+", default=[60, 150])
    parser.add_argument("--ways", nargs="+", default=["criterion", "question", "live"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--live-prompts", type=int, default=4)
    arguments = parser.parse_args()
    model = fetch_model()
    for way in arguments.ways:
        for count in arguments.judgements:
            for seed in arguments.seeds:
                start, folder = time.perf_counter(), Path(tempfile.mkdtemp(prefix="klimb-loop-"))
                config = dataclasses.replace(
                    demo_config(model, folder / "reward", folder / "run", seed),
                    num_steps=arguments.steps,
                    accept_unproven_reward=True,
                )
                worth, has_ended = "", threading.Event()
                if way == "live":
                    config = live(config, count, arguments.live_prompts)
                    threading.Thread(
                        target=robot, args=(folder / "run" / "people.db", has_ended), daemon=True
                    ).start()
                else:
                    criterion = CRITERION if way == "criterion" else None
                    _, worth = learned_first(model, folder, count, seed, criterion)
                with contextlib.redirect_stdout(io.StringIO()):
                    train(config, Display(Console(file=io.StringIO())))
                has_ended.set()
                seconds = time.perf_counter() - start
                print(
                    f"{way:<9} {count:>4} judgements, seed {seed}: reward {worth or 'people'}; win rate "
                    f"{win_rate(config.out)}; {config.num_steps} steps, {seconds:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
