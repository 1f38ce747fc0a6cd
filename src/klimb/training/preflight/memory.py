"""How much memory a run takes at most, predicted from its options and the shape of its model.

Axes: B prompts, G completions per prompt, L tokens of the longest prompt, T tokens of a completion at most, n
completions that go through the model at once, D hidden size, V vocabulary.
"""

import contextlib
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from klimb.config.sections import EvaluationOptions, ModelOptions, SamplingOptions
from klimb.config.train import TrainConfig
from klimb.config.value import HEAD, SELF
from klimb.model.capability import product_path
from klimb.model.load import config_place
from klimb.model.progress_bars import without_progress_bars
from klimb.model.trainable import train_last_layers
from klimb.model.trunk import find_trunk
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import flash, vocabulary
from klimb.policy.engine.cpu_decoder import CPUDecoder
from klimb.policy.engine.recorded import MOST_WORK
from klimb.policy.policy import Policy
from klimb.policy.value_function import ValueFunction, ValueModel
from klimb.training.evaluate.evaluator import EVALUATED_AT_ONCE
from klimb.training.preflight.resources import USUAL_BASE

_ROOM = 1.25  # of what comes and goes: freed memory does not always fit what is asked for next
# Bytes of a score on the way back: it, its share, their gradients, what is in between.
_SCORE = 32
_LOGITS = 28  # bytes a logit in sampling: it, its log-prob, its probability, their sum in float64, what is in between


@dataclass(frozen=True)
class ModelSize:
    """What of a model's shape decides the memory.

    Attributes:
        num_weights: All of them, an adapter's included.
        num_moved: Those that are trained.
        num_moved_embeddings: Those of the token embeddings, if they are trained; else 0.
        num_packed: Those that sampling lays out anew; 0 where it does not.
        num_layers: Decoder layers.
        num_deep: Those from the first that is trained on, which keep what they compute for the gradient.
        num_heads: Query heads.
        hidden: D.
        query: Numbers of a token's queries.
        key: Numbers of a token's keys, and of its values.
        inner: Numbers between the two halves of a feed-forward layer.
        num_inner: How many such rows a feed-forward layer keeps for the gradient.
        vocabulary: V.
        has_adapter: Whether an adapter is trained.
        shares_prompts: Whether each prompt is read once.
        scores: Scores of attention that are there at once for the gradient: few, with a flash kernel; those of
            one layer; or those of every layer.
        is_widened: Whether what is in bfloat16 is multiplied in float32.
        is_packed: Whether products in float32 need the weights laid out anew.
        window: Most tokens that a token looks back on; a flash kernel does for those alone that are as short.
    """

    num_weights: int
    num_moved: int
    num_moved_embeddings: int
    num_packed: int
    num_layers: int
    num_deep: int
    num_heads: int
    hidden: int
    query: int
    key: int
    inner: int
    num_inner: int
    vocabulary: int
    has_adapter: bool = False
    shares_prompts: bool = True
    scores: Literal["few", "a layer's", "every layer's"] = "few"
    window: int | None = None
    is_widened: bool = False
    is_packed: bool = True
    is_on_gpu: bool = False


