"""Terminal output of a comparison and of the sampling before it."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from klimb.io.progress import Progress, Say
from klimb.pairwise.results import ComparisonResult
from klimb.pairwise.words import in_rows, lengths
from klimb.training.evaluate.estimates import short_name


def watched(places: range) -> Iterator[int]:
    """Pass places on one by one, with a bar that goes when they have passed, or lines where no terminal is.

    Args:
        places: Of the first prompt of each part; a range, whose end is the number of prompts.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if console.is_terminal:
        yield from track(places, description="  sampling", console=console, transient=True)
        return
    yield from in_lines(places, lambda line: console.print(line, markup=False))


def in_lines(places: range, say: Say) -> Iterator[int]:
    """Pass places on one by one, with a line now and then; where other lines come between, as beside a page.

    Args:
        places: Of the first prompt of each part; a range, whose end is the number of prompts.
        say: Takes the lines.
    """
    progress = Progress("sampling", places.stop, "prompts", say)
    for place in places:
        yield place
        progress.advance(min(places.step, places.stop - place))


def show_comparison(result: ComparisonResult, console: Console | None = None) -> None:
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
    for line in result.raters.warnings:
        say(f"[bold red]{escape(line)}[/]")
    say(f"[bold]Report[/]  {escape(str(result.page))}  (open it in a browser)")
    say(f"[bold]Numbers[/] {escape(str(result.data))}")
