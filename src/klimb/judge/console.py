"""What a person sees on the terminal of a comparison, and while completions are sampled."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from klimb.judge.words import in_rows, lengths
from klimb.train.estimates import short_name

if TYPE_CHECKING:
    from klimb.judge.compare import ComparisonResult


def watched(places: Sequence[int]) -> Iterator[int]:
    """Pass places on one by one, with a bar that goes when they have passed; nothing is shown where no terminal is."""
    console = Console(stderr=True)
    shown: Iterable[int] = places
    if console.is_terminal:
        shown = track(places, description="  sampling", console=console, transient=True)
    yield from shown


def show_comparison(result: "ComparisonResult", console: Console | None = None) -> None:
    """Print what the judges said, and where it is written."""
    say = (console or Console(highlight=False, soft_wrap=True)).print
    table = Table(
        title=f"A {escape(result.a.name)} against B {escape(result.b.name)}, on {result.num_prompts:,} prompts",
        title_justify="left",
    )
    table.add_column("judge")
    for judged in result.tallies:
        table.add_column(escape(short_name(judged.judge)), justify="right")
    for name, values in in_rows(result.tallies):
        table.add_row(name, *values)
    say(table)
    for words in lengths(result):
        say(words, markup=False)
    say()
    for verdict in result.verdicts:
        say(f"[bold]{escape(verdict)}[/]")
    say(f"[bold]Report[/]  {escape(str(result.page))}  (open it in a browser)")
    say(f"[bold]Numbers[/] {escape(str(result.data))}")
