"""The projection on the vocabulary, in chunks, so that no batch of logits is ever kept.

Axes: n tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from klimb.model.matmul import addmm_, is_on_cpu, product
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.supports import unpack_support

_CHUNK_ELEMENTS = 1 << 24  # logits whose gradients are held at once: 64 MB in float32
_PIECE_ELEMENTS = (
    1 << 22
)  # logits held at once: few enough to stay in the cache from one operation to the next
_ON_GPU = 1 << 27  # logits held at once there, 256 MB in bfloat16: each chunk reads the whole layer


class Vocabulary:
    """The last layer of a causal language model: z = W h + b, softly capped where the model says so.

    Attributes:
        head: The layer.
        softcap: The largest logit, towards which they are softly capped; None where they are not.

    Args:
        model: The transformers model.
    """

    def __init__(self, model: Any) -> None:
        self.head = model.get_output_embeddings()
        self.softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    @property
    def bias(self) -> Tensor | None:
        """b; None where the layer has none."""
        return getattr(self.head, "bias", None)

    def logits(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Logits after each token."""
        return self.capped(self.head(hidden))

    def logits_of(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Logits after each token, of given weights by the fastest product, without gradient."""
        return _capped(product(hidden, self.head.weight, self.bias), self.softcap)

    def capped(self, logits: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """Logits from what the layer's product gave."""
        return _capped(logits, self.softcap)

    def token_log_probs(
        self,
        hidden: Float[Tensor, "n D"],
        ids: Int[Tensor, " n"],
        distribution: SamplingDistribution,
        supports: UInt8[Tensor, "n W"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Log-probs of the tokens that followed, in nats, differentiable in `hidden` and in the layer.

        Args:
            hidden: Before each token.
            ids: The tokens.
            distribution: What they were drawn from.
            supports: Tokens that each could be, packed; all where None.
        """
        return _TokenLogProbs.apply(
            hidden, self.head.weight, self.bias, ids, distribution, self.softcap, supports
        )


class _TokenLogProbs(torch.autograd.Function):
    """Chunk by chunk; the backward pass recomputes each chunk's logits and forms its gradient from them."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  autograd takes no records
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, distribution: SamplingDistribution,
        softcap: float | None, supports: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(hidden, weight, bias, ids, supports)
        ctx.distribution, ctx.softcap = distribution, softcap
        log_probs: list[Tensor] = []
        for rows in _runs(len(hidden), len(weight), _most(_CHUNK_ELEMENTS, hidden)):
            logits = _capped(product(hidden[rows], weight, bias), softcap)
            log_probs += [
                distribution.token_log_probs(
                    logits[piece], ids[rows][piece], _support(supports, rows, piece, len(weight))
                )
                for piece in _runs(len(logits), len(weight), _most(_PIECE_ELEMENTS, hidden))
            ]
        return torch.cat(log_probs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        hidden, weight, bias, ids, supports = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = torch.zeros_like(weight) if needs_weight else None
        to_bias: Tensor | None = None
        for rows in _runs(len(hidden), len(weight), _most(_CHUNK_ELEMENTS, hidden)):
            to_logits = _capped(
                product(hidden[rows], weight, bias), ctx.softcap
            )  # logits at first, then theirs
            for piece in _runs(len(to_logits), len(weight), _most(_PIECE_ELEMENTS, hidden)):
                logits = to_logits[piece]
                slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap).square()
                ctx.distribution.token_log_prob_gradients_(
                    logits, ids[rows][piece], grad[rows][piece], _support(supports, rows, piece, len(weight))
                )
                if slope is not None:
                    logits *= slope
            if to_hidden is not None:
                to_hidden[rows] = product(to_logits, weight.t())
            if to_weight is not None:
                addmm_(to_weight, to_logits.t(), hidden[rows])
            if needs_bias:
                part = to_logits.sum(dim=0)
                to_bias = part if to_bias is None else to_bias.add_(part)
        return to_hidden, to_weight, to_bias, None, None, None, None


def _support(supports: Tensor | None, rows: slice, piece: slice, size: int) -> Tensor | None:
    return None if supports is None else unpack_support(supports[rows][piece], size)


def _most(on_cpu: int, hidden: Tensor) -> int:
    """How many logits are held at once where the hidden states are."""
    return on_cpu if is_on_cpu(hidden) else _ON_GPU


def _runs(num_tokens: int, vocabulary: int, most: int) -> list[slice]:
    """Even runs of tokens that have at most so many logits, or one token each; one empty run for no tokens."""
    count = max(-(-num_tokens * vocabulary // most), 1)
    size = max(-(-num_tokens // count), 1)
    return [slice(first, min(first + size, num_tokens)) for first in range(0, max(num_tokens, 1), size)]


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