@dataclass(frozen=True)
class MemoryPrediction:
    """The bytes that a run is expected to take at most.

    Attributes:
        held: What is there from the first step to the last, by name.
        phases: What each phase adds, by the phase's name and its own; the largest counts.
    """

    held: dict[str, int]
    phases: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """The phase that takes the most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()), default="")

    @property
    def peak(self) -> int:
        """Bytes at most."""
        return sum(self.held.values()) + sum(self.phases.get(self.phase, {}).values())

    @property
    def terms(self) -> dict[str, int]:
        """What is there at the peak, by name; nothing that is 0."""
        both = self.held | self.phases.get(self.phase, {})
        return {name: size for name, size in both.items() if size}


def predict_memory(
    size: ModelSize,
    config: TrainConfig,
    *,
    longest_prompt: int,
    num_judged: int = 32,
    base: int = USUAL_BASE,
    value_size: ModelSize | None = None,
) -> MemoryPrediction:
    """Predict a run's peak memory; on a GPU, give 0 as the base.

    peak = what is held + the largest of what loading, sampling, the update and saving add

    Args:
        size: The model's shape.
        config: The options of the run.
        longest_prompt: L, in tokens.
        num_judged: Prompts that the model is judged by.
        base: Bytes of Python, its libraries and the reward models.
        value_size: The shape of a value function's model; that of the policy's where None.

    Returns:
        The terms, in bytes.
    """
    number = 4 if config.precision == "float32" else 2  # bytes of what the model computes in
    copy = number * size.num_weights if config.precision != "float32" else 0
    held = {
        "Python, libraries, rewards": base,
        "weights": 4 * size.num_weights,
        "working copy": copy,
        "reference": 0 if size.has_adapter or not config.measures_kl else number * size.num_moved,
        "optimiser's moments": 8 * size.num_moved if config.optimiser == "adamw" else 0,
    }
    num_samples = config.completions_per_step
    phases = {
        "update": _update(size, config, number, longest_prompt),
        "sampling": _sampling(size, config, config, number, longest_prompt, num_judged),
        "saving": {"adapter merged into a copy": 4 * size.num_weights if size.has_adapter else 0},
    }
    if size.num_layers > size.num_deep:
        states = (
            number
            * size.hidden
            * (config.prompts_per_step * longest_prompt + num_samples * config.max_new_tokens)
        )
        phases["update"]["frozen layers' states"] = states
        phases["sampling"]["frozen layers' states"] = 2 * states
    if supports := _supports(size, config):
        phases["update"]["tokens kept in sampling"] = supports
        phases["sampling"]["tokens kept in sampling"] = 2 * supports
    if config.algorithm.has_exact_kl:
        phases["update"]["reference's hidden states"] = (
            number * num_samples * config.max_new_tokens * size.hidden
        )
    if config.algorithm.baseline == "value":
        _add_value_function(held, phases, size, value_size, config, longest_prompt)
    _add_recorded(phases, size, config, longest_prompt)
    if copy:  # made in full width first, when moments and reference are not there yet
        later = held["reference"] + held["optimiser's moments"] + copy
        phases["loading"] = {"working copy in float32": max(4 * size.num_weights - later, 0)}
    return MemoryPrediction(held, phases)


def _add_recorded(
    phases: dict[str, dict[str, int]], size: ModelSize, config: TrainConfig, longest_prompt: int
) -> None:
    """Add what recorded passes keep on a GPU: gradients of their own, and the pass's memory between updates."""
    num_samples = config.completions_per_step
    at_once = min(config.micro_batch_size or num_samples, num_samples)
    num_prompts = _prompts_of(at_once, config.completions_per_prompt, config.prompts_per_step)
    num_tokens = num_prompts * longest_prompt + at_once * config.max_new_tokens
    if not size.is_on_gpu or size.scores != "few" or num_tokens * size.num_weights > MOST_WORK:
        return
    gradients = (4 if config.precision == "float32" else 2) * size.num_moved
    update = phases["update"]
    update["gradients of recorded passes"] = gradients
    phases["sampling"]["recorded passes"] = (
        gradients + update["activations"] + update["a layer on the way back"]
    )


