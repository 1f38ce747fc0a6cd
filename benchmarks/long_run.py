"""A long run of a tiny model: whether memory, file handles, threads and the time of a step stay as they are.

python benchmarks/long_run.py [--steps 2000]

After each step the process is measured; a straight line is fitted to what was found after the first tenth, and
another to the second half alone, where whatever fills up at the start is full. Their slopes are printed with their
standard errors, times 1,000 steps. Linux.
"""

import argparse
import importlib.util
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from klimb.config.train import TrainConfig
from klimb.rl.rollout import Rollout
from klimb.training.report.console import Display
from klimb.training.run import train

_PAGE = os.sysconf("SC_PAGE_SIZE")
_UNITS = {"memory": "MB", "files": "", "threads": "", "seconds": "s"}


class Meter(Display):
    """Measures the process after every step, and shows nothing."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.found: dict[str, list[float]] = {name: [] for name in _UNITS}

    def step_finished(self, metrics: dict[str, Any], rollout: Rollout) -> None:  # noqa: ARG002  as Display has it
        """A step was taken."""
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
        self.found["memory"].append(resident / 1e6)
        self.found["files"].append(len(os.listdir("/proc/self/fd")))
        self.found["threads"].append(len(os.listdir("/proc/self/task")))
        self.found["seconds"].append(sum(metrics["seconds"].values()))


def slope(values: list[float]) -> tuple[float, float]:
    """Fit a line and return its slope, in units a step, and the slope's standard error."""
    y = np.asarray(values)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    steepness = float(x @ y / (x @ x))
    rest = y - y.mean() - steepness * x
    return steepness, float(np.sqrt(rest @ rest / (len(y) - 2) / (x @ x)))


def run(num_steps: int, folder: Path) -> dict[str, list[float]]:
    """Run on a tiny model that is made on the spot, and return what was measured after each step."""
    tiny = _load_tiny()
    tiny.make_model(folder / "model")
    prompts, rules = tiny.make_data(folder)
    meter = Meter()
    train(
        TrainConfig(
            model=str(folder / "model"),
            prompts=prompts,
            reward=(f"{rules}:vowels",),
            judges=(f"{rules}:one_e",),
            out=folder / "run",
            prompts_per_step=4,
            max_new_tokens=16,
            eval_every=max(num_steps // 20, 1),
            keep_best="reward",
            num_steps=num_steps,
            checkpoint_every=max(num_steps // 40, 1),
            lr=1e-4,
        ),
        meter,
    )
    return meter.found


def main() -> None:
    """Print a line for each of what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    num_steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory(prefix="klimb-long-") as folder:
        found = run(num_steps, Path(folder))
    print(f"{num_steps:,} steps; the first tenth, while everything warms up, is left out")
    for name, values in found.items():
        steady, unit = values[num_steps // 10 :], _UNITS[name]
        steepness, error = slope(steady)
        late, late_error = slope(values[num_steps // 2 :])
        tenths = np.quantile(steady, [0.1, 0.5, 0.9])
        print(
            f"  {name:<8} {tenths[1]:.4g} {unit} (10th to 90th percentile {tenths[0]:.4g} to {tenths[2]:.4g}), "
            f"slope {1000 * steepness:+.3g} ± {1000 * error:.2g} {unit} in 1,000 steps, "
            f"in the second half {1000 * late:+.3g} ± {1000 * late_error:.2g}"
        )


def _load_tiny() -> Any:
    file = Path(__file__).parent.parent / "tools" / "crashlab" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
