"""An objective: one value on each axis of the policy gradient, as a record.

c_it = a_it · (q_it · m_it · w(ρ_it, A_it) · A_it − β · κ_it − β_s · κˢ_it),   g = Σ_it c_it ∇ log π(y_it)
"""

import math
from dataclasses import dataclass
from typing import Literal

from klimb.core.aggregation import AGGREGATIONS
from klimb.core.baselines import SCALES
from klimb.core.corrections import CORRECTIONS
from klimb.core.kl_scores import KL_ESTIMATORS
from klimb.core.ratios import RATIO_LEVELS
from klimb.core.trust_regions import TRUST_REGIONS, TrustRegion
from klimb.errors import ArgumentError

BaselineName = Literal[
    "none",
    "batch_mean",
    "leave_one_out",
    "group_normalised",
    "group_mean",
    "length_weighted",
    "greedy",
    "value",
]
COMPARING = ("leave_one_out", "group_normalised", "group_mean", "length_weighted")
"""Baselines that compare the completions of one prompt."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One value on each axis; a preset is such a record, and so is an objective of your own.

    Attributes:
        reproduces: What it is the objective of, and where it stands.
        kl_place: Where the KL from the reference enters: the reward, before the baseline, or the loss.
        kl_credit: In the reward, which tokens pay for a log-ratio: the whole completion, the token and those before
            it (to_go), or its own token alone. Has no meaning in the loss.
        kl_estimator: In the loss, one of `KL_ESTIMATORS`; in the reward, k1.
        entropy_coefficient: η ≥ 0, reward units a nat of the policy's entropy at the prefixes drawn, in the loss.
        beta: β ≥ 0, reward units a nat of KL from the reference.
        sampler_beta: β_s ≥ 0, the same for the KL from the policy that drew, in the loss, by k2.
        baseline: What is subtracted from a reward; `value` is a value function, by generalised advantages.
        scale: What the difference is divided by, one of `SCALES`.
        scale_epsilon: ε ≥ 0, added to a standard deviation, in reward units.
        scale_ddof: 1 or 0, taken off the number of samples in a standard deviation.
        whiten_tokens: Whether the advantages of all tokens are brought to mean 0 and variance 1.
        whiten_ddof: 1 or 0, taken off the number of tokens in that variance.
        discount: γ from 0 to 1, of rewards of later tokens.
        trace_decay: λ from 0 to 1, of generalised advantages.
        ratio: Level of the ratio to the policy that drew, one of `RATIO_LEVELS`.
        trust_region: One of `TRUST_REGIONS`, or a record of your own.
        clip_low: Its lower bound; what it bounds is the region's matter.
        clip_high: Its upper bound.
        clip_dual: Ratio above which `clipped` drops tokens with A < 0.
        ratio_cap: Largest weight of `probability_bounded`.
        soft_positive: Temperature of `soft` where A > 0.
        soft_negative: Temperature of `soft` elsewhere.
        aggregation: One of `AGGREGATIONS`.
        sampler_correction: What is done about a sampler that is not the policy, one of `CORRECTIONS`.
        correction_level: Level of that weight, one of `RATIO_LEVELS` but none.
        correction_low: Its lower bound.
        correction_high: Its upper bound.
        filter_low: Completions whose geometric mean of that weight is below are left out.
        filter_high: And those whose mean is above.
        mask_truncated: Whether completions cut off at the length limit leave gradient and denominators.
        drop_uniform_groups: Whether prompts with equal rewards leave the denominators.
        max_drift: Nats a token past which completions with A < 0 are left out; infinite: none.
        overlong_buffer: Share of the length limit over whose end the length penalty grows; 0: no penalty.
        overlong_factor: The penalty at the limit, in reward units.
        num_epochs: How often a batch is gone through.
        num_minibatches: Updates in each pass; prompts stay whole.
        value_coefficient: What the value function's loss is multiplied by.
        value_clip: How far a value may move from that at sampling.
    """

    reproduces: str = "an objective of your own"
    kl_place: Literal["reward", "loss"] = "loss"
    kl_credit: Literal["whole", "to_go", "own"] = "own"
    kl_estimator: Literal["k1", "k2", "k3", "unbiased", "exact"] = "unbiased"
    entropy_coefficient: float = 0.0
    beta: float = 0.0
    sampler_beta: float = 0.0
    baseline: BaselineName = "group_mean"
    scale: Literal["none", "group_std", "others_std", "batch_std", "group_mean"] = "none"
    scale_epsilon: float = 1e-4
    scale_ddof: Literal[0, 1] = 1
    whiten_tokens: bool = False
    whiten_ddof: Literal[0, 1] = 0
    discount: float = 1.0
    trace_decay: float = 0.95
    ratio: Literal["none", "token", "sequence", "sequence_mean"] = "token"
    trust_region: (
        Literal[
            "unbounded", "clipped", "truncated", "soft", "probability_bounded", "clipped_geometric", "gamma"
        ]
        | TrustRegion
    ) = "clipped"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_dual: float = math.inf
    ratio_cap: float = math.inf
    soft_positive: float = 1.0
    soft_negative: float = 1.05
    aggregation: Literal[
        "sequence_sum", "sequence_mean", "token_mean", "group_token_mean", "constant", "sum"
    ] = "token_mean"
    sampler_correction: Literal["none", "truncate", "mask"] = "none"
    correction_level: Literal["token", "sequence", "sequence_mean"] = "token"
    correction_low: float = 0.0
    correction_high: float = math.inf
    filter_low: float = 0.0
    filter_high: float = math.inf
    mask_truncated: bool = False
    drop_uniform_groups: bool = False
    max_drift: float = math.inf
    overlong_buffer: float = 0.0
    overlong_factor: float = 1.0
    num_epochs: int = 1
    num_minibatches: int = 1
    value_coefficient: float = 0.1
    value_clip: float = 0.2

    def __post_init__(self) -> None:
        for name, known in _NAMED.items():
            value = getattr(self, name)
            if not isinstance(value, TrustRegion) and value not in known:
                raise ArgumentError(f"{name}: expected one of {', '.join(map(str, known))}, got {value!r}")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ArgumentError(f"{name}: expected {_range(low, high)}, got {getattr(self, name)}")
        for is_wrong, words in _meaningless(self):
            if is_wrong:
                raise ArgumentError(words)

    @property
    def region(self) -> TrustRegion:
        """The trust region itself."""
        if isinstance(self.trust_region, TrustRegion):
            return self.trust_region
        return TRUST_REGIONS[self.trust_region]

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the trust region, by name."""
        return {
            name: float(getattr(self, name))
            for name in ("clip_low", "clip_high", "clip_dual", "ratio_cap", "soft_positive", "soft_negative")
        }

    @property
    def num_updates(self) -> int:
        """Updates of the weights per batch."""
        return self.num_epochs * self.num_minibatches

    @property
    def credits_tokens(self) -> bool:
        """Whether the advantage differs between the tokens of a completion."""
        return self.baseline == "value" or self.kl_in_tokens

    @property
    def kl_in_tokens(self) -> bool:
        """Whether the KL is in the reward of tokens."""
        return self.kl_place == "reward" and self.kl_credit != "whole" and self.beta > 0

    @property
    def corrects_sampler(self) -> bool:
        """Whether the ratio of the policy that drew to the sampler counts: as a weight, or as a filter."""
        return self.sampler_correction != "none" or (self.filter_low, self.filter_high) != (0.0, math.inf)

    @property
    def has_kl_scores(self) -> bool:
        """Whether the loss has an estimate of the KL whose derivative is a score weight."""
        return self.kl_place == "loss" and self.kl_estimator != "exact" and self.beta > 0

    @property
    def has_exact_kl(self) -> bool:
        """Whether the loss has the exact KL, for which the reference's hidden states are needed."""
        return self.kl_place == "loss" and self.kl_estimator == "exact" and self.beta > 0

    @property
    def needs_exact_scores(self) -> bool:
        """Whether the loss has a term that needs the whole distribution at each prefix."""
        return self.has_exact_kl or self.entropy_coefficient > 0

    @property
    def is_sum_of_completions(self) -> bool:
        """Whether c is one number along each completion, made of the advantage alone, as in the definition."""
        return (
            self.ratio == "none"
            and self.aggregation == "sequence_sum"
            and self.sampler_beta == 0
            and self.entropy_coefficient == 0
            and not (self.beta > 0 and self.kl_place == "loss")
            and not self.credits_tokens
            and not self.whiten_tokens
            and not self.corrects_sampler
            and not (self.mask_truncated or self.drop_uniform_groups)
        )


