"""Checks that a loaded model matches its files: every weight found, every weight used, all finite."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from klimb.errors import ModelNotFoundError
from klimb.model.headers import StoredWeight

_SHOWN = 4  # names in a message
_WRITERS_HEADS = ("lm_head", "embed_out", "output_projection")
_SCORERS_HEADS = ("score.", "classifier.")
_NEVER_TRAINED = re.compile(
    r"(rotary_emb|rotary_pos_emb)\.|inv_freq|(cos|sin)_cached|position_ids$|masked_bias$|num_batches_tracked$"
)
_ADAPTED = re.compile(r"lora_|\.base_layer\.|modules_to_save")


def check_complete(
    model: Any, info: Mapping[str, Any], stored: Mapping[str, StoredWeight], *, has_new_head: bool = False
) -> list[str]:
    """Compare a model with the files that it was loaded from.

    Args:
        model: The transformers model, an adapter merged.
        info: What transformers found when it loaded it (`output_loading_info`).
        stored: The weights in its files, as far as they are known.
        has_new_head: Whether all that is above the backbone may be new, and is not looked for in the file.

    Returns:
        Sentences on what a user should know.

    Raises:
        ModelNotFoundError: Weights are missing, of another shape, or in the file and read by nothing.
    """
    backbone = f"{model.base_model_prefix}."
    missing, unread = set(info["missing_keys"]), set(info["unexpected_keys"])
    unlike = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]}
    new: set[str] = set()
    if has_new_head:
        new = {
            name for name in missing | unlike.keys() if not name.startswith(backbone) or ".pooler." in name
        }
        missing, unlike = missing - new, {name: both for name, both in unlike.items() if name not in new}
    if unlike:
        raise ModelNotFoundError(_other_shapes(unlike))
    if missing:
        raise ModelNotFoundError(_say_missing(sorted(missing), sorted(unread)))
    beside = {name for name in unread if not _is_harmless(name, stored)}
    within = sorted(name for name in beside if _is_within(model, name, backbone, has_new_head=has_new_head))
    if within:
        raise ModelNotFoundError(
            f"its file has weights that config.json has no place for, and they would be lost: {summed_up(within)}: "
            "config.json is of another model, or has been changed (num_hidden_layers, attention_bias, …): take the one "
            "that the weights were saved with"
        )
    notes: list[str] = []
    drawn = [name for name in new if not name.startswith(_SCORERS_HEADS) or ".dense" in name]
    if drawn:
        notes.append(f"new, drawn at random from a seed that is always the same: {summed_up(drawn)}")
    ignored = {name for name in stored if _is_ignored(model, name) and not _is_harmless(name, stored)}
    ignored -= _own_names(model)  # GPT-2's pattern for its old masks fits the names of its biases too
    lost = ignored if has_new_head else beside | ignored
    if model.get_output_embeddings() is None:
        lost = {name for name in lost if not name.startswith(_WRITERS_HEADS)}
    if lost:
        notes.append(
            f"in the file, read by nothing and not in what klimb saves: {summed_up(lost)} ({type(model).__name__} has "
            "no such weights)"
        )
    return notes


def require_finite(model: Any) -> None:
    """Raise where a weight is no finite number.

    Raises:
        ModelNotFoundError: The weights, by name.
    """
    damaged: list[str] = []
    for name, weight in model.named_parameters():
        if weight.numel() and weight.device.type != "meta":
            low, high = torch.aminmax(weight.detach())  # both are NaN where anything is
            if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
                damaged.append(name)
    if damaged:
        raise ModelNotFoundError(
            f"{len(damaged)} of its weights have numbers that are NaN or infinite: {summed_up(damaged)}: the training "
            "that wrote them diverged, or the file is damaged: take an earlier checkpoint, or fetch it again"
        )


def require_room(model: Any, tokenizer: Any, *, pads: bool) -> None:
    """Raise where the tokenizer has tokens for which the model has no embedding, and which it cannot do without.

    Tokens that were merely added, such as one for images, may lie beyond: a text that has one is refused when it comes.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        pads: Whether its padding token is read too.

    Raises:
        ModelNotFoundError: The tokens, by name, and the remedy.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    own = getattr(tokenizer, "vocab_size", None) or 0
    if own > rows:
        raise ModelNotFoundError(
            f"its tokenizer has {own:,} tokens and the model {rows:,} embeddings: it belongs to another model; "
            "take the one that the model was saved with"
        )
    names = ["bos_token", "eos_token", "sep_token", "cls_token", *(["pad_token"] if pads else [])]
    beyond: dict[str, str] = {}
    for name in names:
        token = getattr(tokenizer, f"{name}_id", None)
        if token is not None and token >= rows:
            beyond[name] = f"{name} {getattr(tokenizer, name)} ({token})"
    if beyond:
        remedy = "model.resize_token_embeddings(len(tokenizer)) and save it, or take the tokenizer that it came with"
        if list(beyond) == ["pad_token"]:
            remedy = "set pad_token in tokenizer_config.json to a token that the model knows, such as its end token"
        raise ModelNotFoundError(
            f"its tokenizer has {len(tokenizer):,} tokens and the model {rows:,} embeddings, none for "
            f"{', '.join(beyond.values())}: the tokens were added only to the tokenizer: {remedy}"
        )


