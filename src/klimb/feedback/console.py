"""Terminal output about a feedback store."""

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from klimb.feedback.rater_report import RaterReport
from klimb.feedback.raters import account_for, opinions_of
from klimb.feedback.records import Judgement
from klimb.feedback.store.store import Store
from klimb.io.show import printable

_NAME_WIDTH = 20  # characters of a rater's name that stand in one line


def show_store(store: Store, console: Console | None = None) -> None:
    """Print what is in a store: pairs, who judged them, how much they agree, whose completions won."""
    say = (console or Console(highlight=False, soft_wrap=True)).print
    progress = store.progress("")
    say(f"{store.where}: {progress.num_pairs:,} pairs, {progress.num_done:,} of them judged", markup=False)
    judgements = store.judgements()
    report = account_for(opinions_of(judgements))
    if not report.accounts:
        return
    say(_raters_table(report))
    for line in report.warnings:
        say(f"[bold red]{escape(line)}[/]")
    if report.advice:
        say(report.advice, markup=False)
    agreement = store.agreement()
    if agreement is not None:
        say(
            f"Two raters of the same pair say the same in {agreement.share:.0%} of cases, over "
            f"{agreement.num_pairs:,} pairs (Krippendorff's alpha {agreement.alpha:.2f})"
        )
    wins = wins_by_model(judgements)
    if wins:
        table = Table(title="Whose completions were preferred", title_justify="left")
        for column in ("model", "preferred", "not", "tie or both bad"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for model, counts in wins.items():
            table.add_row(
                escape(printable(model)), *(f"{counts[name]:,}" for name in ("won", "lost", "tied"))
            )
        say(table)


def _raters_table(report: RaterReport) -> Table:
    """Each rater in a row; what is known of none has no column."""
    accounts = report.accounts
    columns = {
        "judged": [f"{one.num_judgements:,}" for one in accounts],
        "ties": [f"{one.num_ties:,}" for one in accounts],
        "skips": [f"{one.num_skipped:,}" for one in accounts],
        "answer 1": [one.left.percent for one in accounts],
        "same again": [one.repeats.percent for one in accounts],
        "circles": [one.circles.percent for one in accounts],
        "as others": [one.agreement.percent for one in accounts],
        "seconds": ["–" if one.median_seconds is None else f"{one.median_seconds:.1f}" for one in accounts],
    }
    known = {name: cells for name, cells in columns.items() if set(cells) != {"–"}}
    names = [printable(one.rater) or "(not known)" for one in accounts]
    table = Table(title="Raters", title_justify="left")
    table.add_column("", min_width=min(max(map(len, names)), _NAME_WIDTH), overflow="fold")
    for name in known:
        table.add_column(name, justify="right")
    for name, *cells in zip(names, *known.values(), strict=True):
        table.add_row(escape(name), *cells)
    return table


def wins_by_model(judgements: list[Judgement]) -> dict[str, Counter[str]]:
    """Count how often each model's completions won, lost and tied against those of another model."""
    counts: dict[str, Counter[str]] = {}
    for said in judgements:
        models = [str(side.source.get("model", "")) for side in (said.first, said.second)]
        if said.preferred == "skip" or models[0] == models[1]:
            continue
        for model, side in zip(models, ("first", "second"), strict=True):
            result = "won" if said.preferred == side else "lost"
            counts.setdefault(model, Counter())[
                result if said.preferred in ("first", "second") else "tied"
            ] += 1
    return dict(sorted(counts.items()))
