"""Which parameters move: all, the last layers, or a low-rank adapter; and what stays as the reference."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.pytorch_utils import Conv1D

from klimb.errors import ConfigError
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
    """Copy the model as it is now; parameters that are frozen anyway are shared, not copied."""
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, memo=shared).requires_grad_(False).eval()
