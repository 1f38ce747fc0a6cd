"""A fine-tuning step beside TRL's: the same model, prompts, groups, lengths, optimiser and reward.

make vs-trl                                        (settings a b c d, three rounds: over an hour)
python benchmarks/vs_trl.py --settings a --rounds 1 (TRL in .venv-trl, made by `make .venv-trl/.done`)

Each side runs in a process of its own, in turns, in each precision; the first steps warm up (at the very
first klimb has no reference to ask yet) and the others are timed. Every completion is forced to its full
length, so that both do the same work. TRL's RLOOTrainer is set up for speed as its documentation advises
where there is no GPU: no gradient checkpointing, fused AdamW, bfloat16 autocast in one of the two precisions;
its batch is split where it would not fit in 24 GB. Both run on the GPU where PyTorch finds one, and memory is then
the GPU's. Ratios are of medians over all timed steps, with the lowest and highest over rounds; have nothing else
running.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS = {
    "a": {"prompts": 4, "group": 4, "prompt_tokens": 38, "new_tokens": 32, "trl_batch": 16, "lora": None},
    "b": {"prompts": 8, "group": 8, "prompt_tokens": 64, "new_tokens": 64, "trl_batch": 32, "lora": None},
    "c": {"prompts": 4, "group": 8, "prompt_tokens": 512, "new_tokens": 32, "trl_batch": 8, "lora": None},
    "d": {"prompts": 4, "group": 4, "prompt_tokens": 38, "new_tokens": 32, "trl_batch": 16, "lora": 16},
}
LR, BETA = 1e-6, 0.05
BARS = {"a": 6, "b": 6, "c": 10, "d": 6}
PHASES = ("sampling", "scoring", "update")


def reward(text: str) -> float:
    """What both sides are rewarded for: the letter e."""
    return text.count("e") / 10


def require_full_length(lengths: set[int], job: dict[str, Any]) -> None:
    """Stop unless every completion was as long as was agreed."""
    if lengths != {job["new_tokens"]}:
        raise SystemExit(f"completions of {lengths} tokens, {job['new_tokens']} were agreed")


def wait_for_device() -> None:
    """Wait until a GPU has done what it was told, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_klimb(job: dict[str, Any]) -> dict[str, Any]:
    """Take the steps with klimb."""
    from klimb.config.train import TrainConfig
    from klimb.data.prompts import PromptRow
    from klimb.model.trainable import Lora
    from klimb.policy.policy import Policy, SampleKey
    from klimb.reward.function import FunctionReward
    from klimb.reward.reward import WeightedSum
    from klimb.rl.optimizer import PolicyOptimizer
    from klimb.rl.step import take_step

    lora = Lora(job["lora"], 2.0 * job["lora"]) if job["lora"] else None
    config = TrainConfig(
        model=job["model"], prompts=Path(), reward=("e",), out=Path(), lr=LR, beta=BETA, precision=job["precision"],
        prompts_per_step=job["prompts"], completions_per_prompt=job["group"], max_new_tokens=job["new_tokens"],
    )  # fmt: skip
    policy = Policy.load(
        job["model"], lora=lora, precision=config.precision, micro_batch_size=job.get("micro_batch")
    )
    policy.end_ids = []  # every completion to its full length
    optimizer = PolicyOptimizer(policy, config)
    judge = WeightedSum([FunctionReward("e", lambda completions, **_: list(map(reward, completions)))])
    steps = []
    for step in range(job["steps"] + job["warm_up"]):
        first = step * job["prompts"]
        rows = [PromptRow(text, {}, "") for text in job["texts"][first : first + job["prompts"]]]
        start = time.perf_counter()
        judged, _ = take_step(
            policy, judge, optimizer, rows, SampleKey(0, step, list(range(len(rows)))), config
        )
        wait_for_device()
        total = time.perf_counter() - start
        require_full_length(set(judged.completions.lengths.tolist()), job)
        seconds = judged.seconds | {"scoring": judged.seconds["reference"], "total": total}
        steps.append({name: seconds[name] for name in (*PHASES, "total")})
    return {"steps": steps[job["warm_up"] :]}


