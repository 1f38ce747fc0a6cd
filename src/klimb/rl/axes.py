"""Words and formulas of an objective, joined from the values of its axes."""

import math

from klimb.core.aggregation import AGGREGATIONS
from klimb.core.baselines import SCALES
from klimb.core.corrections import CORRECTIONS
from klimb.core.kl_scores import KL_ESTIMATORS
from klimb.core.objective import Objective
from klimb.core.ratios import RATIO_LEVELS
from klimb.core.tokens import AxisValue

BASELINES: dict[str, AxisValue] = {
    "none": AxisValue("no baseline, so the gradient is unbiased", "A_i = r̃_i"),
    "batch_mean": AxisValue(
        "the batch's mean as the baseline, which scales the expected gradient by 1 − 1/N and keeps its direction",
        "A_i = r̃_i − mean of r̃ over the batch",
    ),
    "leave_one_out": AxisValue(
        "the mean of the prompt's other completions as the baseline, so the gradient is unbiased",
        "A_i = r̃_i − mean of r̃ over the prompt's other completions",
    ),
    "group_normalised": AxisValue(
        "each prompt's rewards centred and divided by their standard deviation, so the gradient is biased",
        "A_i = (r̃_i − mean of r̃ over the prompt) / (std of r̃ over the prompt + 0.0001)",
    ),
    "group_mean": AxisValue(
        "the prompt's mean as the baseline, a completion's own reward included, which scales the expected gradient by "
        "1 − 1/G",
        "A_i = r̃_i − mean of r̃ over the prompt",
    ),
    "length_weighted": AxisValue(
        "the prompt's mean, each completion counted by its length, as the baseline",
        "A_i = r̃_i − Σ_j len_j r̃_j / Σ_j len_j over the prompt",
    ),
    "greedy": AxisValue(
        "the reward of the prompt's greedy completion as the baseline, so the gradient is unbiased",
        "A_i = r̃_i − r(greedy completion of the prompt)",
    ),
    "value": AxisValue(
        "what follows a token, beyond what a value function expects before it (generalised advantage estimation)",
        "A_it = Σ_l (γλ)^l δ_i,t+l",
    ),
}
"""What is subtracted from a reward, under the names that an objective uses."""

KL_CREDITS: dict[str, AxisValue] = {
    "whole": AxisValue(
        "The log-ratio of the whole completion is taken off its reward, before the baseline: unbiased for its KL",
        "r̃_i = r_i − β Σ_t d_it",
    ),
    "to_go": AxisValue(
        "Each token pays for its own and every later token's log-ratio: unbiased for the sequence's KL",
        "A_it = A_i − β Σ_{t'≥t} d_it'",
    ),
    "own": AxisValue(
        "Each token pays for its own log-ratio: the KL at the prefixes drawn, not what a token does to later KL",
        "A_it = A_i − β d_it",
    ),
}
"""Which tokens pay for the KL in the reward."""


def describe_objective(objective: Objective) -> list[str]:
    """Say in sentences what an objective does besides its advantage: KL in the loss, ratio, masks, updates."""
    words: list[str] = []
    if objective.kl_place == "loss" and objective.beta > 0:
        words.append(
            f"The KL is in the loss, β = {objective.beta:g}. {KL_ESTIMATORS[objective.kl_estimator].words}. "
            "It does not know what a token does to the KL of later ones, as the KL in the reward does."
        )
    if objective.entropy_coefficient > 0:
        words.append(
            "The entropy of the policy at each prefix drawn, over the whole vocabulary and differentiated exactly, is "
            f"raised, η = {objective.entropy_coefficient:g}."
        )
    if objective.sampler_beta > 0:
        words.append(
            "The KL from the policy that drew is in the loss, by half the squared log-ratio, times "
            f"{objective.sampler_beta:g}."
        )
    if objective.ratio != "none":
        log_probs = (
            "log-probs of the trainer" if objective.corrects_sampler else "log-probs recorded in sampling"
        )
        bound = objective.region.words.format(**objective.numbers)
        words.append(
            f"{RATIO_LEVELS[objective.ratio].words}, to the policy that drew the completions, by the {log_probs}. "
            f"{bound}{_dual(objective)}."
        )
    if objective.sampler_correction != "none":
        by = CORRECTIONS[objective.sampler_correction].words.format(**vars(objective))
        words.append(f"{by}. {_old_words(objective)}")
    if _has_filter(objective):
        words.append(
            "Completions whose geometric mean of π_old/π_sampler is outside "
            f"{objective.filter_low:g} to {objective.filter_high:g} are left out; denominators stay."
        )
    words.append(f"{AGGREGATIONS[objective.aggregation].words}.")
    words += _mask_words(objective)
    words.append(_update_words(objective))
    return words


def _has_filter(objective: Objective) -> bool:
    return (objective.filter_low, objective.filter_high) != (0.0, math.inf)


def _old_words(objective: Objective) -> str:
    found = (
        "this update's own pass"
        if objective.num_updates == 1
        else "a pass of its own before the first update"
    )
    return (
        f"π_sampler is what was recorded in sampling, and π_old is found by {found}. klimb's own sampler is the policy "
        "that is trained, and with it q is 1 but for rounding."
    )


def _dual(objective: Objective) -> str:
    if objective.trust_region == "clipped" and objective.clip_dual < math.inf:
        return f", or {objective.clip_dual:g} with A < 0"
    return ""


