"""Moving the policy's weights along the gradient of a surrogate.

Axes: N completions of the whole batch, T tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from klimb.config.train import TrainConfig
from klimb.errors import ArgumentError, DivergedError, SamplerGapError
from klimb.policy.completions import Completions
from klimb.policy.policy import Policy
from klimb.rl.schedule import learning_rate
from klimb.rl.surrogates import Surrogate

USUAL_GAPS = {"float32": 1e-3, "bfloat16": 0.25}
"""Most by which sampling and training may differ on average, in nats a token; on SmolLM2 6e-6 and 0.05 are seen."""

_REMEMBERED = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": set[str]()}  # of a weight that has moved

_PORTION = 1 << 22  # weights moved at a time: 16 MB of gradients in float32


@dataclass(frozen=True)
class UpdateStats:
    """What an update did, or the updates of a step.

    Attributes:
        grad_norm: Length of the gradient before it was clipped; the longest of several.
        lr: Learning rate of this step.
        sampler_gap_mean: |log-prob in sampling − log-prob in training|, mean over tokens, in nats; of a step's first
            update, since later ones have another policy.
        sampler_gap_max: The same, the largest.
        num_updates: How many updates these are.
        drift: The largest mean of the same difference among later updates of a step, where there was more than one.
        is_skipped: Whether nothing was moved, because no completion counted.
        weights: What the score weights show, by name.
    """

    grad_norm: float
    lr: float
    sampler_gap_mean: float
    sampler_gap_max: float
    num_updates: int = 1
    drift: float | None = None
    is_skipped: bool = False
    weights: dict[str, float] = field(default_factory=dict[str, float])


def join_stats(updates: Sequence[UpdateStats]) -> UpdateStats:
    """Join those of a step's updates, in order."""
    taken = [update for update in updates if not update.is_skipped] or list(updates)
    first = taken[0]
    return UpdateStats(
        grad_norm=max(update.grad_norm for update in taken),
        lr=first.lr,
        sampler_gap_mean=first.sampler_gap_mean,
        sampler_gap_max=first.sampler_gap_max,
        num_updates=len(updates),
        drift=max((update.sampler_gap_mean for update in taken[1:]), default=0.0)
        if len(updates) > 1
        else None,
        is_skipped=first.is_skipped,
    )


