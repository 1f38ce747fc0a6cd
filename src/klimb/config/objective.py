"""The objective's options: a preset, and each of its fields that a run may change."""

import functools
import importlib.util
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from klimb.core.objective import COMPARING, Objective
from klimb.core.presets import PRESETS
from klimb.errors import ArgumentError, ConfigError


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """The objective: a preset and changes to it. Fields that are not given are as in the preset."""

    objective: str = "reinforce"
    """Objective: the name of a preset, such as reinforce, rloo, grpo, dr_grpo, dapo, gspo, cispo or ppo
    (docs/objectives.md lists all), or file.py:name for an Objective record of your own. Each option from baseline to
    value_clip changes one part of it; None: as the preset has it."""

    baseline: (
        Literal[
            "none",
            "batch_mean",
            "leave_one_out",
            "group_normalised",
            "group_mean",
            "length_weighted",
            "greedy",
            "value",
            "rloo",
            "grpo",
        ]
        | None
    ) = None
    """Advantage estimator: none, batch_mean, leave_one_out (RLOO, unbiased; `rloo` means the same), group_mean,
    group_normalised (GRPO, also divided by the group's standard deviation; `grpo` means the same), length_weighted
    (OPO), greedy (ReMax; one more completion per prompt), or value (a value function and generalised advantages,
    PPO)."""

    beta: float | None = None
    """KL coefficient, in reward units per nat: the price of moving one nat away from the reference. With beta 0 and
    neither kl_target nor max_kl, klimb keeps no reference and measures no KL, which saves memory and a pass over every
    batch. 0.05 for reinforce."""

    kl_place: Literal["reward", "loss"] | None = None
    """Where the KL enters: reward, before the baseline; or loss, where it is differentiated."""

    kl_credit: Literal["whole", "to_go", "own"] | None = None
    """How a KL in the reward is charged to tokens: whole (the completion's total), to_go (this and later tokens), own
    (this token)."""

    kl_estimator: Literal["k1", "k2", "k3", "unbiased", "exact"] | None = None
    """Estimator of the KL: k1 in the reward; in the loss k1, k2, k3, unbiased, which is correct off-policy too, or
    exact, the sum over the whole vocabulary at each prefix, which costs a second projection on the vocabulary."""

    entropy_coefficient: float | None = None
    """Coefficient of an entropy bonus in the loss, in reward units per nat: the exact entropy at each prefix."""

    sampler_beta: float | None = None
    """Coefficient of a loss term: KL to the policy that sampled the completions."""

    scale: Literal["none", "group_std", "others_std", "batch_std", "group_mean"] | None = None
    """Divisor of the advantages: the standard deviation of the prompt's rewards (group_std), of those of the prompt's
    other completions (others_std) or of the batch (batch_std), the prompt's mean reward (group_mean), or none."""

    scale_epsilon: float | None = None
    """Epsilon added to the standard deviation of `scale`, in reward units."""

    scale_ddof: Literal[0, 1] | None = None
    """ddof, 0 or 1, of the standard deviation of `scale`."""

    whiten_tokens: bool | None = None
    """Whiten: normalise the advantages of all tokens of a batch to mean 0 and variance 1."""

    whiten_ddof: Literal[0, 1] | None = None
    """ddof, 0 or 1, of the variance of `whiten_tokens`."""

    discount: float | None = None
    """Discount of later tokens' rewards (γ), from 0 to 1."""

    trace_decay: float | None = None
    """Decay of generalised advantages (λ of GAE), from 0 to 1; used with the baseline value."""

    ratio: Literal["none", "token", "sequence", "sequence_mean"] | None = None
    """Probability ratio to the policy that sampled the completions: per token (token), per completion (sequence), the
    geometric mean over the completion's tokens (sequence_mean), or none."""

    trust_region: (
        Literal[
            "unbounded", "clipped", "truncated", "soft", "probability_bounded", "clipped_geometric", "gamma"
        ]
        | None
    ) = None
    """How the ratio bounds an update: clipped (PPO), truncated (CISPO), soft (SAPO), probability_bounded (DPPO),
    clipped_geometric (GMPO), gamma (VESPO), or unbounded."""

    clip_low: float | None = None
    """Lower bound of the trust region. clipped: the ε of PPO, 1 minus the smallest ratio. truncated: the smallest
    ratio. probability_bounded: largest fall of a probability. clipped_geometric: largest fall of a log-ratio."""

    clip_high: float | None = None
    """Upper bound of the trust region, like clip_low: clipped: the largest ratio minus 1; and so on. Bounds act only
    with several updates per batch: see num_epochs and num_minibatches."""

    clip_dual: float | None = None
    """With trust_region clipped, tokens with a negative advantage and a ratio above this are dropped (dual clip). inf:
    never."""

    ratio_cap: float | None = None
    """With trust_region probability_bounded, the largest ratio that weights a token. inf: no limit."""

    soft_positive: float | None = None
    """Temperature of the `soft` trust region where the advantage is > 0."""

    soft_negative: float | None = None
    """Temperature of the `soft` trust region where the advantage is ≤ 0."""

    aggregation: (
        Literal["sequence_sum", "sequence_mean", "token_mean", "group_token_mean", "constant", "sum"] | None
    ) = None
    """How token terms are averaged. sequence_sum: summed per completion, then divided by the number of completions.
    constant: summed, then divided by the number of completions × max_new_tokens. sequence_mean: averaged per
    completion, then over completions. token_mean: averaged over all tokens of the batch. group_token_mean: averaged
    over the tokens of each prompt's completions, then over prompts. sum: summed, not divided."""

    sampler_correction: Literal["none", "truncate", "mask"] | None = None
    """Correction for a sampler that is not the policy: tokens are weighted by the ratio of the two probabilities, which
    is truncated to bounds (truncate) or masked outside them (mask). klimb's own sampler is the policy, so with it the
    correction changes nothing."""

    correction_level: Literal["token", "sequence", "sequence_mean"] | None = None
    """Whether the correction ratio is per token, per sequence, or per-sequence geometric mean (sequence_mean)."""

    correction_low: float | None = None
    """Lower bound of the correction ratio."""

    correction_high: float | None = None
    """Upper bound of the correction ratio. inf: none."""

    filter_low: float | None = None
    """Drop completions whose geometric mean of the correction ratio is below this."""

    filter_high: float | None = None
    """Drop completions whose geometric mean of the correction ratio is above this. inf: none."""

    mask_truncated: bool | None = None
    """Leave completions that were cut off at max_new_tokens out of gradient and denominators; their rewards stay in the
    baseline."""

    drop_uniform_groups: bool | None = None
    """Leave prompts whose rewards are all equal out of the denominators."""

    max_drift: float | None = None
    """Drop completions with a negative advantage once the policy has moved away from them by more than this many nats
    per token. inf: no limit."""

    overlong_buffer: float | None = None
    """Last share of max_new_tokens, from 0 to 1, over which the length penalty rises from 0 (DAPO). 0: no penalty."""

    overlong_factor: float | None = None
    """Length penalty at max_new_tokens, in reward units."""

    num_epochs: int | None = None
    """Passes over each batch of completions (PPO epochs)."""

    num_minibatches: int | None = None
    """Minibatches, each with one update of the weights, in each pass over a batch; the completions of a prompt stay
    together."""

    value_coefficient: float | None = None
    """Coefficient of the value function's loss."""

    value_clip: float | None = None
    """Largest change of a value from its value at sampling, in reward units. inf: no limit."""

    @property
    def preset(self) -> Objective:
        """The objective that is named, as it stands.

        Raises:
            ConfigError: There is none of this name.
        """
        return find_objective(self.objective)

    @property
    def overrides(self) -> dict[str, tuple[Any, Any]]:
        """The fields that differ from the preset's, each with the preset's value and the present one."""
        preset = self.preset
        chosen = {name: getattr(self, name) for name in _FIELDS}
        return {
            name: (getattr(preset, name), value)
            for name, value in chosen.items()
            if value is not None and value != getattr(preset, name)
        }

    @property
    def algorithm(self) -> Objective:
        """The objective, with what is changed.

        Raises:
            ConfigError: The combination has no meaning; the message names the field.
        """
        try:
            return replace(self.preset, **{name: now for name, (_, now) in self.overrides.items()})
        except ArgumentError as error:
            raise ConfigError(str(error)) from error

    def check_objective(self, prompts_per_step: int, completions_per_prompt: int) -> None:
        """Raise unless the objective has a meaning for batches of this shape."""
        algorithm = self.algorithm
        for name, compares, remedy in (
            ("baseline", algorithm.baseline in COMPARING, "--baseline none or batch_mean"),
            ("scale", algorithm.scale in ("group_std", "others_std"), "--scale none"),
        ):
            if compares and completions_per_prompt < 2:
                raise ConfigError(
                    f"completions_per_prompt: the {name} {getattr(algorithm, name)} compares completions of one "
                    f"prompt and needs at least 2, got {completions_per_prompt}; use {remedy}"
                )
        if algorithm.num_minibatches > prompts_per_step:
            raise ConfigError(
                f"num_minibatches: the completions of a prompt stay together, so expected at most the "
                f"{prompts_per_step} prompts of a step, got {algorithm.num_minibatches}; raise --prompts-per-step, or "
                "lower --num-minibatches"
            )


_FIELDS = tuple(field.name for field in fields(Objective) if field.name != "reproduces")


def find_objective(name: str) -> Objective:
    """Find the objective of a name: a preset's, or file.py:name.

    Raises:
        ConfigError: There is none; the message names those that there are.
    """
    if name in PRESETS:
        return PRESETS[name]
    where, _, record = name.rpartition(":")
    if not where.endswith(".py"):
        raise ConfigError(f"objective: expected one of {', '.join(PRESETS)}, or file.py:name, got {name!r}")
    return _find_in_file(Path(where), record)


@functools.cache
def _find_in_file(file: Path, name: str) -> Objective:
    if not file.is_file():
        raise ConfigError(f"objective {file}:{name}: no file {file}")
    spec = importlib.util.spec_from_file_location(f"klimb_objective_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"objective {file}:{name}: {file} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's program
        raise ConfigError(
            f"objective {file}:{name}: loading {file} raised {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not isinstance(found, Objective):
        known = [key for key, value in vars(module).items() if isinstance(value, Objective)]
        raise ConfigError(
            f"objective {file}:{name}: {file} has no Objective {name!r}; it has {', '.join(known) or 'none'}"
        )
    return found
