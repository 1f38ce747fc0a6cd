"""Curves of the score weights: ratios, clipped and masked tokens, effective sample size."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.ticker import StrMethodFormatter

from klimb.io.page import ACCENT, LINE, Figure, draw_figure
from klimb.training.report.figures import running_mean

_MOVED = (
    1.001  # largest ratio above which a policy has moved away from the one that drew, and not by rounding
)
_STYLES = ((LINE, "-"), (ACCENT, "-"), (LINE, "--"), (ACCENT, "--"), ("gray", "-"), ("gray", ":"))
_SHARES = {
    "clipped_high": "clipped, ratio above 1",
    "clipped_low": "clipped, ratio below 1",
    "masked_max_drift": "left out by max_drift",
    "masked_correction": "left out by the correction",
    "left_out": "completions left out",
}


def draw_weight_figures(metrics: Sequence[dict[str, Any]]) -> list[Figure]:
    """Draw the score weights' metrics of an objective that has some; those that never vary are left out.

    Args:
        metrics: The rows of `metrics.jsonl`.
    """
    rows = [row for row in metrics if row.get("weights")]
    figures: list[Figure] = []
    ratios = _series(rows, {"ratio_max": "largest", "ratio_mean": "mean"})
    if any(value > _MOVED for _, values in ratios.values() for value in values):
        figures.append(
            draw_figure(
                "Probability ratios",
                "π/π_old over the tokens of a step's updates. The further from 1, the older the policy that drew them.",
                _lines(ratios, "ratio", is_log=True),
            )
        )
    named = _SHARES | {
        name: name.replace("masked_", "left out by ")
        for row in rows
        for name in row["weights"]
        if name.startswith("masked_") and name not in _SHARES
    }
    shares = {label: found for label, found in _series(rows, named).items() if any(found[1])}
    if shares:
        figures.append(
            draw_figure(
                "Left out of the gradient",
                "Shares of tokens whose policy term is 0, by what leaves them out, and of completions. The larger, "
                "the less of a batch is used.",
                _lines(shares, "share", is_log=False),
            )
        )
    effective = _series(rows, {"effective_share": "effective share"})
    if effective:
        figures.append(
            draw_figure(
                "Effective sample size",
                "(Σ|c|)² / (n Σc²) of the score weights c, as a share of the n tokens: 1 where all weigh the same, "
                "near 0 where few decide the gradient.",
                _lines(effective, "share of the tokens", is_log=False),
            )
        )
    return figures


def draw_value_figures(metrics: Sequence[dict[str, Any]]) -> list[Figure]:
    """Draw the explained variance of a run with a value function, and nothing for one without.

    Args:
        metrics: The rows of `metrics.jsonl`.
    """
    rows = [row for row in metrics if row.get("value", {}).get("explained_variance") is not None]
    if not rows:
        return []
    explained = [row["step"] for row in rows], [row["value"]["explained_variance"] for row in rows]
    return [
        draw_figure(
            "Value function",
            "Share of the returns' variance that the values explain: 1 is perfect, 0 as good as a constant, below 0 "
            "worse.",
            _lines({"explained variance": explained}, "explained variance", is_log=False, is_share=False),
        )
    ]


def _series(
    rows: Sequence[dict[str, Any]], named: dict[str, str]
) -> dict[str, tuple[list[int], list[float]]]:
    """Find steps and values of each metric that some step has, by its label; a share that a step lacks is 0 there."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for name, label in named.items():
        if any(name in row["weights"] for row in rows):
            steps = [row["step"] for row in rows]
            found[label] = steps, [float(row["weights"].get(name, 0.0)) for row in rows]
    return found


def _lines(
    series: dict[str, tuple[list[int], list[float]]], label: str, *, is_log: bool, is_share: bool = True
) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for (name, (steps, values)), (colour, style) in zip(series.items(), _STYLES, strict=False):
            axes.plot(steps, values, ".", color=colour, alpha=0.45, markersize=5)
            axes.plot(steps, running_mean(values), style, color=colour, linewidth=1.8, label=name)
        axes.set_xlabel("steps")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if is_log:
            axes.set_yscale("log")
            for of_axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                of_axis(StrMethodFormatter("{x:.3g}"))  # powers of ten would be formulas
        elif is_share:
            axes.set_ylim(bottom=0.0)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return draw
