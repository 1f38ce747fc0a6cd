"""The declared objective: what a run optimises, in words and as formulas."""

from dataclasses import dataclass

from klimb.core.advantages import GROUP_EPSILON
from klimb.train.config import TrainConfig


@dataclass(frozen=True)
class Declaration:
    """What a run optimises.

    Attributes:
        words: Sentences.
        formulas: One line each.
    """

    words: list[str]
    formulas: list[str]


_BASELINES = {
    "none": ("no baseline, so the gradient is unbiased", "a_i = r̃_i"),
    "batch_mean": (
        "the batch's mean as the baseline, which scales the expected gradient by 1 − 1/N and keeps its direction",
        "a_i = r̃_i − mean of r̃ over the batch",
    ),
    "leave_one_out": (
        "the mean of the prompt's other completions as the baseline, so the gradient is unbiased",
        "a_i = r̃_i − mean of r̃ over the prompt's other completions",
    ),
    "group_normalised": (
        "each prompt's rewards centred and divided by their standard deviation, so the gradient is biased",
        f"a_i = (r̃_i − mean of r̃ over the prompt) / (std of r̃ over the prompt + {GROUP_EPSILON:g})",
    ),
}


def declare(config: TrainConfig) -> Declaration:
    """State the exact objective of a configuration: KL direction, estimator and placement, baseline, update."""
    baseline_words, baseline_formula = _BASELINES[config.baseline]
    batch = config.prompts_per_step * config.completions_per_prompt
    reward = " + ".join(
        f"{weight:g} · {name}" if weight != 1 else name
        for name, weight in zip(
            config.reward, config.reward_weights or [1.0] * len(config.reward), strict=True
        )
    )
    words = [
        f"Raise the mean reward ({reward}) of completions drawn from the policy π at temperature "
        f"{config.temperature:g}, and pay {config.beta:g} for each nat of KL(π‖π_ref) from the frozen reference.",
        "The KL is estimated for each whole completion by k1, the log-ratio, which is unbiased, and is taken off "
        "the reward; it is not differentiated on its own.",
        f"The gradient is REINFORCE's, on-policy, with {baseline_words}; a completion's tokens are summed, and "
        f"the sum is divided by the batch's {batch} completions; no ratio is clipped.",
        _update_words(config),
    ]
    formulas = [
        f"maximise  E_π[r(y)] − {config.beta:g} · KL(π‖π_ref)",
        "k_i = log π(y_i) − log π_ref(y_i)",
        f"r̃_i = r_i − {config.beta:g} · k_i",
        baseline_formula,
        f"g = 1/{batch} · Σ_i a_i ∇ log π(y_i)",
        *_update_formulas(config),
    ]
    return Declaration(words, formulas)


def _update_formulas(config: TrainConfig) -> list[str]:
    lr = "lr" if config.warmup_steps else f"{config.lr:g}"
    decay = f" − {lr} · {config.weight_decay:g} · w" if config.weight_decay else ""
    formulas = [] if config.max_grad_norm is None else [f"g ← g · min(1, {config.max_grad_norm:g} / ‖g‖)"]
    if config.warmup_steps:
        formulas.append(f"lr = {config.lr:g} · min(1, step / {config.warmup_steps})")
    formulas.append(f"w ← w + {lr} · {'g' if config.optimiser == 'sgd' else 'AdamW(g)'}{decay}")
    return formulas


def _update_words(config: TrainConfig) -> str:
    moved = "all weights"
    if config.lora_rank is not None:
        moved = f"a low-rank adapter (rank {config.lora_rank})"
    elif config.num_trainable_layers is not None:
        moved = f"the last {config.num_trainable_layers} layers"
    optimiser = {"adamw": "AdamW", "sgd": "plain gradient ascent"}[config.optimiser]
    parts = [f"{optimiser} moves {moved} with learning rate {config.lr:g}"]
    if config.warmup_steps:
        parts.append(f"reached linearly over {config.warmup_steps} steps")
    if config.max_grad_norm is not None:
        parts.append(f"the gradient scaled down to length {config.max_grad_norm:g} where it is longer")
    if config.weight_decay:
        parts.append(f"the weights decayed by {config.weight_decay:g} times that rate")
    return ", ".join(parts) + "."
