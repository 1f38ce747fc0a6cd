"""What was drawn, token by token, kept in fixed places on the device and asked for seldom.

Axes: N completions, T tokens of them at most, V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.errors import DivergedError
from klimb.policy.distribution import SamplingDistribution, inverse_cdf
from klimb.policy.engine.gpu_decoder import launch, power_of_two, wide

_CHUNK = 4096  # logits that a program reads


class TokenRecord:
    """Completions as they grow, all of them staying in the batch; `draw` makes no processor wait.

    Attributes:
        tokens: What was drawn last, (N,).
        lengths: Tokens of each completion so far, (N,).

    Args:
        num_completions: N.
        num_tokens: T.
        distribution: What tokens are drawn from; not truncated.
        end_ids: Token ids of which any ends a completion.
        like: A tensor of the dtype that logits have, on their device.
        uses_triton: Whether a token is drawn by Triton's kernels.
    """

    def __init__(
        self,
        num_completions: int,
        num_tokens: int,
        distribution: SamplingDistribution,
        end_ids: list[int],
        like: Tensor,
        *,
        uses_triton: bool,
    ) -> None:
        device = like.device
        self._distribution = distribution
        self._uses_triton = uses_triton
        self._ends = torch.tensor(end_ids, dtype=torch.long, device=device)
        self.tokens = self._ends.new_zeros(num_completions)
        self.lengths = torch.zeros_like(self.tokens)
        self._uniforms = torch.zeros(num_completions, num_tokens, dtype=torch.float64, device=device)
        self._ids = self._ends.new_zeros(num_completions, num_tokens)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._log_probs = torch.zeros(num_completions, num_tokens, dtype=dtype, device=device)
        self._entropies = torch.zeros_like(self._log_probs)
        self._has_ended = torch.zeros(num_completions, dtype=torch.int32, device=device)
        self._is_nan = torch.zeros_like(self._has_ended)

    def begin(self, uniforms: Float[Tensor, "N T"]) -> None:
        """Forget what was drawn, and draw by these numbers."""
        self._uniforms.copy_(uniforms)
        for kept in (self.lengths, self._has_ended, self._is_nan):
            kept.zero_()

    def draw(self, logits: Float[Tensor, "N V"], newest: Int[Tensor, " 1"]) -> None:
        """Draw every completion's next token, its column being `newest` + 1, and count on."""
        (self._draw_in_two_kernels if self._uses_triton else self._draw_plainly)(logits, newest)
        newest.add_(1)

    def are_all_ended(self) -> bool:
        """Ask the device whether no completion grows any more.

        Raises:
            DivergedError: A prediction was not a number.
        """
        is_nan, is_open = torch.stack([self._is_nan.amax(), (self._has_ended == 0).sum()]).tolist()
        if is_nan:
            raise DivergedError("the model's predictions are NaN; try a lower --lr")
        return not is_open

    def columns(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of ids, log-probs and entropies of the first `count` tokens, (N, count) each."""
        ids, log_probs, entropies = (
            kept[:, :count].clone() for kept in (self._ids, self._log_probs, self._entropies)
        )
        return ids, log_probs, entropies

    def which_ended(self) -> list[bool]:
        """Whether each completion has ended, not only become as long as it may."""
        return (self._has_ended != 0).tolist()

    def _draw_plainly(self, logits: Tensor, newest: Tensor) -> None:
        column = newest + 1
        log_probs = self._distribution.log_probs(logits)
        probs = log_probs.exp()
        # NaN would give a token beyond the vocabulary, which no device takes
        token = inverse_cdf(probs, self._uniforms.index_select(1, column)[:, 0]).clamp_(
            max=logits.shape[1] - 1
        )
        chosen = log_probs.gather(1, token[:, None])
        entropy = self._distribution.entropy(log_probs, probs)[:, None]
        is_open = self._has_ended == 0
        self._is_nan |= log_probs[:, 0].isnan()
        self.tokens.copy_(token)
        self._ids.index_copy_(1, column, token[:, None])
        self._log_probs.index_copy_(1, column, chosen * is_open[:, None])
        self._entropies.index_copy_(1, column, entropy * is_open[:, None])
        self.lengths += is_open
        self._has_ended |= (token[:, None] == self._ends).any(dim=1)

    def _draw_in_two_kernels(self, logits: Tensor, newest: Tensor) -> None:
        from klimb.kernels import triton_draw as kernels

        logits = logits.contiguous()
        num_rows, size = logits.shape
        num_parts = -(-size // _CHUNK)
        shared = {"TEMPERATURE": self._distribution.temperature, "CHUNK": _CHUNK, "WIDE": wide(logits.dtype)}
        most, totals, moments = self._log_probs.new_empty(3, num_rows, num_parts)
        launch(
            kernels.summarise,
            (num_rows, num_parts),
            logits,
            most,
            totals,
            moments,
            size,
            num_warps=8,
            **shared,
        )
        launch(
            kernels.pick, (num_rows,),
            logits, most, totals, moments, self._uniforms, newest, self._ends, self.tokens, self._ids,
            self._log_probs, self._entropies, self.lengths, self._has_ended, self._is_nan,
            size, num_parts, self._ids.shape[1], len(self._ends),
            PARTS=power_of_two(num_parts), num_warps=8, **shared,
        )  # fmt: skip
