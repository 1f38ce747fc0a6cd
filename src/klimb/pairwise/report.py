"""The page of a comparison."""

from typing import Any

from klimb.config.pairwise import PEOPLE, CompareConfig
from klimb.io.page import ACCENT, LINE, Figure, draw_figure, render
from klimb.pairwise.results import ComparisonResult
from klimb.pairwise.tally import Tally
from klimb.pairwise.words import in_rows, lengths
from klimb.training.evaluate.estimates import short_name


def draw_report(result: ComparisonResult, config: CompareConfig) -> str:
    """Return the page."""
    judged = [each for each in result.tallies if each.num_comparisons]
    return render(
        "klimb.pairwise",
        "report.html.jinja",
        result=result,
        config=config,
        options=config.to_dict(),
        rows=in_rows(result.tallies),
        lengths=lengths(result),
        has_people=PEOPLE in config.by,
        figure=_win_rates(judged, result.a.name),
    )


def _win_rates(tallies: list[Tally], a: str) -> Figure:
    def draw(axes: Any) -> None:
        places = range(len(tallies))
        axes.axvline(0.5, linestyle="--", color=ACCENT, linewidth=1)
        for place, judged in zip(places, tallies, strict=True):
            axes.plot([judged.low, judged.high], [place, place], color=LINE, linewidth=3, alpha=0.4)
            axes.plot([judged.win_rate], [place], "o", color=LINE, markersize=7)
        axes.set_yticks(list(places), [_cut(judged.judge) for judged in tallies])
        axes.set_ylim(len(tallies) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xlabel("win rate of A")

    caption = (
        f"How often A ({a}) is preferred, a tie counting half; the bar is the 95 % interval over prompts. "
        "If it crosses the dashed line at one half, the difference may be chance."
    )
    return draw_figure("Win rate", caption, draw)


def _cut(name: str) -> str:
    short = short_name(name).replace("$", r"\$")  # a dollar begins a formula
    return short if len(short) <= 24 else short[:23] + "…"