def _mask_words(objective: Objective) -> list[str]:
    words: list[str] = []
    if objective.mask_truncated:
        words.append(
            "Completions that were cut off at the limit are in no gradient and no denominator; their rewards "
            "stay in the baseline."
        )
    if objective.drop_uniform_groups:
        words.append(
            "Prompts whose rewards, as they were given, are all equal are in no gradient and no denominator."
        )
    if objective.max_drift < math.inf:
        words.append(
            f"Completions with A < 0 from which the policy has moved away by more than {objective.max_drift:g} nats "
            "per token are left out; denominators stay."
        )
    return words


def _update_words(objective: Objective) -> str:
    if objective.num_updates == 1:
        only = "" if objective.ratio == "none" else ": all ratios are 1 but for rounding, and no bound acts"
        return f"Each batch is used for one update, on-policy{only}."
    return (
        f"Each batch is gone through {_times(objective.num_epochs)}, in {objective.num_minibatches} "
        f"minibatch{'' if objective.num_minibatches == 1 else 'es'} of whole prompts: {objective.num_updates} "
        "updates per step; denominators are the minibatch's."
    )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def formulas_of(objective: Objective, beta: str) -> list[str]:
    """Write an objective from its advantage on as formulas, one a line.

    Args:
        objective: The objective.
        beta: β as it is to be shown.
    """
    is_value = objective.baseline == "value"
    lines = value_formulas(objective, beta) if is_value else [_advantage(objective)]
    if objective.has_kl_scores or objective.kl_in_tokens:
        lines.insert(0, "d_it = log π(y_it) − log π_ref(y_it)")
    if objective.kl_in_tokens and not (is_value and objective.kl_credit == "to_go"):
        credit = KL_CREDITS[objective.kl_credit].formula.replace("β", beta)
        lines.append(credit.replace("A_it = A_i ", "A_it ← A_it ") if is_value else credit)
    index = "A_it" if objective.credits_tokens else "A_i"
    if objective.whiten_tokens:
        lines.append(
            f"{index} ← ({index} − mean over all tokens) / std over all tokens (ddof {objective.whiten_ddof})"
        )
    if objective.ratio != "none":
        lines += [RATIO_LEVELS[objective.ratio].formula, _region(objective)]
    if objective.sampler_correction != "none":
        lines.append(CORRECTIONS[objective.sampler_correction].formula.format(**vars(objective)))
    lines.append(AGGREGATIONS[objective.aggregation].formula)
    if _has_filter(objective):
        low, high = objective.filter_low, objective.filter_high
        lines.append(f"f_i = 1[{low:g} ≤ (Π_t π_old/π_sampler)^(1/len_i) ≤ {high:g}]")
    terms = [_factors(objective) + index]
    if objective.has_kl_scores:
        lines.append(KL_ESTIMATORS[objective.kl_estimator].formula)
        terms.append(f"{beta} κ")
    lines += _exact_formulas(objective)
    if objective.sampler_beta > 0:
        anchor = "π_sampler" if objective.corrects_sampler else "π_old"
        terms.append(f"{objective.sampler_beta:g} log(π/{anchor})")
    total = " − ".join(terms)
    lines.append(f"c_it = a · ({total})" if len(terms) > 1 else f"c_it = a · {total}")
    return lines


def _factors(objective: Objective) -> str:
    """What an advantage is multiplied by in c."""
    filtered = "f " if _has_filter(objective) else ""
    corrected = "" if objective.sampler_correction == "none" else "q "
    return filtered + corrected + ("" if objective.ratio == "none" else "w ")


def _exact_formulas(objective: Objective) -> list[str]:
    lines = [KL_ESTIMATORS["exact"].formula] if objective.has_exact_kl else []
    if objective.entropy_coefficient > 0:
        lines.append("H_it = −Σ_v π(v) log π(v) after prefix y_i,<t")
    return lines


def gradient_formula(objective: Objective, beta: str) -> str:
    """Write the gradient: the sum by score weights, and the terms that are none."""
    terms = ["g = Σ_it c_it ∇ log π(y_it)"]
    if objective.has_exact_kl:
        terms.append(f" − {beta} Σ_it a ∇KL_it")
    if objective.entropy_coefficient > 0:
        terms.append(f" + {objective.entropy_coefficient:g} Σ_it a ∇H_it")
    return "".join(terms)


def value_formulas(objective: Objective, beta: str) -> list[str]:
    """Write what a token earns, its advantage by values, and what values are fitted to."""
    paid = f" − {beta} d_it" if objective.kl_in_tokens and objective.kl_credit == "to_go" else ""
    clip, coefficient = objective.value_clip, f"{objective.value_coefficient:g}"
    bounded = f", (clip(V, V_old ± {clip:g}) − R)²" if clip < math.inf else ""
    squares = f"max((V − R)²{bounded})" if bounded else "(V − R)²"
    return [
        f"r_it = r̃_i [t is the last token]{paid}",
        f"δ_it = r_it + {_times_number(objective.discount)}V_i,t+1 − V_it, V = 0 after the last token",
        f"A_it = Σ_l ({objective.discount:g} · {objective.trace_decay:g})^l δ_i,t+l,  R_it = A_it + V_it",
        f"V's loss = {coefficient} Σ_it a_it ½ {squares}",
    ]


def _times_number(factor: float) -> str:
    return "" if factor == 1 else f"{factor:g} · "


def _region(objective: Objective) -> str:
    formula = objective.region.formula.format(**objective.numbers)
    if not _dual(objective):
        return formula
    return formula.removesuffix("]") + f", not (A < 0 and ρ > {objective.clip_dual:g})]"


def _advantage(objective: Objective) -> str:
    if objective.scale == "none":
        return BASELINES[objective.baseline].formula
    divided = SCALES[objective.scale].formula.format(**vars(objective))
    return (
        BASELINES[objective.baseline].formula.replace("A_i = ", "A_i = (") + ")" + divided.removeprefix("A")
    )