def summed_up(names: Collection[str]) -> str:
    """Weights for a reader: numbers of layers left out, and the first few kinds alone."""
    kinds: dict[str, int] = {}
    for name in sorted(names):
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        kinds[kind] = kinds.get(kind, 0) + 1
    shown = [f"{kind} (× {count})" if count > 1 else kind for kind, count in kinds.items()]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def _other_shapes(unlike: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    name, (found, wanted) = min(unlike.items())
    said = f"{len(unlike)} of its weights have other shapes than config.json says: {name} is {found}, expected {wanted}"
    if name.startswith(_SCORERS_HEADS) and len(found) == 2 and found[1:] == wanted[1:]:
        outputs = f"{found[0]} output{'s' * (found[0] != 1)}"
        return f'{said}: its head has {outputs}: set "num_labels": {found[0]} in config.json'
    return f"{said}: config.json is of another model, or has been changed: take the one that the weights came with"


def _say_missing(missing: list[str], unread: list[str]) -> str:
    said = (
        f"its file lacks {len(missing)} of its weights, which would be drawn at random: {summed_up(missing)}"
    )
    if any(_ADAPTED.search(name) for name in unread):
        return (
            f"{said}; it holds an adapter that was never merged ({summed_up(unread)}): load it where it was trained, "
            "call merge_and_unload() and save it again"
        )
    for name in unread:
        if name.endswith(f".{missing[0]}"):
            prefix = name.removesuffix(missing[0])
            return (
                f"{said}; the file has them under names that begin with {prefix!r}, from a wrapper that the model was "
                "saved in: save the model itself"
            )
    if missing[0].startswith(_SCORERS_HEADS):
        heads = [name for name in unread if "head" in name and not name.startswith(_WRITERS_HEADS)]
        there = (
            f"the file has {summed_up(heads)} in its place: if that is the head, rename it to {missing[0]}"
        )
        no_reward = "it is not a finished reward model: learn one on it with klimb reward train --base"
        return f"{said}; {there if heads else no_reward}"
    if all(name.startswith(_WRITERS_HEADS) for name in missing):
        return (
            f"{said}: save the whole model; or, if it equals the embeddings, set "
            '"tie_word_embeddings": true in config.json'
        )
    others = [name for name in unread if not name.startswith(_WRITERS_HEADS)]
    there = f"; the file has others that nothing reads: {summed_up(others)}: is config.json another model's?"
    return said + (there if others else ": save the model whole, with save_pretrained")


def _is_harmless(name: str, stored: Mapping[str, StoredWeight]) -> bool:
    """Whether a stored tensor is one that older versions saved and that follows from the configuration."""
    shape = stored[name].shape if name in stored else None
    is_mask = name.endswith("attn.bias") or name.endswith("attention.bias")
    return bool(_NEVER_TRAINED.search(name)) or (is_mask and shape is not None and len(shape) != 1)


def _own_names(model: Any) -> set[str]:
    """Names under which a model's weights may stand in its files: its own, with and without that of the backbone."""
    names = model.state_dict().keys()
    backbone = f"{model.base_model_prefix}."
    return {*names, *(name.removeprefix(backbone) for name in names)}


def _is_ignored(model: Any, name: str) -> bool:
    """Whether transformers passes over a stored tensor of this name without a word."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _is_within(model: Any, name: str, backbone: str, *, has_new_head: bool) -> bool:
    """Whether a weight that nothing reads is a part of a layer or module that the model has."""
    modules = {re.sub(r"\.\d+(?=\.|$)", ".#", path) for path, _ in model.named_modules() if path}
    for full in (name, f"{backbone}{name}"):
        if has_new_head and not full.startswith(backbone):
            continue
        path = re.sub(r"\.\d+(?=\.|$)", ".#", full)
        parents = path.split(".")[:-1]
        above = [".".join(parents[: count + 1]) for count in range(len(parents))]
        if above and (above[-1] in modules or any("#" in place and place in modules for place in above)):
            return True
    return False
