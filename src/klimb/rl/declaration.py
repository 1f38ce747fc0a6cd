"""The declared objective: what a run optimises, in words and as formulas."""

from dataclasses import dataclass

from klimb.config.train import TrainConfig
from klimb.core.advantages import GROUP_EPSILON
from klimb.rl.schedule import LARGEST_ERROR


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
    beta = f"{config.beta:g}" if config.kl_target is None else "β"
    reward = " + ".join(
        f"{weight:g} · {name}" if weight != 1 else name
        for name, weight in zip(
            config.reward, config.reward_weights or [1.0] * len(config.reward), strict=True
        )
    )
    words = [
        f"Raise the mean reward ({reward}) of completions drawn from the policy π at temperature "
        f"{config.temperature:g}{_price(config, beta)}.",
        *_target_words(config),
        *_kl_words(config),
        f"The gradient is REINFORCE's, on-policy, with {baseline_words}; a completion's tokens are summed, and "
        f"the sum is divided by the batch's {batch} completions, less those whose reward failed; no ratio is clipped.",
        _update_words(config),
    ]
    is_free = config.beta == 0
    formulas = [
        "maximise  E_π[r(y)]" if is_free else f"maximise  E_π[r(y)] − {beta} · KL(π‖π_ref)",
        *(["k_i = log π(y_i) − log π_ref(y_i)"] if config.measures_kl else []),
        "r̃_i = r_i" if is_free else f"r̃_i = r_i − {beta} · k_i",
        baseline_formula,
        f"g = 1/{batch} · Σ_i a_i ∇ log π(y_i)",
        *_update_formulas(config),
        *_target_formulas(config),
    ]
    return Declaration(words, formulas)


def _price(config: TrainConfig, beta: str) -> str:
    if config.beta == 0:
        return "; nothing is paid for the KL from where it started (beta is 0)"
    return f", and pay {beta} for each nat of KL(π‖π_ref) from the frozen reference"


def _kl_words(config: TrainConfig) -> list[str]:
    estimated = "The KL is estimated for each whole completion by k1, the log-ratio, which is unbiased"
    if config.beta > 0:
        return [f"{estimated}, and is taken off the reward; it is not differentiated on its own."]
    if config.measures_kl:
        return [f"{estimated}, for the bound max_kl alone."]
    return ["The KL is not measured: no reference is kept. With max_kl it would be."]


def _target_words(config: TrainConfig) -> list[str]:
    if config.kl_target is None:
        return []
    return [
        f"β is {config.beta:g} in the first step and moved after each, so that the KL stays near "
        f"{config.kl_target:g} nats a completion, by at most a fifth of itself over {config.kl_horizon} completions."
    ]


def _target_formulas(config: TrainConfig) -> list[str]:
    if config.kl_target is None:
        return []
    batch = config.prompts_per_step * config.completions_per_prompt
    most = f"{LARGEST_ERROR:g}"
    error = f"min({most}, max(−{most}, (mean of k) / {config.kl_target:g} − 1))"
    return [f"β ← β · (1 + {error} · {batch} / {config.kl_horizon})"]


def _update_formulas(config: TrainConfig) -> list[str]:
    is_moving = config.warmup_steps > 0 or config.lr_schedule != "constant"
    lr = "lr" if is_moving else f"{config.lr:g}"
    decay = f" − {lr} · {config.weight_decay:g} · w" if config.weight_decay else ""
    formulas = [] if config.max_grad_norm is None else [f"g ← g · min(1, {config.max_grad_norm:g} / ‖g‖)"]
    if is_moving:
        formulas.append(f"lr = {config.lr:g}{_rise(config)}{_fall(config)}")
    formulas.append(f"w ← w + {lr} · {'g' if config.optimiser == 'sgd' else 'AdamW(g)'}{decay}")
    return formulas


def _rise(config: TrainConfig) -> str:
    return f" · min(1, step / {config.warmup_steps})" if config.warmup_steps else ""


def _fall(config: TrainConfig) -> str:
    """What the rate is multiplied by as it falls; steps are counted from 1."""
    num_falling = config.num_steps - config.warmup_steps
    if config.lr_schedule == "linear":
        return f" · min(1, ({config.num_steps + 1} − step) / {num_falling})"
    if config.lr_schedule == "cosine":
        return f" · (1 + cos(π · max(0, step − {config.warmup_steps + 1}) / {num_falling})) / 2"
    return ""


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
    if config.lr_schedule != "constant":
        way = {"linear": "linearly", "cosine": "along half a cosine"}[config.lr_schedule]
        parts.append(f"which falls {way} to 0 at the end of {config.num_steps} steps")
    if config.max_grad_norm is not None:
        parts.append(f"the gradient scaled down to length {config.max_grad_norm:g} where it is longer")
    if config.weight_decay:
        parts.append(f"the weights decayed by {config.weight_decay:g} times that rate")
    return ", ".join(parts) + "."
