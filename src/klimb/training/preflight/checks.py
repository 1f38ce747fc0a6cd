"""Checks that need no more than a run's options and the facts about its model, and what a check returns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from klimb.config.sections import ModelOptions, SamplingOptions
from klimb.config.train import TrainConfig
from klimb.data.prompts import PromptRow
from klimb.model import chat
from klimb.model.clock import template_at_clock
from klimb.policy.policy import Policy
from klimb.policy.value_function import ValueFunction
from klimb.training.preflight.memory import MemoryPrediction, show_bytes

Outcome = Literal["passed", "warned", "failed"]

LOOKED_THROUGH = 64
"""Prompts at the beginning of the file by which checks go."""

_CONTENT = "klimb"
_ASSISTANT = re.compile(r"assistant|model|\bbot\b|\bai\b|chatbot", re.IGNORECASE)
_TIGHT = 1.2  # times a prediction; over many steps the heap may grow beyond it
_BYTES_A_TOKEN = 5  # of text
_BYTES_A_ROW = 400  # of a line's numbers and names


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        name: What was checked.
        outcome: `failed` stops a run before its first step.
        words: One line for a person.
        remedy: What to do, unless it passed.
    """

    name: str
    outcome: Outcome
    words: str
    remedy: str = ""


def check_batch(
    options: SamplingOptions, num_steps: int, num_prompts: int, longest_prompt: int
) -> CheckResult:
    """Spell out the arithmetic of a step and of the run."""
    num_samples = options.completions_per_step
    steps = num_prompts // options.prompts_per_step
    num_tokens = options.prompts_per_step * longest_prompt + num_samples * options.max_new_tokens
    num_micro = -(-num_samples // (options.micro_batch_size or num_samples))
    words = (
        f"{options.prompts_per_step} prompts × {options.completions_per_prompt} completions = {num_samples} "
        f"samples per step, at most {num_tokens:,} tokens, in {_count(num_micro, 'micro-batch', 'es')}; {num_prompts} "
        f"prompts = {_count(steps, 'step')} per epoch; {_count(num_steps, 'step')} = {num_steps / steps:.3g} epochs"
    )
    return CheckResult("batch", "passed", words)


def check_lengths(context_length: int | None, longest_prompt: int, max_new_tokens: int) -> CheckResult:
    """Say how much of the model's context the longest prompt and its completion take."""
    most = longest_prompt + max_new_tokens
    words = f"the longest prompt has {longest_prompt} tokens, {most} with its completion"
    if context_length is None:
        return CheckResult("lengths", "passed", f"{words}; the model sets no limit")
    if most <= context_length:
        return CheckResult("lengths", "passed", f"{words}, of {context_length}")
    remedy = "shorten the prompts, or lower --max-new-tokens"
    return CheckResult("lengths", "failed", f"{words}, more than the model's {context_length}", remedy)


def check_end_tokens(policy: Policy, rows: Sequence[PromptRow]) -> CheckResult:
    """Whether the token that ends a turn in the chat template is one that ends a completion."""
    prompts = [row.prompt for row in rows[:LOOKED_THROUGH]]
    tokenizer, end_ids = policy.tokenizer, policy.end_ids
    named = ", ".join(_names(tokenizer, end_ids))
    if not end_ids:
        words = "the model names no end token: every completion runs to --max-new-tokens"
        return CheckResult("ends", "warned", words, "name one as eos_token_id in its generation_config.json")
    plain = next((prompt for prompt in prompts if isinstance(prompt, str)), None)
    if plain is not None and policy.encode(plain)[-1:] in [[end] for end in end_ids]:
        words = "the tokenizer puts an end token after a prompt, so the model would have to continue after its end"
        return CheckResult("ends", "warned", words, "set add_eos_token to false in its tokenizer_config.json")
    if all(isinstance(prompt, str) for prompt in prompts):
        return CheckResult("ends", "passed", f"{named}; prompts are plain text, no chat template is used")
    return _check_template(tokenizer, end_ids)


def check_tools(policy: Policy, rows: Sequence[PromptRow]) -> list[CheckResult]:
    """Whether the chat template makes anything of the tools that prompts come with; nothing where none do."""
    first = rows[:LOOKED_THROUGH]
    with_tools = [row for row in first if row.columns.get("tools") and not isinstance(row.prompt, str)]
    if not with_tools:
        return []
    if chat.supports_tools(policy.tokenizer):
        return [CheckResult("tools", "passed", "the chat template is given the column tools")]
    words = (
        "prompts come with tools, and the chat template makes nothing of them: the model does not see them"
    )
    return [
        CheckResult("tools", "warned", words, "use a model tuned for tools, or describe them in the prompts")
    ]


def _check_template(tokenizer: Any, end_ids: list[int]) -> CheckResult:
    named, look = (
        ", ".join(_names(tokenizer, end_ids)),
        "look whether completions end: `eos_rate` in metrics.jsonl",
    )
    try:
        turn_end = find_turn_end(tokenizer)
    except Exception as error:  # a template is a program of the model's maker and raises its own errors
        words = f"the chat template takes no turn of the assistant's: {error}"
        return CheckResult("ends", "warned", words, look)
    if turn_end is None:
        words = f"the chat template ends a turn with no special token; completions end only at {named}"
        return CheckResult("ends", "warned", words, look)
    (name,) = _names(tokenizer, [turn_end])
    if turn_end in end_ids:
        return CheckResult("ends", "passed", f"{named}; the chat template ends a turn with {name}")
    words = f"the chat template ends a turn with {name}, which ends no completion; {named} would"
    remedy = f"add {turn_end} to eos_token_id in the model's generation_config.json"
    return CheckResult("ends", "failed", words, remedy)


def check_header(policy: Policy, rows: Sequence[PromptRow]) -> list[CheckResult]:
    """Whether a prompt ends with the header of the assistant's turn, which the template may leave to others to write.

    Nothing where it does, or where the template has none.
    """
    if all(isinstance(row.prompt, str) for row in rows[:LOOKED_THROUGH]):
        return []
    header = find_missing_header(policy.tokenizer)
    if header is None:
        return []
    words = (
        f"the chat template begins the assistant's turn with {header!r} and does not write it at the end of a prompt "
        "(it ignores add_generation_prompt): the policy is to write it itself"
    )
    remedy = "end the template with {% if add_generation_prompt %}…{% endif %} and that header"
    return [CheckResult("header", "warned", words, remedy)]


def find_missing_header(tokenizer: Any) -> str | None:
    """Find what a chat template writes between a prompt and the assistant's words, where that names the assistant."""
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": _CONTENT}
    how = {"tokenize": False, "chat_template": template_at_clock(tokenizer)}
    try:
        prompt: str = tokenizer.apply_chat_template([question], add_generation_prompt=True, **how)
        whole: str = tokenizer.apply_chat_template([question, answer], **how)
    except (
        Exception
    ):  # a template is a program of the model's maker; a prompt that it refuses is reported with its line
        return None
    between = whole[len(prompt) :].partition(_CONTENT)[0] if whole.startswith(prompt) else ""
    return between if _ASSISTANT.search(between) else None


def find_turn_end(tokenizer: Any) -> int | None:
    """Find the special token that a chat template puts after what the assistant said; None where it puts none."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _CONTENT}]
    text: str = tokenizer.apply_chat_template(
        turns, tokenize=False, chat_template=template_at_clock(tokenizer)
    )
    after = text[text.rindex(_CONTENT) + len(_CONTENT) :]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    ids = tokenizer(after, add_special_tokens=False).input_ids if after else []
    return next((token for token in ids if token in special), None)


def check_memory(memory: MemoryPrediction, remedy: str, available: int | None, held: int) -> CheckResult:
    """Whether the run fits into memory.

    Args:
        memory: What it takes.
        remedy: What would take less.
        available: Bytes that are there for the asking; None where nobody knows.
        held: Bytes that the process has already.
    """
    words = f"{show_bytes(memory.peak)} at most, {'in the ' + memory.phase if memory.phase else 'to begin'}"
    if available is None:
        return CheckResult("memory", "passed", f"{words}; how much there is, is not known")
    room = held + available
    words += f"; {show_bytes(room)} for this process"
    if memory.peak > room:
        return CheckResult("memory", "failed", words, remedy)
    if _TIGHT * memory.peak > room:
        return CheckResult("memory", "warned", words, f"that is little to spare: {remedy}")
    return CheckResult("memory", "passed", words)


def memory_remedy(model: ModelOptions, sampling: SamplingOptions) -> str:
    """What takes less memory, of what was not chosen yet."""
    num_samples = sampling.completions_per_step
    smaller = min(sampling.micro_batch_size or num_samples, num_samples) // 2
    ways = [
        f"--micro-batch-size {smaller}" if smaller else "",
        "--precision bfloat16" if model.precision == "float32" else "",
        "" if model.lora_rank or model.num_trainable_layers else "--lora-rank 16 or --num-trainable-layers 6",
        "shorter prompts or --max-new-tokens",
        "a smaller model",
    ]
    return "take less: " + ", ".join(filter(None, ways))


def check_disk(parts: dict[str, int], free: int | None) -> CheckResult:
    """Whether what is to be written, by name, fits on the disk; `free` is None where nobody knows."""
    needed = sum(parts.values())
    shares = ", ".join(f"{name} {show_bytes(size)}" for name, size in parts.items())
    words = f"about {show_bytes(needed)} to be written ({shares})"
    if free is None:
        return CheckResult("disk", "passed", f"{words}; how much is free is not known")
    words += f", {show_bytes(free)} free"
    if needed > free:
        remedy = "lower --keep-checkpoints, or choose an --out on another disk"
        return CheckResult("disk", "failed", words, remedy)
    if _TIGHT * needed > free:
        return CheckResult("disk", "warned", words, "that is little to spare: lower --keep-checkpoints")
    return CheckResult("disk", "passed", words)


def predict_disk(
    policy: Policy,
    config: TrainConfig,
    *,
    longest_prompt: int,
    num_judged: int,
    value_function: ValueFunction | None = None,
) -> dict[str, int]:
    """Predict the bytes that a run writes at most: checkpoints, the model, and its lines."""
    num_weights = sum(p.numel() for p in policy.model.parameters())
    moved = [*policy.trainable().values(), *(value_function.trainable().values() if value_function else ())]
    num_moved = sum(p.numel() for p in moved)
    a_checkpoint = 4 * num_moved * (3 if config.optimiser == "adamw" else 1)
    planned = -(-config.num_steps // config.checkpoint_every)
    most = planned if config.keep_checkpoints is None else config.keep_checkpoints + 1  # one is being written
    num_checkpoints = min(planned, most) + (config.keep_best is not None)
    a_row = _BYTES_A_TOKEN * (longest_prompt + config.max_new_tokens) + _BYTES_A_ROW
    num_rows = config.num_steps * (config.completions_per_step + 2)
    num_evaluations = 2 + config.num_steps // (config.eval_every or config.num_steps)
    num_rows += num_evaluations * num_judged * config.eval_completions_per_prompt
    return {
        _count(num_checkpoints, "checkpoint"): num_checkpoints * a_checkpoint,
        "model": 4 * num_weights,
        "lines": num_rows * a_row,
    }


def _names(tokenizer: Any, ids: list[int]) -> list[str]:
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    return [str(token) if convert is None else f"{convert(token)} ({token})" for token in ids]


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{plural}"
