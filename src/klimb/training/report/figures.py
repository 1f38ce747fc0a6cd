"""The curves of a run as SVG that takes its text colour from the page around it."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap

from klimb.io.page import ACCENT, LINE, Figure, draw_figure
from klimb.training.evaluate.best import BestSoFar
from klimb.training.evaluate.estimates import REWARD, Estimate, Point, short_name
from klimb.training.evaluate.summary import Summary

_WINDOW = 5  # steps of the running mean, odd
_PLAIN = (-3, 5)  # powers of ten between which numbers at an axis are written in full
_KL_LABEL = "KL from the reference, nats per completion"
_OVER_OPTIMISED = "If it falls while the reward still rises, the policy has begun to exploit the reward."


def draw_figures(
    metrics: Sequence[dict[str, Any]],
    summary: Summary | None,
    judges: Sequence[str] = (),
    points: Sequence[Point] = (),
    *,
    has_reward: bool = True,
) -> list[Figure]:
    """Draw reward, KL, entropy, length, and reward and judges against KL.

    Args:
        metrics: The rows of `metrics.jsonl`.
        summary: What changed; None where the run is not finished.
        judges: Names of the rewards that were asked and never trained on.
        points: What evaluations along the run found, the start first. Where there are some, the judges are drawn by
            them instead of by the completions that were trained on.
        has_reward: Whether the mean reward tells anything; not where it is a share of comparisons within each step.
    """
    judged = ""
    if summary or points:
        when = "at each evaluation" if points else "before and after"
        judged = f" Diamonds: the prompts judged {when}, with 95 % intervals."
    best = None if summary is None else summary.best
    measured = [row for row in metrics if "kl" in row]
    along = _judges_along(points, judges, best) if points else _judges_in_training(measured, judges)
    rewards = draw_figure(
        "Reward",
        f"What the reward thought of each batch (dots) and the mean of {_WINDOW} steps (line).{judged}",
        _reward(metrics, _diamonds(len(metrics), summary, points)),
    )
    return [
        *([rewards] if has_reward else []),
        *_distance(measured, has_reward=has_reward),
        *along,
        draw_figure(
            "Entropy",
            "How undecided the policy is about each next token. Near 0 it repeats itself.",
            _curve(metrics, "entropy", "nats per token"),
        ),
        draw_figure(
            "Length",
            "Tokens of a completion. A steady climb or fall may mean that the reward likes length itself.",
            _curve(metrics, "length", "tokens"),
        ),
    ]


def _distance(measured: Sequence[dict[str, Any]], *, has_reward: bool) -> list[Figure]:
    """How far the policy moved, and what it got for that, by the steps whose KL was measured; nothing without any."""
    if not measured:
        return []
    distance = draw_figure(
        "Distance from the reference",
        "How far the policy has moved: log π − log π_ref of a completion, mean of the batch. "
        "The penalty keeps it from running away.",
        _curve(measured, "kl", "KL, nats per completion"),
    )
    if not has_reward:
        return [distance]
    against = draw_figure(
        "Reward against distance",
        f"What each nat of distance bought, means of {_WINDOW} steps, from blue (first) to orange (last).",
        _against_kl(measured, lambda row: row["reward"], "reward"),
    )
    return [distance, against]


def _curve(metrics: Sequence[dict[str, Any]], key: str, label: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        rows = [row for row in metrics if row[key] is not None]  # none where all failed
        places, values = [row["step"] for row in rows], [row[key] for row in rows]
        axes.plot(places, values, ".", color=LINE, alpha=0.45, markersize=5)
        axes.plot(places, running_mean(values), color=LINE, linewidth=2)
        axes.set_xlabel("steps")
        axes.set_ylabel(label)
        axes.ticklabel_format(axis="y", scilimits=_PLAIN)
        axes.xaxis.get_major_locator().set_params(integer=True)

    return draw


def _reward(
    metrics: Sequence[dict[str, Any]], diamonds: Sequence[tuple[int, Estimate]]
) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        _curve(metrics, "reward", "reward")(axes)
        for place, estimate in diamonds:
            axes.errorbar(
                place, estimate.mean, yerr=estimate.half_width, fmt="D", color=ACCENT, capsize=4, markersize=6
            )

    return draw


def running_mean(values: Sequence[float]) -> list[float]:
    """Average each value with its neighbours, `_WINDOW` of them away from the ends."""
    reach = _WINDOW // 2
    return [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _diamonds(num_steps: int, summary: Summary | None, points: Sequence[Point]) -> list[tuple[int, Estimate]]:
    """Where the reward stands on the prompts that are judged by, and after how many steps."""
    if points:
        return [(point.step, point.means[REWARD]) for point in points]
    return (
        [] if summary is None or not summary.has_reward else [(0, summary.before), (num_steps, summary.after)]
    )


def _against_kl(
    metrics: Sequence[dict[str, Any]], values_of: Callable[[dict[str, Any]], float | None], label: str
) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        rows = [row for row in metrics if values_of(row) is not None]
        kl = running_mean([row["kl"] for row in rows])
        values = running_mean([float(values_of(row) or 0.0) for row in rows])
        axes.plot(kl, values, color=LINE, linewidth=1.2, alpha=0.6)
        axes.scatter(kl, values, c=[row["step"] for row in rows], cmap=_colours(), s=22, zorder=3)
        axes.set_xlabel(_KL_LABEL)
        axes.set_ylabel(label)
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(scilimits=_PLAIN)

    return draw


def _judges_in_training(metrics: Sequence[dict[str, Any]], judges: Sequence[str]) -> list[Figure]:
    if not metrics:
        return []
    return [
        draw_figure(
            f"The judge {short_name(judge)} against distance",
            f"A judge that is asked and never trained on. {_OVER_OPTIMISED}",
            _against_kl(metrics, lambda row, judge=judge: row["rewards"][judge], short_name(judge)),
        )
        for judge in judges
    ]


def _judges_along(points: Sequence[Point], judges: Sequence[str], best: BestSoFar | None) -> list[Figure]:
    """The reward and each judge on the prompts that are judged by; the reward alone where there is no judge."""
    kept = "" if best is None else f" Dotted: the weights that are kept, {_named(best.step)}."
    if not judges:
        return [
            draw_figure(
                "The reward along the run",
                f"On the prompts that are judged by, with 95 % intervals, at each evaluation.{kept}",
                lambda axes: _draw_along(axes, points, None, best),
            )
        ]
    return [
        draw_figure(
            f"Reward and the judge {short_name(judge)} along the run",
            "On the prompts that are judged by, with 95 % intervals, at each evaluation: the reward (blue, left) and a "
            f"judge that is never trained on (orange, right). {_OVER_OPTIMISED}{kept}",
            lambda axes, judge=judge: _draw_along(axes, points, judge, best),
        )
        for judge in judges
    ]


def _draw_along(axes: Any, points: Sequence[Point], judge: str | None, best: BestSoFar | None) -> None:
    _draw_points(axes, points, REWARD, {"color": LINE, "fmt": "o-"})
    axes.set_xlabel(_KL_LABEL if _are_measured(points) else "steps")
    if judge is not None:
        right = axes.twinx()
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
        _draw_points(right, points, judge, {"color": ACCENT, "fmt": "D--"})
    for place, point in zip(_places(points), points, strict=True):
        if best is not None and point.step == best.step:
            axes.axvline(place, color="gray", linestyle=":", linewidth=1.5, zorder=0)
            axes.annotate(
                _named(point.step),
                (place, 1),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
            )


def _draw_points(axes: Any, points: Sequence[Point], name: str, style: dict[str, str]) -> None:
    means = [point.means[name] for point in points]
    axes.errorbar(
        _places(points),
        [estimate.mean for estimate in means],
        yerr=[estimate.half_width for estimate in means],
        linewidth=1.6,
        elinewidth=0.8,
        capsize=2,
        markersize=4.5,
        **style,
    )
    axes.set_ylabel(name if name == REWARD else short_name(name), color=style["color"])


def _are_measured(points: Sequence[Point]) -> bool:
    return all(point.kl is not None for point in points)


def _places(points: Sequence[Point]) -> list[float]:
    """Where evaluations stand: by their KL, or where it was not measured by the steps until then."""
    kls = [point.kl.mean for point in points if point.kl is not None]
    return kls if len(kls) == len(points) else [float(point.step) for point in points]


def _named(step: int) -> str:
    return f"step {step}" if step else "the start"


def _colours() -> Any:
    """From the line's colour to the accent: both can be read on a light page and on a dark one."""
    return LinearSegmentedColormap.from_list("steps", [LINE, ACCENT])