def _supports(size: ModelSize, config: TrainConfig) -> int:
    """Count the bytes that say which tokens each one was drawn from: a bit for each token of the vocabulary."""
    is_truncated = SamplingDistribution.of(config, config.temperature).is_truncated
    num_tokens = config.max_new_tokens if is_truncated else config.min_new_tokens
    return config.completions_per_step * num_tokens * -(-size.vocabulary // 8)


def _add_value_function(
    held: dict[str, int],
    phases: dict[str, dict[str, int]],
    size: ModelSize,
    value_size: ModelSize | None,
    config: TrainConfig,
    longest_prompt: int,
) -> None:
    """Add what a value function holds, and its update: a head beside the states that it reads, or a model."""
    number = 4 if config.precision == "float32" else 2
    moments = 2 if config.optimiser == "adamw" else 0
    num_samples = config.completions_per_step
    if config.value_source == HEAD:
        held["value function"] = 4 * (1 + moments) * (size.hidden + 1)
        states = number * num_samples * config.max_new_tokens * size.hidden
        phases["update"]["hidden states for values"] = states
        return
    own = size if value_size is None else value_size
    num_copied = (
        own.num_moved if config.value_source == SELF else own.num_weights
    )  # what is frozen is the policy's
    working = number * own.num_weights if config.precision != "float32" else 0
    held["value function"] = 4 * num_copied + working + 4 * moments * own.num_moved
    phases["value update"] = _update(own, config, number, longest_prompt) | {
        "embedding's second gradient": 0,  # which is that of the projection on the vocabulary, as the next are
        "vocabulary chunk": 0,
        "products in float32": 0,
    }


def _update(size: ModelSize, options: SamplingOptions, number: int, longest_prompt: int) -> dict[str, int]:
    """What the pass with gradients adds: G, activations of a micro-batch at full length, logits."""
    num_samples = options.completions_per_step
    at_once = min(options.micro_batch_size or num_samples, num_samples)
    num_prompts = _prompts_of(at_once, options.completions_per_prompt, options.prompts_per_step)
    length = options.max_new_tokens
    if size.shares_prompts:
        num_tokens = num_prompts * longest_prompt + at_once * length
        most = vocabulary._ON_GPU if size.is_on_gpu else vocabulary._CHUNK_ELEMENTS
        num_logits = min(at_once * length * size.vocabulary, max(most, size.vocabulary))
    else:
        num_tokens = at_once * (longest_prompt + length)
        num_logits = 3 * num_tokens * size.vocabulary
    scores = size.num_heads * max(
        num_prompts * longest_prompt**2, at_once * length * max(longest_prompt, length)
    )
    all_scores = size.num_heads * max(
        num_prompts * longest_prompt**2, at_once * length * (longest_prompt + length)
    )
    are_few = size.scores == "few" and longest_prompt + length <= (size.window or math.inf)
    kept = 4 * size.hidden + 4 * size.query + 2 * size.key + size.num_inner * size.inner
    kept_scores = all_scores if size.scores == "every layer's" else 0
    is_split = at_once < num_samples
    wide = 4 if is_split and number == 2 else 0  # the sum over micro-batches
    return {
        "gradients": (number + wide) * size.num_moved,
        "embedding's second gradient": number * size.num_moved_embeddings,
        "activations": int(_ROOM * number * size.num_deep * (num_tokens * kept + 2 * kept_scores)),
        "a layer on the way back": int(
            _ROOM
            * (
                number * num_tokens * (5 * size.inner + 6 * size.hidden)
                + (20 * min(scores, flash.FEW_SCORES) if are_few else _SCORE * all_scores)
            )
        ),
        # On a GPU its probabilities, in float32, are held beside it.
        "vocabulary chunk": (number + (8 if size.is_on_gpu and size.shares_prompts else 0)) * num_logits,
        # Its weights, their gradient, and its logits.
        "products in float32": 4 * (2 * size.vocabulary * size.hidden + num_logits)
        if size.is_widened and number == 2
        else 0,
    }


def _sampling(
    size: ModelSize,
    options: SamplingOptions,
    evaluation: EvaluationOptions,
    number: int,
    longest_prompt: int,
    num_judged: int,
) -> dict[str, int]:
    """What drawing completions adds, a step's or an evaluation's, whichever are more at once."""
    group = evaluation.eval_completions_per_prompt
    judged = min(max(EVALUATED_AT_ONCE // group, 1), max(num_judged, 1))
    group_of_step = options.completions_per_prompt
    batches = [
        (options.prompts_per_step, options.prompts_per_step * group_of_step, group_of_step),
        (judged, judged * group, group),
    ]
    most = 0
    for num_prompts, num_completions, num_each in batches:
        at_once = min(options.micro_batch_size or num_completions, num_completions)
        prompts = _prompts_of(at_once, num_each, num_prompts) if size.shares_prompts else at_once
        num_tokens = 2 * prompts * longest_prompt + at_once * options.max_new_tokens
        stores = 2 * number * size.key * size.num_layers * num_tokens
        most = max(most, stores + _LOGITS * at_once * size.vocabulary)
    return {
        "weights packed for sampling": _packed(size, number),
        "keys, values, logits": int(_ROOM * most),
    }


def _packed(size: ModelSize, number: int) -> int:
    """What sampling lays out anew, or widens."""
    if number == 2 and size.is_widened:
        return 4 * size.num_packed
    return number * size.num_packed if size.is_packed else 0


def _prompts_of(num_completions: int, group: int, num_prompts: int) -> int:
    """Over how many prompts a run of completions may reach."""
    return min(num_prompts, num_completions // group + (2 if num_completions % group else 0))


def size_of(policy: Policy) -> ModelSize:
    """Find what of a policy's shape decides its memory."""
    model = policy.model
    size = _size(model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    is_lean = policy.way.shares_prompts and CPUDecoder.fits(inner.base_model)
    packed = sum(
        module.weight.numel()
        for name, module in inner.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name
    )
    return ModelSize(
        **vars(size)
        | {
            "num_packed": packed if is_lean else 0,
            "shares_prompts": policy.way.shares_prompts,
            "scores": _scores(policy),
            "is_widened": model.device.type == "cpu" and product_path() != "onednn",
            "is_packed": product_path() != "klimb",
            "is_on_gpu": model.device.type != "cpu",
        }
    )


def size_of_value_function(function: ValueFunction | None, policys: ModelSize) -> ModelSize | None:
    """Find the shape of a value function's model; None where it has none of its own."""
    if not isinstance(function, ValueModel):
        return None
    same = ("shares_prompts", "scores", "is_widened", "is_packed", "is_on_gpu")
    return replace(_size(function.model), **{name: getattr(policys, name) for name in same})


def _scores(policy: Policy) -> Literal["few", "a layer's", "every layer's"]:
    if not policy.way.shares_prompts:
        return "every layer's"
    if policy.way.packs:
        return "few"
    shape = policy.model.config.get_text_config()
    is_capped = getattr(shape, "attn_logit_softcapping", None) is not None
    return "few" if policy.model.device.type == "cpu" and not is_capped else "a layer's"


def outline(options: ModelOptions) -> ModelSize | None:
    """Find the shape of a model that is yet to be loaded, of which no weight is read.

    Returns:
        None where it cannot be found out; whatever is wrong with the model, loading it will say.
    """
    with contextlib.suppress(Exception), without_progress_bars():
        trust = options.trust_remote_code
        shape: Any = AutoConfig.from_pretrained(config_place(options.model), trust_remote_code=trust)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape, trust_remote_code=trust)
        model.tie_weights()
        if options.num_trainable_layers is not None:
            train_last_layers(model, options.num_trainable_layers)
        return _size(model, options.lora_rank)
    return None


def _size(model: Any, rank: int | None = None) -> ModelSize:
    """Count, taking a model for one with an adapter of this rank where it has none yet."""
    shape = model.config.get_text_config()
    num_heads = getattr(shape, "num_attention_heads", None) or 1  # a state-space model has none
    head = getattr(shape, "head_dim", None) or shape.hidden_size // num_heads
    parameters = list(model.parameters())
    num_weights = sum(p.numel() for p in parameters)
    num_moved = sum(p.numel() for p in parameters if p.requires_grad)
    embeddings = model.get_input_embeddings().weight
    has_adapter = rank is not None or hasattr(model, "peft_config")
    if rank is not None:
        num_moved = rank * _widths(model)
        num_weights += num_moved
    is_gated = bool(getattr(shape, "hidden_act", "") in ("silu", "swish"))
    return ModelSize(
        num_weights=num_weights,
        num_moved=num_moved,
        num_moved_embeddings=embeddings.numel() if embeddings.requires_grad and not has_adapter else 0,
        num_packed=0,
        num_layers=shape.num_hidden_layers,
        num_deep=shape.num_hidden_layers - (0 if has_adapter else find_trunk(model)),
        num_heads=num_heads,
        hidden=shape.hidden_size,
        query=num_heads * head,
        key=(getattr(shape, "num_key_value_heads", None) or num_heads) * head,
        inner=getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size,
        num_inner=2 if is_gated and not has_adapter else 4 if is_gated else 8,
        vocabulary=shape.vocab_size,
        has_adapter=has_adapter,
        window=getattr(shape, "sliding_window", None),
    )


def _widths(model: Any) -> int:
    """Inputs and outputs of all linear layers that an adapter is put on: all but the last."""
    last = model.get_output_embeddings()
    return sum(
        sum(module.weight.shape)
        for module in model.modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not last
    )


def show_bytes(count: float) -> str:
    """A number of bytes for a reader."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
