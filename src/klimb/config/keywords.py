"""Options as keyword arguments of the Python API; written by tools/keywords.py, not by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict


class ResumeKeywords(TypedDict, total=False):
    """Options of `klimb.Run.resume`; docs/options.md says what each is."""

    num_trainable_layers: int | None
    lora_rank: int | None
    lora_alpha: float | None
    precision: Literal["float32", "bfloat16"]
    device: str | None
    trust_remote_code: bool
    prompt_column: str
    reward_weights: Sequence[float] | None
    uncertainty_penalty: float
    accept_unproven_reward: bool
    max_failed: float
    reward_timeout: float | None
    people_host: str
    people_port: int
    people_rater: str | None
    people_per_pair: int
    people_pairs: int | None
    refit_every: int
    top_p: float
    top_k: int | None
    min_p: float
    min_new_tokens: int
    stop: str | Sequence[str]
    system_prompt: str | None
    prompts_per_step: int
    completions_per_prompt: int
    max_new_tokens: int
    temperature: float
    skip_special_tokens: Literal["chat", "all"]
    micro_batch_size: int | None
    seed: int
    objective: str
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
    )
    beta: float | None
    kl_place: Literal["reward", "loss"] | None
    kl_credit: Literal["whole", "to_go", "own"] | None
    kl_estimator: Literal["k1", "k2", "k3", "unbiased", "exact"] | None
    entropy_coefficient: float | None
    sampler_beta: float | None
    scale: Literal["none", "group_std", "others_std", "batch_std", "group_mean"] | None
    scale_epsilon: float | None
    scale_ddof: Literal[0, 1] | None
    whiten_tokens: bool | None
    whiten_ddof: Literal[0, 1] | None
    discount: float | None
    trace_decay: float | None
    ratio: Literal["none", "token", "sequence", "sequence_mean"] | None
    trust_region: (
        Literal[
            "unbounded", "clipped", "truncated", "soft", "probability_bounded", "clipped_geometric", "gamma"
        ]
        | None
    )
    clip_low: float | None
    clip_high: float | None
    clip_dual: float | None
    ratio_cap: float | None
    soft_positive: float | None
    soft_negative: float | None
    aggregation: (
        Literal["sequence_sum", "sequence_mean", "token_mean", "group_token_mean", "constant", "sum"] | None
    )
    sampler_correction: Literal["none", "truncate", "mask"] | None
    correction_level: Literal["token", "sequence", "sequence_mean"] | None
    correction_low: float | None
    correction_high: float | None
    filter_low: float | None
    filter_high: float | None
    mask_truncated: bool | None
    drop_uniform_groups: bool | None
    max_drift: float | None
    overlong_buffer: float | None
    overlong_factor: float | None
    num_epochs: int | None
    num_minibatches: int | None
    value_coefficient: float | None
    value_clip: float | None
    kl_target: float | None
    kl_horizon: int
    value_model: str | None
    value_lr: float | None
    value_warmup_steps: int | None
    num_steps: int
    optimiser: Literal["adamw", "sgd"]
    lr: float
    weight_decay: float
    adam_betas: Sequence[float]
    adam_epsilon: float
    max_grad_norm: float | None
    warmup_steps: int
    lr_schedule: Literal["constant", "linear", "cosine"]
    eval_prompts: Any
    eval_completions_per_prompt: int
    eval_every: int | None
    keep_best: str | None
    patience: int | None
    checkpoint_every: int
    keep_checkpoints: int | None
    on_alarm: Literal["stop", "slow"]
    max_kl: float | None
    min_entropy: float | None
    max_entropy: float | None
    max_duplicate_share: float | None
    max_grad_spike: float | None
    max_logprob_mismatch: float | None
    preflight: bool
    num_slices: int | None
    rank_timeout: float
    track: str | Sequence[str]
    track_project: str
    push_to_hub: str | None


class TrainKeywords(ResumeKeywords, total=False):
    """Options of `klimb.train` and `klimb.check`: the same, and judges."""

    judges: Any


class RewardKeywords(TypedDict, total=False):
    """Options of `klimb.RewardModel.fit`; docs/options.md says what each is."""

    without_raters: str | Sequence[str]
    method: Literal["head", "lora", "full"]
    num_layers: int | None
    criterion: str | None
    question: str | None
    standardise: bool
    max_length: int | None
    truncate: Literal["left", "right"] | None
    min_gap: float
    pairs_per_text: int
    held_out: float | None
    num_members: int
    num_epochs: int
    batch_size: int
    lr: float | None
    warmup_share: float
    max_grad_norm: float | None
    lora_rank: int
    micro_batch_size: int | None
    seed: int


class CompareKeywords(TypedDict, total=False):
    """Options of `klimb.compare`; docs/options.md says what each is."""

    top_p: float
    top_k: int | None
    min_p: float
    min_new_tokens: int
    stop: str | Sequence[str]
    system_prompt: str | None
    prompt_column: str
    max_new_tokens: int
    skip_special_tokens: Literal["chat", "all"]
    temperature: float
    seed: int
    device: str | None
    trust_remote_code: bool
    host: str
    port: int
    rater: str | None
    per_pair: int
    guidelines: str | Path | None
    rater_token: str | None
    browser: bool
    model_a: str
    model_b: str
    completions_per_prompt: int
    tie_margin: float
    store: str | None


class OptimizerKeywords(TypedDict, total=False):
    """Options of `klimb.Optimizer`; docs/options.md says what each is."""

    num_steps: int
    optimiser: Literal["adamw", "sgd"]
    weight_decay: float
    adam_betas: Sequence[float]
    adam_epsilon: float
    max_grad_norm: float | None
    warmup_steps: int
    lr_schedule: Literal["constant", "linear", "cosine"]
