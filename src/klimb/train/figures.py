"""The curves of a run as SVG that takes its text colour from the page around it."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap

from klimb.page import ACCENT, LINE, Figure, draw_figure
from klimb.train.summary import Summary, short_name

_WINDOW = 5  # steps of the running mean, odd


def draw_figures(
    metrics: Sequence[dict[str, Any]], summary: Summary | None, judges: Sequence[str] = ()
) -> list[Figure]:
    """Draw reward, KL, entropy, length, and reward and judges against KL."""
    steps = [row["step"] for row in metrics]

    def curve(key: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            values = [row[key] for row in metrics]
            axes.plot(steps, values, ".", color=LINE, alpha=0.45, markersize=5)
            axes.plot(steps, running_mean(values), color=LINE, linewidth=2)
            axes.set_xlabel("updates")
            axes.xaxis.get_major_locator().set_params(integer=True)

        return draw

    def reward(axes: Any) -> None:
        curve("reward")(axes)
        if summary is not None:
            for place, estimate in ((0, summary.before), (len(steps), summary.after)):
                axes.errorbar(
                    place,
                    estimate.mean,
                    yerr=estimate.half_width,
                    fmt="D",
                    color=ACCENT,
                    capsize=4,
                    markersize=6,
                )
        axes.set_ylabel("reward")

    def against_kl(values_of: Callable[[dict[str, Any]], float | None], label: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            rows = [row for row in metrics if values_of(row) is not None]
            kl = running_mean([row["kl"] for row in rows])
            values = running_mean([float(values_of(row) or 0.0) for row in rows])
            axes.plot(kl, values, color=LINE, linewidth=1.2, alpha=0.6)
            axes.scatter(kl, values, c=[row["step"] for row in rows], cmap=_colours(), s=22, zorder=3)
            axes.set_xlabel("KL from the reference, nats a completion")
            axes.set_ylabel(label)

        return draw

    def labelled(draw: Callable[[Any], None], label: str) -> Callable[[Any], None]:
        def both(axes: Any) -> None:
            draw(axes)
            axes.set_ylabel(label)

        return both

    judged = " Diamonds: the prompts judged before and after, with 95 % intervals." if summary else ""
    return [
        draw_figure(
            "Reward",
            f"What the reward thought of each batch (dots) and the mean of {_WINDOW} steps (line).{judged}",
            reward,
        ),
        draw_figure(
            "Distance from the reference",
            "How far the policy has moved: log π − log π_ref of a completion, mean of the batch. "
            "The penalty keeps it from running away.",
            labelled(curve("kl"), "KL, nats a completion"),
        ),
        draw_figure(
            "Reward against distance",
            f"What each nat of distance bought, means of {_WINDOW} steps, from blue (first) to orange (last).",
            against_kl(lambda row: row["reward"], "reward"),
        ),
        *(
            draw_figure(
                f"The judge {short_name(judge)} against distance",
                "A judge that is asked and never trained on. Where it turns down while the reward still climbs, the "
                "policy has begun to please the reward alone.",
                against_kl(lambda row, judge=judge: row["rewards"][judge], short_name(judge)),
            )
            for judge in judges
        ),
        draw_figure(
            "Entropy",
            "How undecided the policy is about each next token. Near 0 it repeats itself.",
            labelled(curve("entropy"), "nats a token"),
        ),
        draw_figure(
            "Length",
            "Tokens of a completion. A steady climb or fall may mean that the reward likes length itself.",
            labelled(curve("length"), "tokens"),
        ),
    ]


def running_mean(values: Sequence[float]) -> list[float]:
    """Average each value with its neighbours, `_WINDOW` of them away from the ends."""
    reach = _WINDOW // 2
    return [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _colours() -> Any:
    """From the line's colour to the accent: both can be read on a light page and on a dark one."""
    return LinearSegmentedColormap.from_list("steps", [LINE, ACCENT])
