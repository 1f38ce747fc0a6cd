"""Which parameters move: all, the last layers, or a low-rank adapter; and what stays as the reference."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from klimb.errors import ArgumentError, ConfigError
from klimb.model.trunk import decoder_layers


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter on every linear layer.

    W x + (α/r) B A x, A and B trained, W frozen; B = 0 at first, so that the policy starts as
    the reference (Hu et al. 2021).

    Attributes:
        rank: r, columns of B and rows of A.
        alpha: α, in units of the rank.
    """

    rank: int = 16
    alpha: float = 32.0


def train_last_layers(model: Any, num_layers: int) -> None:
    """Freeze everything but the last `num_layers` decoder layers."""
    layers = decoder_layers(model)
    if layers is None:
        raise ConfigError(
            f"num_trainable_layers: found no list of decoder layers in {type(model).__name__}; use lora_rank"
        )
    if not 1 <= num_layers <= len(layers):
        raise ConfigError(
            f"num_trainable_layers: expected 1 to {len(layers)}, the layers of this model, got {num_layers}"
        )
    model.requires_grad_(False)
    for layer in layers[-num_layers:]:
        layer.requires_grad_(True)


def train_parts(model: Any, num_layers: int | None, lora: Lora | None, seed: int) -> Any:
    """Choose what of a model moves: an adapter, the last layers, or all where both are None.

    Raises:
        ConfigError: Both are given, or more layers than there are.
    """
    if lora is not None and num_layers is not None:
        raise ConfigError("lora_rank and num_trainable_layers exclude each other: choose one")
    if lora is not None:
        return add_lora(model, lora, seed)
    if num_layers is not None:
        train_last_layers(model, num_layers)
    return model


def add_lora(
    model: Any, lora: Lora, seed: int, task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM"
) -> Any:
    """Wrap the model in a peft adapter whose first values depend on `seed` alone; with SEQ_CLS its head moves too."""
    from peft import LoraConfig, get_peft_model  # takes a second to import

    config = LoraConfig(
        task_type=task_type,
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  peft divides it, whole or not
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    # peft draws from torch's global generator: lend it one of ours and give the old state back.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated"
        )  # by peft's use of transformers
        return get_peft_model(model, config).eval()


def frozen_copy(model: Any) -> Any:
    """Copy the model as it is now and freeze it; parameters that are frozen anyway are shared, not copied."""
    return trainable_copy(model).requires_grad_(False)


def trainable_copy(model: Any) -> Any:
    """Copy the model as it is now; its frozen parameters are shared, not copied."""
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, memo=shared).eval()


@torch.no_grad()
def copy_weights(weights: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
    """Put weights in the place of the present ones, a tensor at a time.

    Args:
        weights: A tensor for each of the present ones, by name.
        present: What is overwritten; the tensors stay the same objects.

    Raises:
        ArgumentError: Names, shapes or dtypes are not those of the present ones; nothing is changed.
    """
    if unlike := weights.keys() ^ present.keys():
        raise ArgumentError(
            f"weights: expected those of the {len(present)} that are trained, "
            f"got {'none' if min(unlike) in present else 'one'} of the name {min(unlike)}"
        )
    for name, weight in present.items():
        given = weights[name]
        if given.shape != weight.shape or given.dtype != weight.dtype:
            raise ArgumentError(
                f"weights: expected {name} as {tuple(weight.shape)} of {weight.dtype}, "
                f"got {tuple(given.shape)} of {given.dtype}"
            )
    for name, weight in present.items():
        weight.copy_(weights[name])