class PolicyOptimizer:
    """An optimiser with a schedule of its rate and clipping, that ascends.

    Attributes:
        rate_scale: What the scheduled learning rate is multiplied by.
    """

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        self._policy = policy
        self._config = config
        self.rate_scale = 1.0
        self._updates_per_step = config.algorithm.num_updates
        self._max_grad_norm = config.max_grad_norm
        self._max_gap = config.max_logprob_mismatch or USUAL_GAPS[config.precision]
        self._names = {id(weight): name for name, weight in policy.trainable().items()}
        # A large weight is moved a piece at a time, so that no more than that of its gradient is ever widened.
        self._pieces = {
            name: weight.detach().view(-1).split(_PORTION) for name, weight in policy.trainable().items()
        }
        moved = [piece for pieces in self._pieces.values() for piece in pieces]
        if config.optimiser == "sgd":
            self.optimiser: torch.optim.Optimizer = torch.optim.SGD(
                moved, lr=config.lr, weight_decay=config.weight_decay, maximize=True
            )
        else:
            self.optimiser = torch.optim.AdamW(
                moved,
                lr=config.lr,
                betas=config.adam_betas,
                eps=config.adam_epsilon,
                weight_decay=config.weight_decay,
                maximize=True,
                fused=True,  # one pass over the weights instead of ten
            )

    def step(
        self, surrogate: Surrogate, completions: Completions, *, is_on_policy: bool = True
    ) -> UpdateStats:
        """Make one update, up the surrogate of some completions.

        The gradient is summed over micro-batches, each already divided by the whole update's
        denominators, so it does not depend on how the completions are split.

        Args:
            surrogate: What is raised.
            completions: What it is raised on.
            is_on_policy: Whether the weights are those that drew the completions, so that sampling and this pass must
                agree.

        Raises:
            DivergedError: The gradient is not finite; the weights are not moved.
            SamplerGapError: Sampling and this pass disagree about the tokens; the weights are not moved.
        """
        policy = self._policy
        gap_sum, gap_max = 0.0, 0.0
        micro_batches = completions.micro_batches(policy.micro_batch_size)
        for rows in micro_batches:
            part = completions.rows(rows)
            token_log_probs = policy.log_probs(part)
            surrogate(token_log_probs, rows).backward()
            if len(micro_batches) > 1:
                policy.widen_gradients()  # in bfloat16 a sum of many would lose what each adds
            gap = (token_log_probs.detach() - part.token_log_probs).abs()
            gap_sum += float(gap.sum())
            gap_max = max(gap_max, float(gap.max()))

        gap_mean = gap_sum / float(completions.lengths.sum())
        gradients = policy.take_gradients()
        if is_on_policy:
            self._check_gap(gap_mean)
        grad_norm = _norm([gradient for _, gradient in gradients])
        if not math.isfinite(grad_norm):
            raise DivergedError(
                f"the gradient is not finite (length {grad_norm}) after {policy.num_updates} updates; "
                "the weights were left as they are; a lower --lr may keep it so"
            )
        is_long = self._max_grad_norm is not None and grad_norm > self._max_grad_norm
        scale = self._max_grad_norm / grad_norm if self._max_grad_norm is not None and is_long else 1.0
        lr = self.rate_scale * learning_rate(self._config, policy.num_updates // self._updates_per_step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self._move(gradients, scale)
        policy.moved()
        return UpdateStats(
            grad_norm=grad_norm,
            lr=lr,
            sampler_gap_mean=gap_mean,
            sampler_gap_max=gap_max,
        )

    def skip(self) -> UpdateStats:
        """Let an update pass without moving the weights; it counts as one, so that updates stay counted alike."""
        self._policy.moved()
        return UpdateStats(grad_norm=0.0, lr=0.0, sampler_gap_mean=0.0, sampler_gap_max=0.0, is_skipped=True)

    def moments(self) -> dict[str, Tensor]:
        """What the optimiser remembers, by the weight's name, the piece of it, and what it is."""
        return {
            f"{name}/{number}/{key}": value
            for name, pieces in self._pieces.items()
            for number, piece in enumerate(pieces)
            for key, value in self.optimiser.state[piece].items()
        }

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Let the optimiser remember what `moments` gave, a tensor at a time.

        Raises:
            ArgumentError: Names or shapes are not those of the weights that move; nothing is changed.
        """
        pieces = {
            f"{name}/{number}": piece
            for name, pieces in self._pieces.items()
            for number, piece in enumerate(pieces)
        }
        remembered: dict[str, set[str]] = {}
        for key in moments:
            place, _, what = key.rpartition("/")
            remembered.setdefault(place, set()).add(what)
            if place not in pieces:
                raise ArgumentError(f"moments: {key} is of none of the weights that move")
            if what != "step" and moments[key].shape != pieces[place].shape:
                raise ArgumentError(
                    f"moments: expected {key} as {tuple(pieces[place].shape)}, got {tuple(moments[key].shape)}"
                )
        expected = _REMEMBERED[self._config.optimiser]
        for place, found in remembered.items():
            if found != expected:
                raise ArgumentError(
                    f"moments: expected {', '.join(sorted(expected)) or 'nothing'} of {place}, "
                    f"got {', '.join(sorted(found))}"
                )
        self.optimiser.state.clear()
        for place, found in remembered.items():
            piece = pieces[place]
            self.optimiser.state[piece] = {
                what: moments[f"{place}/{what}"].to(piece.device) for what in sorted(found)
            }

    def _move(self, gradients: list[tuple[Tensor, Tensor]], scale: float) -> None:
        """Let the optimiser move some weights after the others: of few at a time is the gradient held in full width."""
        portion: list[Tensor] = []
        while gradients:
            weight, gradient = gradients.pop()
            pieces = self._pieces[self._names[id(weight)]]
            for piece, part in zip(pieces, gradient.reshape(-1).split(_PORTION), strict=True):
                piece.grad = part.to(piece.dtype)
                if scale != 1:
                    piece.grad *= scale
                portion.append(piece)
                if not gradients or sum(piece.numel() for piece in portion) >= _PORTION:
                    self.optimiser.step()
                    while portion:
                        portion.pop().grad = None  # now, so that sampling has their memory

    def _check_gap(self, gap: float) -> None:
        if gap > self._max_gap:  # what is not a number is told of as a gradient that is not
            raise SamplerGapError(
                f"sampling and training differ by {gap:.2g} nats a token on average, more than max_logprob_mismatch "
                f"{self._max_gap:g}, after {self._policy.num_updates} updates; the weights were left as they are. "
                "The gradient would be that of another policy than was sampled: use --precision float32, or raise "
                "--max-logprob-mismatch if the gap has been creeping up in metrics.jsonl and you accept it"
            )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _norm(gradients: list[Tensor]) -> float:
    """Length of the gradient over all weights, in at least float32."""
    norms = [
        torch.linalg.vector_norm(part, dtype=_wide(part.dtype))  # which widens all that it is given
        for gradient in gradients
        for part in gradient.reshape(-1).split(_PORTION)
    ]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
