"""Names of options: those of earlier versions, those of other libraries, and the nearest to a typing error."""

import difflib
from collections.abc import Collection

from klimb.io.progress import warn

FORMER = {
    "caution": "uncertainty_penalty",
    "on_guard": "on_alarm",
    "max_same": "max_duplicate_share",
    "max_spike": "max_grad_spike",
    "max_sampler_gap": "max_logprob_mismatch",
}
"""Options that had another name in klimb 0.1, and their present names; this version understands both."""

FORMER_VALUES = {"method": {"whole": "full"}}
"""Values of options that were called otherwise in klimb 0.1, and their present names."""

ELSEWHERE = {
    "learning_rate": "lr",
    "num_generations": "completions_per_prompt",
    "group_size": "completions_per_prompt",
    "max_completion_length": "max_new_tokens",
    "max_response_length": "max_new_tokens",
    "response_length": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "min_length": "min_new_tokens",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "per_device_train_batch_size": "prompts_per_step",
    "train_batch_size": "prompts_per_step",
    "rollout_batch_size": "prompts_per_step",
    "gradient_accumulation_steps": "micro_batch_size",
    "max_steps": "num_steps",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "eval_steps": "eval_every",
    "output_dir": "out",
    "model_name_or_path": "model",
    "pretrain": "model",
    "dataset_name": "prompts",
    "prompt_data": "prompts",
    "input_key": "prompt_column",
    "reward_funcs": "reward",
    "reward_model_path": "reward",
    "kl_coef": "beta",
    "init_kl_coef": "beta",
    "target_kl": "kl_target",
    "advantage_estimator": "objective",
    "adv_estimator": "objective",
    "loss_type": "objective",
    "loss_mode": "objective",
    "policy_loss_type": "objective",
    "loss_agg_mode": "aggregation",
    "scale_rewards": "scale",
    "normalize_advantages": "whiten_tokens",
    "whiten_advantages": "whiten_tokens",
    "importance_sampling_level": "ratio",
    "epsilon": "clip_low",
    "epsilon_high": "clip_high",
    "eps_clip": "clip_low",
    "cliprange": "clip_low",
    "clip_ratio": "clip_low",
    "clip_ratio_low": "clip_low",
    "clip_ratio_high": "clip_high",
    "ratio_clip_min": "clip_low",
    "ratio_clip_max": "clip_high",
    "delta": "clip_dual",
    "clip_ratio_c": "clip_dual",
    "ratio_clip_c": "clip_dual",
    "dual_clip": "clip_dual",
    "sapo_temperature_pos": "soft_positive",
    "sapo_temperature_neg": "soft_negative",
    "kl_loss_coef": "beta",
    "reference_policy_kl_penalty": "beta",
    "use_kl_loss": "kl_place",
    "use_kl_in_reward": "kl_place",
    "kl_loss_type": "kl_estimator",
    "kl_penalty": "kl_estimator",
    "use_bias_correction_kl": "kl_estimator",
    "vllm_importance_sampling_mode": "sampler_correction",
    "vllm_importance_sampling_clip_min": "correction_low",
    "vllm_importance_sampling_clip_max": "correction_high",
    "rollout_is_threshold": "correction_high",
    "mask_truncated_completions": "mask_truncated",
    "dynamic_filtering": "drop_uniform_groups",
    "filter_groups": "drop_uniform_groups",
    "off_policy_mask_threshold": "max_drift",
    "overlong_buffer_len": "overlong_buffer",
    "overlong_penalty_factor": "overlong_factor",
    "num_iterations": "num_epochs",
    "num_ppo_epochs": "num_epochs",
    "ppo_epochs": "num_epochs",
    "steps_per_generation": "num_minibatches",
    "num_mini_batches": "num_minibatches",
    "gamma": "discount",
    "lam": "trace_decay",
    "lambd": "trace_decay",
    "critic_pretrain": "value_model",
    "critic_learning_rate": "value_lr",
    "critic_lr": "value_lr",
    "cliprange_value": "value_clip",
    "vf_coef": "value_coefficient",
    "freezing_actor_steps": "value_warmup_steps",
    "critic_warmup": "value_warmup_steps",
    "entropy_coeff": "entropy_coefficient",
    "entropy_loss_coef": "entropy_coefficient",
    "entropy_coef": "entropy_coefficient",
    "optim": "optimiser",
    "optimizer": "optimiser",
    "lr_scheduler_type": "lr_schedule",
    "lora_r": "lora_rank",
    "bf16": "precision",
    "dtype": "precision",
    "report_to": "track",
    "hub_model_id": "push_to_hub",
}
"""Options of TRL, OpenRLHF, verl and NeMo-RL, and the nearest of klimb's; some have other units or values."""

BASELINES = {"rloo": "leave_one_out", "grpo": "group_normalised"}
"""Names that the literature has for baselines."""


def present_value(option: str, value: str) -> str:
    """Return an option's value; a former name of it is replaced, with a warning."""
    present = FORMER_VALUES.get(option, {}).get(value, value)
    if present != value:
        warn(
            f"{option} {value} is now called {option} {present}; the former name will go with the next version"
        )
    return present


def meant_by(name: str, known: Collection[str]) -> str | None:
    """Find the option closest to an unknown name; None if none is close.

    Args:
        name: What was written, with underscores.
        known: The options that there are.
    """
    found = FORMER.get(name) or ELSEWHERE.get(name)
    if found is not None and found in known:
        return found
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return near[0] if near else None


def unknown(name: str, known: Collection[str]) -> str:
    """Write an error message for an unknown option, with the closest known one."""
    meant = meant_by(name, known)
    if meant is not None:
        return f"unknown option {name!r}; did you mean {meant!r}?"
    return f"unknown option {name!r}; the options are {', '.join(sorted(known))}"