_NAMED: dict[str, tuple[object, ...]] = {
    "kl_place": ("reward", "loss"),
    "kl_credit": ("whole", "to_go", "own"),
    "kl_estimator": tuple(KL_ESTIMATORS),
    "baseline": ("none", "batch_mean", *COMPARING, "greedy", "value"),
    "scale": tuple(SCALES),
    "scale_ddof": (0, 1),
    "whiten_ddof": (0, 1),
    "ratio": tuple(RATIO_LEVELS),
    "trust_region": tuple(TRUST_REGIONS),
    "aggregation": tuple(AGGREGATIONS),
    "sampler_correction": tuple(CORRECTIONS),
    "correction_level": tuple(level for level in RATIO_LEVELS if level != "none"),
}
_AT_LEAST_0 = (
    "scale_epsilon",
    "clip_low",
    "clip_high",
    "clip_dual",
    "ratio_cap",
    "soft_positive",
    "soft_negative",
    "correction_low",
    "correction_high",
    "filter_low",
    "filter_high",
    "max_drift",
    "overlong_factor",
    "value_clip",
)
_FINITE = math.nextafter(math.inf, 0.0)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_AT_LEAST_0, (0.0, math.inf)),
    **dict.fromkeys(("beta", "sampler_beta", "value_coefficient", "entropy_coefficient"), (0.0, _FINITE)),
    **dict.fromkeys(("discount", "trace_decay", "overlong_buffer"), (0.0, 1.0)),
    **dict.fromkeys(("num_epochs", "num_minibatches"), (1, _FINITE)),
}


