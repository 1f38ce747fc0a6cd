"""`klimb demo`: SmolLM2 learns to write what people rate as pleasant."""

import time
from importlib import resources
from pathlib import Path

from klimb.demo.model import fetch_model, is_fetched
from klimb.train.config import TrainConfig
from klimb.train.display import Display
from klimb.train.run import RunResult, train


def demo_config(model: Path, out: Path, seed: int) -> TrainConfig:
    """The demo's settings, chosen on its training openers; the held-out ones judge."""
    data = Path(str(resources.files("klimb.demo")))
    return TrainConfig(
        model=str(model),
        prompts=data / "train_openers.jsonl",
        eval_prompts=data / "held_out_openers.jsonl",
        reward=("vader",),
        out=out,
        num_trainable_layers=6,
        max_new_tokens=20,
        temperature=0.8,
        beta=0.04,
        lr=3e-4,
        num_steps=50,
        checkpoint_every=25,
        seed=seed,
    )


def run_demo(out: Path | None, seed: int) -> RunResult:
    """Fetch the model, fine-tune it on VADER, and show what changed."""
    start = time.perf_counter()
    display = Display()
    say = display.console.print
    say("[bold]klimb demo[/]: SmolLM2-135M-Instruct learns to continue neutral openers cheerfully.")
    say("The reward is VADER: a lexicon of 7,500 words, each rated by ten people.")
    if not is_fetched():
        say("Fetching the model, 93 MB, once …")
    model = fetch_model()
    result = train(demo_config(model, out or _free_folder(), seed), display)
    say(f"[bold]Time[/]    {time.perf_counter() - start:.0f} s")
    say("\nNext: the same on your own model and prompts, klimb train --help")
    return result


def _free_folder() -> Path:
    base = Path("runs")
    number = 1
    while (folder := base / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder
