"""The demo over several seeds: what it gains, how far it moves, how long a step takes and of what.

python benchmarks/demo_seeds.py [--seeds 0 1 2] [--out FOLDER]

Each seed runs in a process of its own, one after the other; have nothing else running.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from klimb.training.evaluate.summary import Summary, summarise
from klimb.training.storage.folder import RunFolder


def run_seed(seed: int, out: Path) -> tuple[Summary, list[dict], float, float]:
    """Run the demo once and return its summary, metrics, the reward's held-out accuracy, and seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "klimb", "demo", "--seed", str(seed), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    folder = RunFolder.open(out / "run")
    accuracy = json.loads((out / "learned-reward" / "reward.json").read_text())["held_out"]["accuracy"]
    summary = summarise(folder.read("evaluations"), are_held_out=True, judges=["vader"])
    return summary, folder.read("metrics"), accuracy, seconds


def main() -> None:
    """Print a line for each seed and the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, default=None, help="where the runs go; a temporary folder by default"
    )
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="klimb-demo-"))

    gains, walls, steps = [], [], []
    print(
        "pairs: held-out human preferences that the reward predicts; then 32 held-out openers × 4, mean ± 95 % interval"
    )
    heads = ["before", "after", "gain", "VADER before", "VADER after", "KL, nats"]
    print(f"{'seed':>4} {'pairs':>6} " + " ".join(f"{head:>15}" for head in heads) + f" {'whole demo':>11}")
    for seed in arguments.seeds:
        summary, metrics, accuracy, seconds = run_seed(seed, out / f"seed-{seed}")
        gains.append(summary.gain.mean)
        walls.append(seconds)
        steps += metrics[1:]  # the first step warms up, and needs no reference
        vader = summary.judges["vader"]
        columns = [summary.before, summary.after, summary.gain, vader.before, vader.after, summary.kl]
        print(
            f"{seed:>4} {accuracy:>6.3f} " + " ".join(f"{c!s:>15}" for c in columns) + f" {seconds:>9.0f} s"
        )
    spread = statistics.stdev(gains) if len(gains) > 1 else float("nan")
    print(f"gain over seeds: {statistics.fmean(gains):.3f}, standard deviation {spread:.3f}")
    print(f"whole demo: {statistics.fmean(walls):.0f} s, at most {max(walls):.0f} s")
    print("seconds per step, median (10th to 90th percentile):")
    for phase in [*steps[0]["seconds"], "all"]:
        values = [sum(row["seconds"].values()) if phase == "all" else row["seconds"][phase] for row in steps]
        tenths = statistics.quantiles(values, n=10)
        print(f"  {phase:<10} {statistics.median(values):.3f} ({tenths[0]:.3f} to {tenths[-1]:.3f})")
    print(f"runs: {out}")
    (out / "summary.json").write_text(json.dumps({"gains": gains, "seconds": walls}) + "\n")


if __name__ == "__main__":
    main()
