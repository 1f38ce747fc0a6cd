"""The one distribution over next tokens that sampler, policy and reference share.

Axes: V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.errors import ArgumentError
from klimb.kernels import vocabulary as kernels


@dataclass(frozen=True)
class SamplingDistribution:
    """How logits become probabilities.

    π(v) = exp(z_v / τ) / Σ_u exp(z_u / τ)

    The policy that is fine-tuned is this tempered one: tokens are drawn from it, its log-probs
    are differentiated, and the KL is measured between it and the equally tempered reference.

    Attributes:
        temperature: τ > 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ArgumentError(f"temperature: expected a finite number above 0, got {self.temperature}")

    def log_probs(self, logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
        """Log-probs of every token, in nats, at least in float32."""
        return torch.log_softmax(self._scaled(logits), dim=-1)

    def token_log_probs(
        self, logits: Float[Tensor, "*batch V"], ids: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Log-probs of the given tokens alone, in nats, differentiable in the logits."""
        is_constant = not (torch.is_grad_enabled() and logits.requires_grad)
        if is_constant and logits.ndim == 2 and kernels.can_take(logits):
            return kernels.token_log_probs(logits, ids, self.temperature, torch.get_num_threads())
        scaled = self._scaled(logits)
        chosen = scaled.gather(-1, ids[..., None])[..., 0]
        return chosen - torch.logsumexp(scaled, dim=-1)

    def token_log_prob_gradients_(
        self, logits: Float[Tensor, "n V"], ids: Int[Tensor, " n"], grad: Float[Tensor, " n"]
    ) -> Float[Tensor, "n V"]:
        """Put gradients in the logits' place, of Σ_i g_i log π(v_i) for given g: g_i (1[u = v_i] − π_i(u)) / τ."""
        if kernels.can_take(logits):
            num_threads = torch.get_num_threads()
            return kernels.token_log_prob_gradients_(logits, ids, grad, self.temperature, num_threads)
        scale = grad[:, None] / self.temperature
        gradients = torch.softmax(self._scaled(logits), dim=-1).mul_(-scale)
        return logits.copy_(gradients.scatter_add_(1, ids[:, None], scale.to(gradients.dtype)))

    def entropy(self, log_probs: Float[Tensor, "n V"], probs: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
        """−Σ_v π(v) log π(v), in nats; a token of probability 0 contributes 0, not 0 · −∞."""
        return -torch.linalg.vecdot(probs, log_probs.clamp(min=torch.finfo(log_probs.dtype).min))

    def _scaled(self, logits: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return wide if self.temperature == 1.0 else wide / self.temperature


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
