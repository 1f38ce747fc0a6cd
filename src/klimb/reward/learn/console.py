"""Terminal output about a learned reward."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from klimb.reward.learn.results import RewardResult


def show_reward(result: RewardResult, console: Console | None = None) -> None:
    """Print what the reward is worth and where it is."""
    say = (console or Console(highlight=False, soft_wrap=True)).print
    if result.is_crossed:
        say("Learned from all pairs; tested by 10-fold cross-validation.")
    unit = "prompts" if result.has_prompts else "texts"
    held_out = result.held_out
    table = Table(title=f"Evaluated on {unit} held out", title_justify="left")
    for column in ("", "held out", "95 % interval", "learned from"):
        table.add_column(column, justify="left" if not column else "right")
    interval = f"{held_out.accuracy_low:.3f} to {held_out.accuracy_high:.3f}"
    num_ties = held_out.num_pairs - held_out.num_clear
    which = f", {held_out.num_clear:,} of {held_out.num_pairs:,} pairs without a tie" if num_ties else ""
    table.add_row(
        f"pairwise accuracy{which}", f"{held_out.accuracy:.3f}", interval, f"{result.train.accuracy:.3f}"
    )
    if result.before is not None:
        table.add_row("the linear head at the start", f"{result.before.accuracy:.3f}", "", "")
    table.add_row(
        f"negative log-likelihood, nats (a coin: {held_out.coin:.3f})",
        f"{held_out.nll:.3f}",
        "",
        f"{result.train.nll:.3f}",
    )
    table.add_row("preferring the longer text would reach", f"{held_out.length_accuracy:.3f}", "", "")
    say(table)
    colour = "green" if held_out.beats_chance else "bold red"
    say(f"[{colour}]{escape(result.verdict)}[/]")
    for line in result.raters.warnings:
        say(f"[bold red]{escape(line)}[/]")
    if result.raters.advice:
        say(result.raters.advice, markup=False)
    say(
        f"[bold]Reward[/]  {escape(str(result.folder))}  (klimb train --reward {escape(str(result.folder))} …)"
    )
    say(f"[bold]Report[/]  {escape(str(result.report))}  (open it in a browser)")
