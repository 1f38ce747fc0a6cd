"""The memory that a run is predicted to take, beside what it took.

python benchmarks/memory.py [--settings "all weights" LoRA …] [--steps 12]     (half an hour; the model is fetched once)

Each setting is a real run on SmolLM2-135M-Instruct, its prompts half as long to as long as the longest, judged
before and after, saved and reported, in a process of its own; measured is the largest resident size of that process,
or, where PyTorch finds a GPU, the most memory that it held there.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "last 6 layers": {"num_trainable_layers": 6},
    "LoRA": {"lora_rank": 16},
    "bfloat16": {"precision": "bfloat16"},
    "LoRA, bfloat16": {"lora_rank": 16, "precision": "bfloat16"},
    "micro-batches of 4": {"micro_batch_size": 4},
    "plain gradient ascent": {"optimiser": "sgd"},
    "prompts of 256 tokens": {"prompt_words": 250},
}
NUM_PROMPTS = 32
NUM_STEPS = 12


def make_job(name: str, folder: Path, num_steps: int = NUM_STEPS) -> dict[str, Any]:
    """Write a setting's files and return the options of its run."""
    from klimb.demo.model import fetch_model

    setting = dict(SETTINGS[name])
    num_words = setting.pop("prompt_words", 30)
    prompts, judge = folder / "prompts.jsonl", folder / "judge.py"
    lengths = [num_words - num_words * number // (2 * NUM_PROMPTS) for number in range(NUM_PROMPTS)]
    rows = [{"prompt": f"{number}: " + " time" * length} for number, length in enumerate(lengths)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge.write_text("def e(completions, **_):\n    return [c.count('e') / 10 for c in completions]\n")
    return {
        "model": str(fetch_model()),
        "prompts": str(prompts),
        "reward": [f"{judge}:e"],
        "out": str(folder / "run"),
        "prompts_per_step": 4,
        "completions_per_prompt": 4,
        "eval_completions_per_prompt": 2,
        "max_new_tokens": 32,
        "num_steps": num_steps,
        "lr": 1e-5,
    } | setting


def child() -> None:
    """One run: its options come on standard input, the result is the last line of output."""
    import torch
    from rich.console import Console

    from klimb.config.train import TrainConfig
    from klimb.training.preflight.preflight import Preflight
    from klimb.training.report.console import Display
    from klimb.training.run import train

    seen: list[Preflight] = []

    class Watching(Display):
        def preflight_finished(self, preflight: Preflight, *, with_memory: bool = False) -> None:
            seen.append(preflight)
            super().preflight_finished(preflight, with_memory=with_memory)

    options = json.loads(sys.stdin.read())
    for name in ("prompts", "out"):
        options[name] = Path(options[name])
    options["reward"] = tuple(options["reward"])
    train(TrainConfig(**options), Watching(Console(file=io.StringIO())))
    measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        measured = torch.cuda.max_memory_reserved()
    memory = seen[0].memory
    result = {
        "predicted": memory.peak, "measured": measured, "phase": memory.phase, "terms": memory.terms,
        "preflight_seconds": seen[0].seconds,
    }  # fmt: skip
    print(json.dumps(result))


def run(name: str, num_steps: int) -> dict[str, Any]:
    """Run a setting in a process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        job = json.dumps(make_job(name, Path(folder), num_steps))
        finished = subprocess.run(
            [sys.executable, __file__, "--child"],
            input=job, capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
    if finished.returncode != 0:
        raise SystemExit(f"{name} failed:\n{finished.stderr[-3000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Print a row for each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--terms", action="store_true", help="print what each prediction consists of")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child()
        return
    print(
        "| setting | predicted, GB | measured, GB | error | at the peak | preflight, s |\n|---|---|---|---|---|---|"
    )
    for name in arguments.settings:
        result = run(name, arguments.steps)
        error = result["predicted"] / result["measured"] - 1
        print(
            f"| {name} | {result['predicted'] / 1e9:.2f} | {result['measured'] / 1e9:.2f} | {error:+.1%} | "
            f"{result['phase']} | {result['preflight_seconds']:.1f} |",
            flush=True,
        )
        if arguments.terms:
            print("".join(f"    {size / 1e9:6.3f}  {term}\n" for term, size in result["terms"].items()))


if __name__ == "__main__":
    main()
