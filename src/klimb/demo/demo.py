"""`klimb demo`: fit a reward to people's ratings, fine-tune SmolLM2 on it, and evaluate with a held-out judge."""

import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

from rich.console import Console

from klimb.config.criterion import QUESTION
from klimb.config.reward import RewardConfig
from klimb.config.train import TrainConfig
from klimb.demo.model import MODEL, fetch_model
from klimb.demo.ratings import RATINGS, fetch_ratings, write_ratings
from klimb.io.atomic import make_folder
from klimb.reward.learn.console import show_reward
from klimb.reward.learn.training import train_reward
from klimb.training.report.console import Display
from klimb.training.run import RunResult, train

_NUM_SENTENCES = 1000
_NUM_JUDGEMENTS = 60
_RATER = "you"
_MAX_NEW_TOKENS = 20


def reward_config(model: Path, feedback: Path, out: Path, seed: int, *, is_few: bool = False) -> RewardConfig:
    """How the demo's reward is learned, from many ratings or a few of the user's own judgements."""
    return RewardConfig(
        feedback=(str(feedback),),
        base=str(model),
        out=out,
        num_layers=24 if is_few else 16,
        min_gap=0.3,
        pairs_per_text=10,
        held_out=None if is_few else 0.2,
        question=QUESTION,
        seed=seed,
    )


def demo_config(model: Path, reward: Path, out: Path, seed: int) -> TrainConfig:
    """The demo's settings; lr, beta and steps were chosen on training openers alone (docs/decisions.md)."""
    return TrainConfig(
        model=str(model),
        prompts=_data("train_openers.jsonl"),
        eval_prompts=_data("held_out_openers.jsonl"),
        reward=(str(reward),),
        judges=("vader",),
        out=out,
        num_trainable_layers=6,
        max_new_tokens=_MAX_NEW_TOKENS,
        temperature=0.8,
        beta=0.025,
        lr=3e-4,
        num_steps=20,
        checkpoint_every=10,
        seed=seed,
    )


def run_demo(out: Path | None, seed: int, *, label: bool = False) -> RunResult:
    """Fetch the model, learn a reward from what people said, fine-tune on it, and show what changed.

    Args:
        out: Folder of the reward and the run; the next free one of runs/demo where None.
        seed: Decides every random number.
        label: Whether the user judges some completions, in place of the ratings that come with the demo.
    """
    start = time.perf_counter()
    display = Display()
    say = display.console.print
    whom = "you" if label else "people"
    say(f"[bold]klimb demo[/]: SmolLM2-135M-Instruct learns to continue neutral openers as {whom} like it.")
    folder = out or _free_folder()
    if not MODEL.is_fetched:
        say("Fetching the model, 93 MB, once …")
    model = fetch_model()
    say(f"\n[bold]1. A reward, learned from {whom}[/]")
    if label:
        feedback = _ask_the_user(model, folder, seed, display.console)
    else:
        feedback = _take_ratings(folder, seed, display.console)
    config = reward_config(model, feedback, folder / "learned-reward", seed, is_few=label)
    reward = train_reward(config, lambda line: say(line, markup=False))
    show_reward(reward, display.console)
    is_proven = reward.held_out.beats_chance
    if not is_proven:
        say(
            "The demo continues nevertheless, so that you see each step: expect no gain that you would notice."
        )
    say("\n[bold]2. The policy, fine-tuned on this reward[/]")
    say(
        "Evaluated before and after by the reward, and by VADER, a lexicon of rated words that is never trained on."
    )
    settings = demo_config(model, config.out, folder / "run", seed)
    result = train(replace(settings, accept_unproven_reward=not is_proven), display)
    say(f"[bold]Time[/]    {time.perf_counter() - start:.0f} s")
    say(
        "\nNext: the same on your own prompts, klimb label --help, klimb reward train --help, klimb train --help"
    )
    return result


def _take_ratings(folder: Path, seed: int, console: Console) -> Path:
    """What people said of sentences of film reviews."""
    if not RATINGS.is_fetched:
        console.print("Fetching people's ratings of film-review sentences, once …")
    console.print(
        f"{_NUM_SENTENCES:,} sentences of film reviews, each rated by 15 to 20 people (Hutto & Gilbert 2014)."
    )
    make_folder(folder)
    file = folder / "ratings.jsonl"
    write_ratings(fetch_ratings(), file, _NUM_SENTENCES, seed)
    return file


def _ask_the_user(model: Path, folder: Path, seed: int, console: Console) -> Path:
    """What the user says of the model's own completions, on the page in the browser."""
    from klimb.config.pairwise import LabelConfig
    from klimb.data.prompts import read_prompts
    from klimb.feedback.server.serve import serve
    from klimb.feedback.store.store import Store
    from klimb.pairwise.candidates import draw_to_label, find_models
    from klimb.pairwise.console import watched
    from klimb.pairwise.serving import serve_page

    console.print(
        f"You are asked which of two continuations you like better, each cut after {_MAX_NEW_TOKENS} tokens; after "
        f"{_NUM_JUDGEMENTS} answers, some ten minutes, the demo continues. So many teach a taste that shows in most "
        "texts, such as cheerfulness; a finer one needs hundreds."
    )
    config = LabelConfig(
        model=(str(model),),
        prompts=_data("train_openers.jsonl"),
        rater=_RATER,
        max_new_tokens=_MAX_NEW_TOKENS,
        temperature=0.8,
        seed=seed,
    )
    rows = read_prompts(_data("train_openers.jsonl"))
    pairs, _ = draw_to_label(find_models(config.model), rows, config, watched)
    make_folder(folder)
    file = folder / "feedback.db"
    with Store.open(file) as store:
        store.add_pairs(pairs)

        def is_done() -> bool:
            decided = [said for said in store.judgements() if said.preferred in ("first", "second")]
            return len(decided) >= _NUM_JUDGEMENTS or store.next_question(_RATER) is None

        serve_page(store, config, lambda line: console.print(line, markup=False), serve, until=is_done)
    return file


def _data(name: str) -> Path:
    return Path(str(resources.files("klimb.demo"))) / name


def _free_folder() -> Path:
    base = Path("runs")
    number = 1
    while (folder := base / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder
