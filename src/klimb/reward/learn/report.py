"""A reward model's report page: its accuracy, and where it may mislead."""

from typing import Any

import numpy as np

from klimb.config.reward import RewardConfig
from klimb.core.binomial import exact_interval
from klimb.io.page import ACCENT, LINE, Figure, draw_figure, render
from klimb.reward.learn.evaluation import Bin
from klimb.reward.learn.results import RewardResult


def draw_report(result: RewardResult, config: RewardConfig) -> str:
    """Return the page."""
    figures = [_calibration(result)] if len(result.held_out.calibration) > 1 else []
    if len(result.curve) > 1:
        figures.insert(0, _learning_curve(result))
    learner = {
        "head": "a linear head on frozen features" + (", averaged by evidence" if result.is_crossed else ""),
        "lora": f"a low-rank adapter of rank {config.lora_rank} on every linear layer, and a head",
        "full": "all weights, and a head",
    }[config.method]
    return render(
        "klimb.reward.learn",
        "report.html.jinja",
        result=result,
        config=config,
        learner=learner,
        held_out=result.held_out,
        verdict=result.verdict,
        figures=figures,
    )


def _learning_curve(result: RewardResult) -> Figure:
    counts, middle, low, high = np.array(result.curve).T

    def draw(axes: Any) -> None:
        axes.fill_between(counts, low, high, color=LINE, alpha=0.18, linewidth=0)
        axes.plot(counts, middle, "o-", color=LINE, markersize=5)
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:,.0f}" for count in counts], rotation=30)
        axes.minorticks_off()
        axes.set_xlabel("prompts (or texts) learned from")
        axes.set_ylabel("held-out pairwise accuracy")

    caption = (
        "Pairwise accuracy on held-out texts, against the number of prompts learned from; the band is the "
        "95 % interval. If it still rises, more judgements will help."
    )
    return draw_figure("Judgements needed", caption, draw)


def _calibration(result: RewardResult) -> Figure:
    bins = result.held_out.calibration
    observed = np.array([b.observed for b in bins])
    low, high = np.array([exact_interval(round(b.observed * b.count), b.count) for b in bins]).T

    def draw(axes: Any) -> None:
        axes.plot([0.5, 1], [0.5, 1], "--", color=ACCENT, linewidth=1)
        bars = np.maximum([observed - low, high - observed], 0)
        axes.errorbar(
            [b.predicted for b in bins], observed, bars, fmt="o", color=LINE, markersize=5, linewidth=1
        )
        axes.set_xlabel("predicted probability of the likelier text")
        axes.set_ylabel("share in which it was preferred")

    caption = (
        "On the dashed line the predicted probability is right; mean distance "
        f"{result.held_out.calibration_error:.3f}. Below it the model is too sure, above it not sure enough. Each "
        f"point is {_count(bins)} held-out pairs, with its 95 % interval."
    )
    return draw_figure("Calibration", caption, draw)


def _count(bins: list[Bin]) -> str:
    """How many pairs a point stands for."""
    least, most = min(b.count for b in bins), max(b.count for b in bins)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