def _range(low: float, high: float) -> str:
    return f"a number from {low:g} to {high:g}" if high <= 1 else f"a number of at least {low:g}"


def _meaningless(objective: Objective) -> list[tuple[bool, str]]:
    """Name each combination that has no meaning, and whether this is one."""
    one = objective
    has_ratio = one.ratio != "none"
    region = "a trust region of your own" if isinstance(one.trust_region, TrustRegion) else one.trust_region
    return [
        (
            one.kl_place == "reward" and one.beta > 0 and one.kl_estimator == "exact",
            "kl_estimator: exact differentiates the KL at each prefix, and a reward is a constant; choose kl_place "
            "loss, or k1",
        ),
        (
            one.kl_place == "reward" and one.beta > 0 and one.kl_estimator != "k1",
            f"kl_estimator: {one.kl_estimator} in the reward does not give the KL's gradient; "
            "expected k1 there, or kl_place loss",
        ),
        (
            not has_ratio and region != "unbounded",
            f"trust_region: {region} bounds a ratio, and ratio is none; choose unbounded, or the ratio token",
        ),
        (
            not has_ratio and one.max_drift < math.inf,
            "max_drift: measures the distance from the policy that sampled, and ratio is none; choose the ratio token",
        ),
        (
            not has_ratio and one.num_updates > 1 and one.sampler_beta == 0,
            f"ratio: with none, all but the first of the {one.num_updates} updates of a batch would be the gradient of "
            "an older policy; choose the ratio token, or num_epochs 1 and num_minibatches 1",
        ),
        (
            one.ratio in ("sequence", "sequence_mean") and one.credits_tokens,
            f"ratio: {one.ratio} is one number for a completion, and here advantages differ between its tokens "
            "(baseline value, or kl_credit to_go or own); choose the ratio token, or kl_credit whole",
        ),
        (
            region == "clipped_geometric" and one.ratio != "sequence_mean",
            f"trust_region: clipped_geometric is a geometric mean; expected the ratio sequence_mean, got {one.ratio}",
        ),
        (
            region == "gamma" and one.ratio != "sequence",
            f"trust_region: gamma weighs whole completions' ratios; expected the ratio sequence, got {one.ratio}",
        ),
        (
            region == "truncated" and not one.clip_low <= 1 <= one.clip_high,
            f"clip_high: truncated cuts the ratio to an interval around 1, got {one.clip_low:g} to {one.clip_high:g}",
        ),
        (
            one.baseline == "value" and one.scale != "none",
            f"scale: {one.scale} divides by a spread of rewards, and the baseline is a value function; choose none",
        ),
        (
            one.baseline == "group_normalised" and one.scale != "none",
            f"scale: group_normalised divides by the standard deviation already, got {one.scale} besides; choose none",
        ),
        (
            one.correction_low > one.correction_high or one.filter_low > one.filter_high,
            "correction_low, filter_low: expected at most correction_high and filter_high",
        ),
    ]
