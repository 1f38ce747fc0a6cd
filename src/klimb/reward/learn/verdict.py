"""A one-sentence verdict on a learned reward, for the terminal, its report and `klimb train`."""

import math

from klimb.reward.learn.evaluation import Evaluation

_QUANTILE = 1.96  # of the normal distribution, for 95 %
_COIN = 0.5  # accuracy of one
_MANY = 20_000  # judgements, past which a number would promise too much


def pairs_needed(accuracy: float) -> int | None:
    """Find how many held-out pairs show that an accuracy is above one half; None where it is not, or beyond count.

    n = z² a (1 − a) / (a − 1/2)²,  at least 10
    """
    if accuracy <= 0.5:
        return None
    count = math.ceil(_QUANTILE**2 * accuracy * (1 - accuracy) / (accuracy - 0.5) ** 2)
    return None if count > _MANY else max(count, 10)


def verdict(held_out: Evaluation, *, is_crossed: bool, has_criterion: bool = False) -> str:
    """Say whether a reward beats chance, and what to do where it does not.

    Args:
        held_out: What it is worth on prompts that it did not learn from.
        is_crossed: Whether every pair was tested on, by a head that had not learned from its prompt.
        has_criterion: Whether learning started from words for what people look for.
    """
    found = (
        f"held-out pairwise accuracy {held_out.accuracy:.3f} on {held_out.num_clear:,} pairs "
        f"({held_out.accuracy_low:.3f} to {held_out.accuracy_high:.3f})"
    )
    if held_out.chance is not None and held_out.accuracy_low > _COIN:
        found += f"; answers at random agree as well in {held_out.chance:.2g} of cases"
    if held_out.beats_chance:
        return f"It beats chance: {found}."
    needed = pairs_needed(held_out.accuracy)
    share = held_out.num_clear if is_crossed else 5 * held_out.num_clear
    if needed is None or needed <= held_out.num_clear:
        advice = f"Judge more: at least twice as many as these {share:,}."
    else:
        total = needed if is_crossed else 5 * needed
        advice = f"At this accuracy about {total:,} judgements in all would show that it does."
    if is_crossed and not has_criterion:
        advice += " --criterion says in words what you look for, which saves many of them."
    advice += (
        " Or raters answer at random: klimb can detect this only if two raters judge the same pairs "
        "(klimb label --per-pair 2)."
    )
    return f"It does not beat chance: {found}. Do not train on it. {advice}"
