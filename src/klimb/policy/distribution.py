"""The one distribution over next tokens that sampler, policy and reference share.

Axes: V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from klimb.config.decoding import DecodingOptions
from klimb.errors import ArgumentError
from klimb.kernels import vocabulary as on_cpu
from klimb.kernels import vocabulary_gpu as on_gpu

_SORTED_FIRST = (
    1024  # most likely tokens among which the nucleus mostly lies: sorting the rest takes far longer
)


@dataclass(frozen=True)
class SamplingDistribution:
    """How logits become probabilities.

    p(v) = exp(z_v / τ) / Σ_u exp(z_u / τ),   π(v) = p(v) 1[v ∈ S] / Σ_{u ∈ S} p(u)

    The policy that is fine-tuned is this one: tokens are drawn from it, its log-probs are differentiated, and the KL
    is measured between it and the equally tempered reference on the same support. S, the support, has all tokens
    unless `top_k`, `top_p` or `min_p` truncate it, in this order, as transformers does. The support of a token that
    was drawn is recorded and stays what it was: no derivative is taken of it.

    Attributes:
        temperature: τ > 0.
        top_k: Number of most likely tokens that S has at most, but for ties with the last; all where None.
        top_p: Smallest probability that S has, as the fewest most likely tokens that reach it, and their ties.
        min_p: Smallest probability of a token in S, as a share of the likeliest token's.

    Reference:
        Fan et al. (2018), top-k; Holtzman et al. (2020), top-p; Nguyen et al. (2024), min-p.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ArgumentError(f"temperature: expected a finite number above 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ArgumentError(f"top_k: expected at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ArgumentError(f"top_p: expected a number above 0, up to 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ArgumentError(f"min_p: expected a number from 0 to 1, got {self.min_p}")

    @classmethod
    def of(cls, options: DecodingOptions, temperature: float) -> "SamplingDistribution":
        """The distribution that options ask for."""
        return cls(temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p)

    @property
    def is_truncated(self) -> bool:
        """Whether there are tokens that it never draws."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0

    def support(
        self, log_probs: Float[Tensor, "n V"], excluded: Int[Tensor, " e"] | None = None
    ) -> Bool[Tensor, "n V"] | None:
        """Find the support of each row; None where it has all tokens.

        It depends on a row's values alone: tokens that tie with the last one kept are kept.

        Args:
            log_probs: Of the whole vocabulary, (n, V), in nats.
            excluded: Token ids that are left out first, (e,).
        """
        if not self.is_truncated and excluded is None:
            return None
        kept = log_probs if excluded is None else log_probs.index_fill(1, excluded, -torch.inf)
        if self.top_k is not None and self.top_k < kept.shape[1]:
            least = kept.topk(self.top_k, dim=1).values[:, -1:]
            kept = kept.masked_fill(kept < least, -torch.inf)
        if self.top_p < 1:
            kept = kept.masked_fill(kept < _nucleus(kept, self.top_p), -torch.inf)
        if self.min_p > 0:
            least = kept.amax(dim=1, keepdim=True) + math.log(self.min_p)
            kept = kept.masked_fill(kept < least, -torch.inf)
        return kept > -torch.inf

    def log_probs(
        self, logits: Float[Tensor, "*batch V"], support: Bool[Tensor, "*batch V"] | None = None
    ) -> Float[Tensor, "*batch V"]:
        """Log-probs of every token, in nats, at least in float32; −∞ outside the support."""
        return torch.log_softmax(self._scaled(logits, support), dim=-1)

    def token_log_probs(
        self,
        logits: Float[Tensor, "*batch V"],
        ids: Int[Tensor, "*batch"],
        support: Bool[Tensor, "*batch V"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Log-probs of the given tokens alone, in nats, differentiable in the logits."""
        is_constant = not (torch.is_grad_enabled() and logits.requires_grad)
        if support is None and is_constant and logits.ndim == 2:
            if on_cpu.can_take(logits):
                return on_cpu.token_log_probs(logits, ids, self.temperature, torch.get_num_threads())
            if on_gpu.can_take(logits):
                return on_gpu.token_log_probs(logits, ids, self.temperature)
        scaled = self._scaled(logits, support)
        chosen = scaled.gather(-1, ids[..., None])[..., 0]
        return chosen - torch.logsumexp(scaled, dim=-1)

    def token_log_prob_gradients_(
        self,
        logits: Float[Tensor, "n V"],
        ids: Int[Tensor, " n"],
        grad: Float[Tensor, " n"],
        support: Bool[Tensor, "n V"] | None = None,
    ) -> Float[Tensor, "n V"]:
        """Put gradients in the logits' place, of Σ_i g_i log π(v_i) for given g: g_i (1[u = v_i] − π_i(u)) / τ.

        The support is held constant, so the gradient is 0 for tokens outside it.
        """
        if support is None and on_cpu.can_take(logits):
            num_threads = torch.get_num_threads()
            return on_cpu.token_log_prob_gradients_(logits, ids, grad, self.temperature, num_threads)
        if support is None and on_gpu.can_take(logits):
            return on_gpu.token_log_prob_gradients_(logits, ids, grad, self.temperature)
        scale = grad[:, None] / self.temperature
        gradients = torch.softmax(self._scaled(logits, support), dim=-1).mul_(-scale)
        return logits.copy_(gradients.scatter_add_(1, ids[:, None], scale.to(gradients.dtype)))

    def entropy(self, log_probs: Float[Tensor, "n V"], probs: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
        """−Σ_v π(v) log π(v), in nats; a token of probability 0 contributes 0, not 0 · −∞."""
        return -torch.linalg.vecdot(probs, log_probs.clamp(min=torch.finfo(log_probs.dtype).min))

    def _scaled(self, logits: Tensor, support: Tensor | None = None) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        scaled = wide if self.temperature == 1.0 else wide / self.temperature
        return scaled if support is None else scaled.masked_fill(~support, -torch.inf)


def _nucleus(log_probs: Float[Tensor, "n V"], top_p: float) -> Float[Tensor, "n 1"]:
    """Find the smallest log-prob among the fewest most likely tokens that together have the probability `top_p`."""
    total = torch.logsumexp(log_probs, dim=1, keepdim=True)
    count = min(_SORTED_FIRST, log_probs.shape[1])
    values = log_probs.topk(count, dim=1).values
    num_kept = _num_kept(values - total, top_p)
    least = values.gather(1, num_kept - 1)
    wide = (num_kept[:, 0] == count).nonzero()[:, 0] if count < log_probs.shape[1] else []
    if len(wide):  # rows that need more tokens than were sorted
        values = log_probs[wide].sort(dim=1, descending=True).values
        least[wide] = values.gather(1, _num_kept(values - total[wide], top_p) - 1)
    return least


def _num_kept(sorted_log_probs: Float[Tensor, "n m"], top_p: float) -> Int[Tensor, "n 1"]:
    """Count the tokens, most likely first, before which less than `top_p` is reached; at least one."""
    probs = sorted_log_probs.exp().double()
    before = probs.cumsum(dim=1) - probs
    return (before < top_p).sum(dim=1, keepdim=True).clamp(min=1)


def inverse_cdf(probs: Float[Tensor, "N V"], uniforms: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Draw one token a row: the first whose cumulative probability exceeds the row's uniform.

    The cumulative sum is taken in float64 and the uniform is scaled by its last value, so
    rounding moves no draw beyond the vocabulary; a token of probability 0 is never drawn.

    Args:
        probs: Probability of every token, (N, V).
        uniforms: One number in [0, 1) a row, (N,), float64.

    Returns:
        Token ids, (N,).
    """
    cumulative = torch.cumsum(probs, dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # u · total may round up to total: stay strictly below it.
    threshold = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
