"""What objectives reach on the demo's task: the same reward, prompts, model, completions and learning rate.

python benchmarks/objectives.py [--names rloo grpo dapo ppo] [--seeds 0 1 2] [--out FOLDER] [--processes 1]

The reward is learned once, as `klimb demo` learns it. Each run draws as many completions as the demo. Objectives keep
their own β, clipping, numbers of minibatches and epochs; `rloo` here is the demo itself, with its β. A run that is
there already is read and not repeated, so that the script may be cut. Rewards and VADER are of completions of
held-out openers, their intervals those of `klimb.summarise`; a table in Markdown comes last.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from klimb.config.train import TrainConfig
from klimb.core.presets import PRESETS
from klimb.demo.demo import demo_config, reward_config
from klimb.demo.model import fetch_model
from klimb.demo.ratings import fetch_ratings, write_ratings
from klimb.reward.learn.training import train_reward
from klimb.training.evaluate.summary import Summary, summarise
from klimb.training.run import train
from klimb.training.storage.folder import RunFolder

NUM_SENTENCES = 1000


def learn_reward(out: Path) -> Path:
    """Learn the demo's reward, where it has not been learned."""
    folder = out / "reward"
    if not (folder / "reward.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_ratings(fetch_ratings(), out / "ratings.jsonl", NUM_SENTENCES, 0)
        train_reward(reward_config(fetch_model(), out / "ratings.jsonl", folder, 0), print)
    return folder


def config_of(name: str, seed: int, reward: Path, out: Path) -> TrainConfig:
    """The demo's configuration with another objective, which brings its own β, epochs and minibatches."""
    config = replace(demo_config(fetch_model(), reward, out, seed), checkpoint_every=20)
    if name == "rloo":
        return config
    return replace(config, objective=name, beta=None, baseline=None)


def run_one(arguments: argparse.Namespace, name: str, seed: int) -> None:
    """Run one objective with one seed in a process of its own, unless it has been run."""
    folder = arguments.out / f"{name}-{seed}"
    if (folder / "summary.json").exists():
        return
    command = [
        sys.executable,
        __file__,
        "--one",
        name,
        "--seeds",
        str(seed),
        "--out",
        str(arguments.out),
    ]
    threads = (os.cpu_count() or 1) // arguments.processes
    with (arguments.out / f"{name}-{seed}.log").open("w") as log:
        subprocess.run(
            command,
            check=True,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(max(threads, 1))},
        )


def read(folder: Path) -> Summary:
    """The summary of a run."""
    return summarise(RunFolder.open(folder).read("evaluations"), are_held_out=True, judges=["vader"])


def table(out: Path, names: list[str], seeds: list[int]) -> str:
    """Objectives with what they reached, a row each: the mean over seeds, and each seed."""
    lines = [
        "| objective | gain of the reward | change of VADER | KL, nats | tokens |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        found = [read(out / f"{name}-{seed}") for seed in seeds if (out / f"{name}-{seed}").exists()]
        if not found:
            continue
        judged = [summary.judges["vader"] for summary in found]
        cells = [
            _cell([summary.gain.mean for summary in found], 2),
            _cell([judge.after.mean - judge.before.mean for judge in judged], 2),
            _cell([summary.kl.mean for summary in found if summary.kl], 1),
            _cell([summary.length_after for summary in found], 1),
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    """Show a mean and what it is the mean of; a dash where nothing was measured."""
    if not values:
        return "–"
    return f"{statistics.fmean(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", nargs="+", default=["rloo", "grpo", "dapo", "ppo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, default=None, help="where the runs go; a temporary folder by default"
    )
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path(tempfile.mkdtemp(prefix="klimb-objectives-"))
    reward = learn_reward(arguments.out)
    if arguments.one:
        name, (seed,) = arguments.one, arguments.seeds
        train(config_of(name, seed, reward, arguments.out / f"{name}-{seed}"))
        return
    jobs = [(name, seed) for seed in arguments.seeds for name in arguments.names]
    unknown = [name for name in arguments.names if name != "rloo" and name not in PRESETS]
    if unknown:
        parser.error(f"--names: {', '.join(unknown)} is no objective of klimb")
    with ThreadPoolExecutor(arguments.processes) as pool:
        list(pool.map(lambda job: run_one(arguments, *job), jobs))
    print(table(arguments.out, arguments.names, arguments.seeds))
    print(f"runs: {arguments.out}")


if __name__ == "__main__":
    main()