def run_trl(job: dict[str, Any]) -> dict[str, Any]:
    """Take the steps with TRL's RLOOTrainer."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]  in an environment of its own
    from transformers import AutoTokenizer, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer  # pyright: ignore[reportMissingImports]

    steps: list[dict[str, float]] = []
    spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            spent.update(dict.fromkeys(PHASES, 0.0))
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait_for_device()
            total = time.perf_counter() - self.start
            spent["update"] = total - spent["sampling"] - spent["scoring"]
            steps.append(spent | {"total": total})

    def timed(name: str, phase: str, is_update: Callable[[], bool]) -> None:
        usual = getattr(RLOOTrainer, name)

        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            if is_update():
                return usual(self, *arguments, **options)
            start = time.perf_counter()
            try:
                return usual(self, *arguments, **options)
            finally:
                wait_for_device()
                spent[phase] += time.perf_counter() - start

        setattr(RLOOTrainer, name, method)

    timed("_generate", "sampling", lambda: False)
    # A pass for the gradient is part of the update.
    timed("_get_per_token_logps_and_entropies", "scoring", torch.is_grad_enabled)

    lengths: list[int] = []

    def judge(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return list(map(reward, completions))

    completions = job["prompts"] * job["group"]
    batch = min(job["trl_batch"], completions)
    config = RLOOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), report_to="none",
        save_strategy="no", logging_strategy="no",
        disable_tqdm=True, seed=0, max_steps=job["steps"] + job["warm_up"],
        learning_rate=LR, lr_scheduler_type="constant",
        optim="adamw_torch_fused", max_grad_norm=1.0, beta=BETA, temperature=1.0, num_generations=job["group"],
        per_device_train_batch_size=batch, gradient_accumulation_steps=completions // batch,
        max_completion_length=job["new_tokens"], generation_kwargs={"min_new_tokens": job["new_tokens"]},
        gradient_checkpointing=False, bf16=job["precision"] == "bfloat16",
        model_init_kwargs={"dtype": "float32"}, shuffle_dataset=False,
    )  # fmt: skip
    peft_config = None
    if job["lora"]:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=job["lora"], lora_alpha=2 * job["lora"], target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = RLOOTrainer(
        model=job["model"], args=config, reward_funcs=judge, peft_config=peft_config, callbacks=[Clock()],
        train_dataset=Dataset.from_dict({"prompt": job["texts"]}),
        processing_class=AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
    )  # fmt: skip
    trainer.train()
    require_full_length(set(lengths), job)
    return {"steps": steps[job["warm_up"] :]}


def child(side: str) -> None:
    """One side, once: the job comes on standard input, the result is the last line of output."""
    job = json.loads(sys.stdin.read())
    result = {"klimb": run_klimb, "trl": run_trl}[side](job)
    result["peak_bytes"] = peak_bytes()
    print(json.dumps(result))


def peak_bytes() -> int:
    """The most memory that this process took: of the GPU where there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start(side: str, python: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a child and read its result."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, __file__, "--side", side]
    finished = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, env=environment, check=False
    )
    if finished.returncode != 0:
        raise SystemExit(f"{side} failed:\n{finished.stderr[-3000:]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def make_texts(tokenizer: Any, num_tokens: int, count: int) -> list[str]:
    """Prompts of words that are one token each, of exactly so many tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [
        symbol[1:]
        for symbol, _ in vocabulary
        if symbol.startswith("Ġ") and symbol[1:].isascii() and symbol[1:].isalpha()
    ]
    chooser = random.Random(0)  # noqa: S311  words, not secrets
    texts: list[str] = []
    while len(texts) < count:
        text = " ".join(chooser.choices(words[:5000], k=num_tokens))
        if len(tokenizer(text).input_ids) == num_tokens:
            texts.append(text)
    return texts


def describe(side: str, precision: str, results: list[dict[str, Any]], completions: int) -> str:
    """One row of the table: medians over every timed step of every round."""
    steps = [step for result in results for step in result["steps"]]
    middle = {name: statistics.median(step[name] for step in steps) for name in (*PHASES, "total")}
    peak = max(result["peak_bytes"] for result in results) / 1e9
    seconds = " | ".join(f"{middle[name]:.2f}" for name in ("total", *PHASES))
    return f"| {side} | {precision} | {completions / middle['total']:.2f} | {seconds} | {peak:.2f} |"


def ratios(klimb: list[dict[str, Any]], trl: list[dict[str, Any]]) -> tuple[float, float, float]:
    """TRL's seconds over klimb's: of all steps, and the lowest and highest of a round."""
    by_round = [
        statistics.median(s["total"] for s in theirs["steps"])
        / statistics.median(s["total"] for s in ours["steps"])
        for ours, theirs in zip(klimb, trl, strict=True)
    ]
    total = [statistics.median(s["total"] for r in side for s in r["steps"]) for side in (trl, klimb)]
    return total[0] / total[1], min(by_round), max(by_round)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each process")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before those, at least 1")
    parser.add_argument("--trl-python", default=".venv-trl/bin/python")
    parser.add_argument("--side", choices=["klimb", "trl"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        child(arguments.side)
        return
    from klimb.demo.model import fetch_model
    from klimb.policy.policy import Policy

    with tempfile.TemporaryDirectory() as folder:
        policy = Policy.load(fetch_model())
        policy.save(Path(folder))
        tokenizer = policy.tokenizer
        del policy
        for name in arguments.settings:
            setting = SETTINGS[name]
            completions = setting["prompts"] * setting["group"]
            texts = make_texts(
                tokenizer,
                setting["prompt_tokens"],
                setting["prompts"] * (arguments.steps + arguments.warm_up),
            )
            sides = {(side, p): [] for p in arguments.precisions for side in ("klimb", "trl")}
            for _ in range(arguments.rounds):
                for (side, precision), results in sides.items():
                    job = setting | {
                        "model": folder,
                        "texts": texts,
                        "steps": arguments.steps,
                        "warm_up": arguments.warm_up,
                        "precision": precision,
                    }
                    results.append(
                        start(side, sys.executable if side == "klimb" else arguments.trl_python, job)
                    )
            lora = f", LoRA rank {setting['lora']}" if setting["lora"] else ""
            print(
                f"\n({name}) {setting['prompts']} prompts of {setting['prompt_tokens']} tokens × {setting['group']} "
                f"completions of {setting['new_tokens']}{lora}; seconds of a step, median of {arguments.rounds} rounds"
            )
            print("\n| | precision | completions/s | step | sampling | scoring | update | peak GB |")
            print("|---|---|---|---|---|---|---|---|")
            for (side, precision), results in sides.items():
                print(describe(side, precision, results, completions))
            print()
            for precision in arguments.precisions:
                middle, low, high = ratios(sides["klimb", precision], sides["trl", precision])
                print(f"both in {precision}: {middle:.1f} × ({low:.1f}–{high:.1f})")
            best = {
                side: min(
                    (sides[side, p] for p in arguments.precisions),
                    key=lambda rs: statistics.median(s["total"] for r in rs for s in r["steps"]),
                )
                for side in ("klimb", "trl")
            }
            middle, low, high = ratios(best["klimb"], best["trl"])
            peaks = [max(r["peak_bytes"] for r in best[side]) for side in ("klimb", "trl")]
            print(
                f"each in its best: {middle:.1f} × ({low:.1f}–{high:.1f}), bar {BARS[name]}; "
                f"peak memory {peaks[0] / peaks[1]:.2f} of TRL's, bar 0.6",
                flush=True,
            )


if __name__ == "__main__":
    main()
