"""`klimb demo`: a reward is learned from what people said, SmolLM2 learns to please it, another judge looks on."""

import time
from importlib import resources
from pathlib import Path

from rich.console import Console

from klimb.demo.model import MODEL, fetch_model
from klimb.demo.ratings import RATINGS, fetch_ratings, write_ratings
from klimb.files import make_folder
from klimb.reward.config import RewardConfig
from klimb.reward.console import show_reward
from klimb.reward.training import train_reward
from klimb.train.config import TrainConfig
from klimb.train.display import Display
from klimb.train.run import RunResult, train

_NUM_SENTENCES = 2000


def reward_config(model: Path, ratings: Path, out: Path, seed: int) -> RewardConfig:
    """How the demo's reward is learned."""
    return RewardConfig(
        feedback=(ratings,),
        base=str(model),
        out=out,
        num_layers=16,
        min_gap=0.3,
        pairs_per_text=10,
        held_out=0.2,
        seed=seed,
    )


def demo_config(model: Path, reward: Path, out: Path, seed: int) -> TrainConfig:
    """The demo's settings, chosen on its training openers; the held-out ones judge."""
    data = Path(str(resources.files("klimb.demo")))
    return TrainConfig(
        model=str(model),
        prompts=data / "train_openers.jsonl",
        eval_prompts=data / "held_out_openers.jsonl",
        reward=(str(reward),),
        judges=("vader",),
        out=out,
        num_trainable_layers=6,
        max_new_tokens=20,
        temperature=0.8,
        beta=0.12,
        lr=4e-4,
        num_steps=40,
        checkpoint_every=20,
        seed=seed,
    )


def run_demo(out: Path | None, seed: int) -> RunResult:
    """Fetch model and ratings, learn the reward, fine-tune on it, and show what changed."""
    start = time.perf_counter()
    display = Display()
    say = display.console.print
    say("[bold]klimb demo[/]: SmolLM2-135M-Instruct learns to continue neutral openers as people like it.")
    folder = out or _free_folder()
    if not MODEL.is_fetched:
        say("Fetching the model, 93 MB, once …")
    model = fetch_model()
    if not RATINGS.is_fetched:
        say("Fetching people's ratings of film-review sentences, once …")
    say("\n[bold]1. A reward, learned from people[/]")
    say(
        f"{_NUM_SENTENCES:,} sentences of film reviews, each rated by 15 to 20 people (Hutto & Gilbert 2014)."
    )
    reward = _learn_reward(fetch_ratings(), model, folder, seed, display.console)
    say("\n[bold]2. The policy, fine-tuned to please it[/]")
    say(
        "Judged before and after by the reward, and by VADER, a lexicon of rated words that is not trained on."
    )
    result = train(demo_config(model, reward, folder / "run", seed), display)
    say(f"[bold]Time[/]    {time.perf_counter() - start:.0f} s")
    say("\nNext: the same on your own feedback, klimb reward train --help, and prompts, klimb train --help")
    return result


def _learn_reward(ratings: Path, model: Path, folder: Path, seed: int, console: Console) -> Path:
    make_folder(folder)
    file = folder / "ratings.jsonl"
    write_ratings(ratings, file, _NUM_SENTENCES, seed)
    config = reward_config(model, file, folder / "learned-reward", seed)
    show_reward(train_reward(config, lambda line: console.print(line, markup=False)), console)
    return config.out


def _free_folder() -> Path:
    base = Path("runs")
    number = 1
    while (folder := base / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder
