"""What a person sees of a store of feedback on the terminal."""

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from klimb.feedback.records import Judgement
from klimb.feedback.store import Store
from klimb.text import printable


def show_store(store: Store, console: Console | None = None) -> None:
    """Print what is in a store: pairs, who judged them, how much they agree, whose completions won."""
    say = (console or Console(highlight=False, soft_wrap=True)).print
    progress = store.progress("")
    say(f"{store.where}: {progress.num_pairs:,} pairs, {progress.num_done:,} of them judged", markup=False)
    raters = store.raters()
    if not raters:
        return
    table = Table(title="Raters", title_justify="left")
    for column in ("", "judgements", "skipped", "median seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for rater in raters:
        seconds = "" if rater.median_seconds is None else f"{rater.median_seconds:.1f}"
        name = printable(rater.rater) or "(not known)"
        table.add_row(escape(name), f"{rater.num_judgements:,}", f"{rater.num_skipped:,}", seconds)
    say(table)
    agreement = store.agreement()
    if agreement is not None:
        say(
            f"Two raters of the same pair say the same in {agreement.share:.0%} of cases, over "
            f"{agreement.num_pairs:,} pairs (Krippendorff's alpha {agreement.alpha:.2f})"
        )
    wins = wins_by_model(store.judgements())
    if wins:
        table = Table(title="Whose completions were preferred", title_justify="left")
        for column in ("model", "preferred", "not", "tie or both bad"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for model, counts in wins.items():
            table.add_row(
                escape(printable(model)), *(f"{counts[name]:,}" for name in ("won", "lost", "tied"))
            )
        say(table)


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
