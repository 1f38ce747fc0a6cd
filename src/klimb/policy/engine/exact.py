"""The exact KL from the reference and the exact entropy at each prefix, formed inside the vocabulary's chunks.

Axes: n tokens, D hidden size of the policy, E of the reference, V vocabulary.

    ∂KL/∂z_u = π(u) (log π(u) − log π_ref(u) − KL) / τ,   ∂H/∂z_u = −π(u) (log π(u) + H) / τ
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from klimb.core.kl import exact_kl
from klimb.model.matmul import addmm_, is_on_cpu, product
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.vocabulary import Vocabulary
from klimb.policy.supports import unpack_support

_CHUNK_ELEMENTS = 1 << 22  # logits held at once, beside those of the reference and what is made of both
_ON_GPU = 1 << 25


@dataclass(frozen=True)
class Prefixes:
    """The tokens that followed some prefixes, and all that is constant about them.

    Attributes:
        ids: The tokens, (n,).
        distribution: What they were drawn from.
        supports: Tokens that each could be, packed, (n, W); all where None.
        ref_hidden: The reference's last hidden state before each, (n, E); None where no KL is wanted.
        ref_vocabulary: The reference's last layer.
    """

    ids: Int[Tensor, " n"]
    distribution: SamplingDistribution
    supports: UInt8[Tensor, "n W"] | None = None
    ref_hidden: Float[Tensor, "n E"] | None = None
    ref_vocabulary: Vocabulary | None = None

    def rows(self, rows: slice, size: int) -> "_Chunk":
        """Take some tokens, with the reference's log-probs of a vocabulary of `size` tokens."""
        support = None if self.supports is None else unpack_support(self.supports[rows], size)
        reference = None
        if self.ref_hidden is not None and self.ref_vocabulary is not None:
            logits = self.ref_vocabulary.logits_of(self.ref_hidden[rows])
            reference = self.distribution.log_probs(logits, support)
        return _Chunk(self.ids[rows], support, reference)


@dataclass(frozen=True)
class _Chunk:
    ids: Int[Tensor, " m"]
    support: Bool[Tensor, "m V"] | None
    reference: Float[Tensor, "m V"] | None


def exact_scores(
    hidden: Float[Tensor, "n D"], vocabulary: Vocabulary, prefixes: Prefixes
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Find each token's log-prob, and the KL and the entropy of the distribution that it was drawn from.

    All are differentiable in `hidden` and in the layer; no more logits are held at once than a chunk's.

    Args:
        hidden: The policy's last hidden state before each token.
        vocabulary: Its last layer.
        prefixes: The tokens, and the reference's last hidden states.

    Returns:
        log π(v), KL(π‖π_ref) and H(π), each (n,), in nats; the KL is 0 where there is no reference.
    """
    layer = vocabulary.head
    return _ExactScores.apply(hidden, layer.weight, vocabulary.bias, vocabulary.softcap, prefixes)


class _ExactScores(torch.autograd.Function):
    """Chunk by chunk; the backward pass recomputes each chunk's logits, the reference's as well."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        prefixes: Prefixes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for rows in _chunks(hidden, weight):
            chunk = prefixes.rows(rows, len(weight))
            logits = _capped(product(hidden[rows], weight, bias), softcap)
            log_probs = prefixes.distribution.log_probs(logits, chunk.support)
            entropy = prefixes.distribution.entropy(log_probs, log_probs.exp())
            kl = torch.zeros_like(entropy)
            if chunk.reference is not None:
                kl = exact_kl(log_probs, chunk.reference)
            parts.append((log_probs.gather(1, chunk.ids[:, None])[:, 0], kl, entropy))
        log_probs, kl, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, kl, entropy)
        ctx.softcap, ctx.prefixes = softcap, prefixes
        return log_probs, kl, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, kl, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = torch.zeros_like(weight) if needs_weight else None
        to_bias = None if bias is None or not needs_bias else torch.zeros_like(bias)
        for rows in _chunks(hidden, weight):
            logits = _capped(product(hidden[rows], weight, bias), ctx.softcap)
            slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap).square()
            found = _logit_gradients(
                logits,
                ctx.prefixes.rows(rows, len(weight)),
                ctx.prefixes.distribution,
                (kl[rows], entropy[rows]),
                [grad[rows] for grad in grad_outputs],
            )
            to_logits = logits.copy_(found)
            if slope is not None:
                to_logits *= slope
            if to_hidden is not None:
                to_hidden[rows] = product(to_logits, weight.t())
            if to_weight is not None:
                addmm_(to_weight, to_logits.t(), hidden[rows])
            if to_bias is not None:
                to_bias += to_logits.sum(dim=0)
        return to_hidden, to_weight, to_bias, None, None


def _logit_gradients(
    logits: Float[Tensor, "m V"],
    chunk: _Chunk,
    distribution: SamplingDistribution,
    found: tuple[Tensor, Tensor],
    grads: list[Tensor],
) -> Float[Tensor, "m V"]:
    """Find Σ of the gradients of log-prob, KL and entropy in each logit, each times what came back for it."""
    log_probs = distribution.log_probs(logits, chunk.support)
    is_possible = log_probs > -torch.inf
    kl, entropy = (column[:, None] for column in found)
    of_log_prob, of_kl, of_entropy = (grad.to(log_probs.dtype)[:, None] for grad in grads)
    safe = log_probs.masked_fill(~is_possible, 0.0)
    slopes = -of_log_prob - of_entropy * (safe + entropy)
    if chunk.reference is not None:
        slopes = slopes + of_kl * (safe - chunk.reference.masked_fill(~is_possible, 0.0) - kl)
    gradients = log_probs.exp() * slopes
    gradients.scatter_add_(1, chunk.ids[:, None], of_log_prob)
    return gradients / distribution.temperature


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Runs of tokens that have at most so many logits, or one token each; one empty run for no tokens."""
    most = _CHUNK_ELEMENTS if is_on_cpu(hidden) else _ON_GPU
    size = max(most // len(weight), 1)
    return [slice(first, first + size) for first in range(0, max(len(hidden), 1), size)]


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
