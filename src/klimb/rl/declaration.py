"""The declared objective: what a run optimises, in words and as formulas."""

from dataclasses import dataclass

from klimb.config.train import TrainConfig
from klimb.config.value import HEAD, SELF
from klimb.core.baselines import SCALES
from klimb.core.objective import Objective
from klimb.rl.axes import BASELINES, KL_CREDITS, describe_objective, formulas_of, gradient_formula
from klimb.rl.decoding import describe_sampling, formulas_of_sampling
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


def declare(config: TrainConfig) -> Declaration:
    """State the exact objective of a configuration: KL direction, estimator and placement, baseline, update."""
    algorithm = config.algorithm
    batch = config.prompts_per_step * config.completions_per_prompt
    beta = f"{config.algorithm.beta:g}" if config.kl_target is None else "β"
    reward = " + ".join(
        f"{weight:g} · {name}" if weight != 1 else name
        for name, weight in zip(
            config.reward, config.reward_weights or [1.0] * len(config.reward), strict=True
        )
    )
    words = [
        f"Raise the mean reward ({reward}) of completions drawn from the policy π at temperature "
        f"{config.temperature:g}{_price(config, beta)}.",
        *describe_sampling(config),
        *_target_words(config),
        *_kl_words(config),
        *_objective_words(config),
        f"The advantage: {_advantage_words(config)}. Everything but the gradient of log π is held constant.",
        *_value_words(config),
        *describe_objective(algorithm),
        f"Denominators are of the whole update, {batch // algorithm.num_minibatches} completions, less those whose "
        "reward failed.",
        _update_words(config),
    ]
    is_free = config.algorithm.beta == 0
    formulas = [
        "maximise  E_π[r(y)]" if is_free else f"maximise  E_π[r(y)] − {beta} · KL(π‖π_ref)",
        *formulas_of_sampling(config),
        *(["k_i = log π(y_i) − log π_ref(y_i)"] if config.measures_kl else []),
        f"r̃_i = r_i{_length_formula(config)}{_whole_kl(config, beta)}",
        *formulas_of(algorithm, beta),
        gradient_formula(algorithm, beta),
        *_update_formulas(config),
        *_target_formulas(config),
    ]
    return Declaration(words, formulas)


def _price(config: TrainConfig, beta: str) -> str:
    if config.algorithm.beta == 0:
        return "; nothing is paid for the KL from where it started (beta is 0)"
    return f", and pay {beta} for each nat of KL(π‖π_ref) from the frozen reference"


def _kl_words(config: TrainConfig) -> list[str]:
    estimated = "The KL is estimated for each whole completion by k1, the log-ratio, which is unbiased"
    algorithm = config.algorithm
    if algorithm.beta > 0 and algorithm.kl_place == "reward":
        return [
            f"{estimated}, and is in the reward; it is not differentiated on its own. "
            f"{_credit_words(algorithm)}."
        ]
    if algorithm.beta > 0:
        return [f"{estimated}, for metrics and bounds."]
    if config.measures_kl:
        return [f"{estimated}, only for the bound max_kl."]
    return ["The KL is not measured: no reference is kept. With max_kl it would be."]


def _credit_words(algorithm: Objective) -> str:
    if algorithm.baseline == "value" and algorithm.kl_credit == "to_go":
        return "A token's log-ratio is part of what it earns, which the advantage credits to it and to those before it"
    return KL_CREDITS[algorithm.kl_credit].words


def _objective_words(config: TrainConfig) -> list[str]:
    """Name the preset, what it reproduces, and each field that differs from it."""
    changes = [
        f"{name} {_shown(now)} instead of {_shown(then)}" for name, (then, now) in config.overrides.items()
    ]
    but = f", but with {', '.join(changes)}" if changes else ""
    return [f"The objective is {config.objective} ({config.preset.reproduces}){but}."]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _advantage_words(config: TrainConfig) -> str:
    algorithm = config.algorithm
    parts = [BASELINES[algorithm.baseline].words]
    if algorithm.scale != "none":
        parts.append(SCALES[algorithm.scale].words)
    if algorithm.whiten_tokens:
        parts.append(
            "then the advantages of all tokens are brought to mean 0 and variance 1: biased, and a token's credit "
            "depends on the others' lengths"
        )
    if algorithm.overlong_buffer > 0:
        buffer = algorithm.overlong_buffer * config.max_new_tokens
        parts.append(
            f"a completion that reaches into the last {buffer:g} of {config.max_new_tokens} tokens loses up to "
            f"{algorithm.overlong_factor:g} of its reward"
        )
    return "; ".join(parts)


def _value_words(config: TrainConfig) -> list[str]:
    algorithm = config.algorithm
    if algorithm.baseline != "value":
        return []
    source = {
        HEAD: "a linear layer on the policy's last hidden state, as it was when the completions were drawn; its "
        "gradient does not reach the policy",
        SELF: "a copy of the policy's model with a linear layer, of which the same parts move",
    }
    optimiser = {"adamw": "AdamW", "sgd": "plain gradient descent"}[config.optimiser]
    warmup = ""
    if config.value_warmup_steps:
        warmup = f" In the first {config.value_warmup_steps} steps only the value function moves."
    exact = (
        " With λ below 1 the advantages are biased unless the values are exact."
        if algorithm.trace_decay < 1
        else ""
    )
    return [
        f"The value function is {source.get(config.value_source, config.value_source + ' with a linear layer')}. "
        f"{optimiser} fits it to the returns R of all completions with a reward, in the same updates as the policy, "
        f"with learning rate {config.present_value_lr:g}{_head_words(config)}. It begins at 0, and its first update at "
        f"the first step's mean return, in units of their standard deviation.{warmup}{exact}",
        "A completion that is cut off at the limit has its reward and ends there, as any other: no value after its "
        "last token is added.",
    ]


def _head_words(config: TrainConfig) -> str:
    return "" if config.value_source == HEAD else f", that of the layer {config.present_head_lr:g}"


def _length_formula(config: TrainConfig) -> str:
    algorithm = config.algorithm
    if algorithm.overlong_buffer == 0:
        return ""
    buffer = algorithm.overlong_buffer * config.max_new_tokens
    start = config.max_new_tokens - buffer
    return f" − {algorithm.overlong_factor:g} · max(0, len_i − {start:g}) / {buffer:g}"


def _whole_kl(config: TrainConfig, beta: str) -> str:
    algorithm = config.algorithm
    is_whole = algorithm.beta > 0 and algorithm.kl_place == "reward" and algorithm.kl_credit == "whole"
    return f" − {beta} · k_i" if is_whole else ""


def _target_words(config: TrainConfig) -> list[str]:
    if config.kl_target is None:
        return []
    return [
        f"β is {config.algorithm.beta:g} in the first step and moved after each, so that the KL stays near "
        f"{config.kl_target:g} nats per completion, by at most a fifth of itself over {config.kl_horizon} completions."
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
        parts.append(f"the gradient scaled down to length {config.max_grad_norm:g} if it is longer")
    if config.weight_decay:
        parts.append(f"the weights decayed by {config.weight_decay:g} times that rate")
    return ", ".join(parts) + "."
