"""Supports of a truncated distribution, a bit for each token of the vocabulary.

Axes: n tokens that were drawn, V vocabulary, W = ⌈V/8⌉ bytes.
"""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

ALL = 255
"""Bytes of a support that has all tokens."""


def pack_support(support: Bool[Tensor, "n V"]) -> UInt8[Tensor, "n W"]:
    """Write eight tokens into a byte, the first as its lowest bit."""
    num_rows, size = support.shape
    bits = torch.nn.functional.pad(support, (0, -size % 8)).view(num_rows, -1, 8)
    return (bits.to(torch.uint8) << _places(support)).sum(dim=2, dtype=torch.uint8)


def unpack_support(supports: UInt8[Tensor, "n W"], size: int) -> Bool[Tensor, "n V"]:
    """Read what `pack_support` wrote, for a vocabulary of `size` tokens."""
    bits = (supports[:, :, None] >> _places(supports)) & 1
    return bits.bool().flatten(1)[:, :size]


def _places(like: Tensor) -> UInt8[Tensor, " 8"]:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
