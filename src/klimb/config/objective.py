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
    """The objective: a preset, and what of it is changed. What is left out is as the preset says."""

    objective: str = "reinforce"
    """What is ascended: the name of a preset, such as reinforce, rloo, grpo, dr_grpo, dapo, gspo or cispo
    (docs/objectives.md has all), or file.py:name, an Objective record of your own."""

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
    """What is subtracted from a reward: none, batch_mean, leave_one_out (RLOO, unbiased; `rloo` means the same),
    group_mean, group_normalised (GRPO, also divided by the group's standard deviation; `grpo` means the same),
    length_weighted (OPO), greedy (ReMax; one more completion a prompt), or value."""

    beta: float | None = None
    """KL coefficient: reward units that one nat away from the reference costs. At 0, without kl_target and max_kl, no
    reference is kept and no KL measured, which saves its memory and a pass over every batch. 0.05 for reinforce."""

    kl_place: Literal["reward", "loss"] | None = None
    """Where the KL enters: the reward, before the baseline, or the loss, differentiated."""

    kl_credit: Literal["whole", "to_go", "own"] | None = None
    """With the KL in the reward, what of it a token pays for: whole, the completion's; to_go, its own and every later
    token's; own, its own alone."""

    kl_estimator: Literal["k1", "k2", "k3", "unbiased"] | None = None
    """Estimator of the KL: k1 in the reward; in the loss k1, k2, k3, or unbiased, which is also right off-policy."""

    sampler_beta: float | None = None
    """Coefficient of the KL from the policy that drew the completions, in the loss."""

    scale: Literal["none", "group_std", "batch_std", "group_mean"] | None = None
    """What advantages are divided by: the prompt's or the batch's standard deviation, or the prompt's mean reward."""

    scale_epsilon: float | None = None
    """Added to that standard deviation, in reward units."""

    scale_ddof: Literal[0, 1] | None = None
    """Taken off the number of samples in that standard deviation."""

    whiten_tokens: bool | None = None
    """Whether the advantages of all tokens of a batch are brought to mean 0 and variance 1."""

    whiten_ddof: Literal[0, 1] | None = None
    """Taken off the number of tokens in that variance."""

    discount: float | None = None
    """Discount of what later tokens earn, from 0 to 1."""

    trace_decay: float | None = None
    """Decay of generalised advantages (GAE's lambda), from 0 to 1."""

    ratio: Literal["none", "token", "sequence", "sequence_mean"] | None = None
    """Probability ratio to the policy that drew the completions: of each token, of the whole completion (sequence), its
    geometric mean over the tokens (sequence_mean), or none."""

    trust_region: (
        Literal[
            "unbounded", "clipped", "truncated", "soft", "probability_bounded", "clipped_geometric", "gamma"
        ]
        | None
    ) = None
    """How the ratio bounds an update: clipped (PPO), truncated (CISPO), soft (SAPO), probability_bounded (DPPO),
    clipped_geometric (GMPO), gamma (VESPO), or unbounded."""

    clip_low: float | None = None
    """Lower bound of the trust region: clipped, 1 minus the smallest ratio; truncated, the smallest ratio;
    probability_bounded, how far a probability may fall; clipped_geometric, how far a log-ratio may."""

    clip_high: float | None = None
    """Upper bound of the trust region, as clip_low."""

    clip_dual: float | None = None
    """Ratio above which clipped drops tokens whose advantage is negative; inf: never."""

    ratio_cap: float | None = None
    """Largest ratio that probability_bounded weighs a token by; inf: any."""

    soft_positive: float | None = None
    """Temperature of soft where the advantage is positive."""

    soft_negative: float | None = None
    """Temperature of soft where it is not."""

    aggregation: (
        Literal["sequence_sum", "sequence_mean", "token_mean", "group_token_mean", "constant", "sum"] | None
    ) = None
    """How tokens are added up: summed in a completion and divided by the number of completions (sequence_sum), or by
    that times max_new_tokens (constant); averaged in each completion (sequence_mean), over the batch (token_mean), or
    over each prompt's completions (group_token_mean); or summed and divided by nothing."""

    sampler_correction: Literal["none", "truncate", "mask"] | None = None
    """What is done where the sampler is not the policy: tokens are weighted by how much likelier the policy draws them,
    cut to bounds or left out beyond them. klimb's own sampler is the policy, so this changes nothing with it."""

    correction_level: Literal["token", "sequence", "sequence_mean"] | None = None
    """Level of that weight."""

    correction_low: float | None = None
    """Its lower bound."""

    correction_high: float | None = None
    """Its upper bound; inf: none."""

    filter_low: float | None = None
    """Completions whose geometric mean of that weight is below are left out."""

    filter_high: float | None = None
    """And those whose mean is above; inf: none."""

    mask_truncated: bool | None = None
    """Whether completions that were cut off at max_new_tokens are left out of gradient and denominators; their rewards
    stay in the baseline."""

    drop_uniform_groups: bool | None = None
    """Whether prompts whose rewards are all equal are left out of the denominators."""

    max_drift: float | None = None
    """Nats a token by which the policy may have turned away from a completion of negative advantage before it is left
    out; inf: any."""

    overlong_buffer: float | None = None
    """Share of max_new_tokens over whose end a penalty on length grows; 0: none."""

    overlong_factor: float | None = None
    """That penalty at the limit, in reward units."""

    num_epochs: int | None = None
    """How often each batch of completions is gone through."""

    num_minibatches: int | None = None
    """Updates of the weights in each pass over a batch; the completions of a prompt stay together."""

    value_coefficient: float | None = None
    """What a value function's loss is multiplied by."""

    value_clip: float | None = None
    """How far a value may move from what it was at sampling."""

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
        if algorithm.baseline == "value":
            raise ConfigError(
                f"objective: {self.objective} subtracts what a value function predicts, and klimb has none yet; "
                "choose another baseline, such as --baseline group_mean, or another objective"
            )
        for name, compares in (
            ("baseline", algorithm.baseline in COMPARING),
            ("scale", algorithm.scale == "group_std"),
        ):
            if compares and completions_per_prompt < 2:
                raise ConfigError(
                    f"completions_per_prompt: the {name} {getattr(algorithm, name)} compares completions of one "
                    f"prompt and needs at least 2, got {completions_per_prompt}; use --baseline none or batch_mean"
                )
        if algorithm.num_minibatches > prompts_per_step:
            raise ConfigError(
                f"num_minibatches: the completions of a prompt stay together, so expected at most the "
                f"{prompts_per_step} prompts of a step, got {algorithm.num_minibatches}; raise --prompts-per-step, or "
                "set --num-minibatches"
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
