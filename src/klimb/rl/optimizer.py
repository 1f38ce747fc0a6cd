"""The optimizer: updates the policy's weights along the gradient of a surrogate.

Axes: N completions of the whole batch, T tokens.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor

from klimb.config.train import TrainConfig
from klimb.core.objective import Objective
from klimb.errors import ArgumentError, DivergedError, SamplerGapError
from klimb.model.matmul import is_on_cpu
from klimb.model.precision import widened
from klimb.policy.completions import Completions
from klimb.policy.policy import Policy
from klimb.policy.scores import TokenScores
from klimb.rl.rollout import Slice
from klimb.rl.schedule import learning_rate
from klimb.rl.surrogates import Scores, Surrogate
from klimb.world import ALONE, TreeSum, World

USUAL_GAPS = {"float32": 1e-3, "bfloat16": 0.25}
"""Most by which sampling and training may differ on average, in nats per token; on SmolLM2 6e-6 and 0.05 are seen."""

_AVERAGES = ("exp_avg", "exp_avg_sq")  # of a weight that AdamW has moved, each in its shape
_STATE = {"adamw": {"step", *_AVERAGES}, "sgd": set[str]()}

_PORTION = 1 << 22  # weights moved at a time: 16 MB of gradients in float32
_PORTION_ON_GPU = 1 << 26  # 256 MB: there each call takes longer than what it does to fewer


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
        value: What the value function shows, by name; empty where there is none.
    """

    grad_norm: float
    lr: float
    sampler_gap_mean: float
    sampler_gap_max: float
    num_updates: int = 1
    drift: float | None = None
    is_skipped: bool = False
    weights: dict[str, float] = field(default_factory=dict[str, float])
    value: dict[str, float | None] = field(default_factory=dict[str, float | None])


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


class Trainable(Protocol):
    """What an optimizer moves: a policy, or a value function."""

    micro_batch_size: int | None
    num_updates: int

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that are moved, by name."""
        ...

    def widen_gradients(self) -> None:
        """Make room for another pass's gradients."""
        ...

    def take_gradients(self) -> list[tuple[str, Tensor]]:
        """Give away the names of the weights that move, each with its gradient."""
        ...

    def moved(self) -> None:
        """Take note that the weights were moved."""
        ...


class PolicyOptimizer:
    """An optimizer by gradient ascent, with a learning-rate schedule and gradient clipping.

    Attributes:
        rate_scale: What the scheduled learning rate is multiplied by.
        world: The ranks that gradients are added over.

    Args:
        policy: What is moved.
        config: The options.
        world: As above.
        score: What a surrogate is a function of; the policy's log-probs where None, with exact KL and entropy where
            the objective needs them.
        rates: By a weight's name, what multiplies its learning rate; 1 where it is not named.
    """

    def __init__(
        self,
        policy: Policy | Trainable,
        config: TrainConfig,
        world: World = ALONE,
        *,
        score: Callable[[Completions], Scores] | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self._policy = policy
        self._score = score or _score_of(cast("Policy", policy), config.algorithm)
        self._config = config
        self.rate_scale = 1.0
        self.world = world
        self._updates_per_step = config.algorithm.num_updates
        self._max_grad_norm = config.max_grad_norm
        self._max_gap = config.max_logprob_mismatch or USUAL_GAPS[config.precision]
        self._weights = policy.trainable()
        self._averages: dict[str, dict[str, Tensor]] = {}
        # A large weight is moved a piece at a time, so that no more than that of its gradient is ever widened.
        self._pieces = {
            name: weight.detach().view(-1).split(_PORTION) for name, weight in self._weights.items()
        }
        by_rate: dict[float, list[Tensor]] = {}
        for name, pieces in self._pieces.items():
            by_rate.setdefault((rates or {}).get(name, 1.0), []).extend(pieces)
        moved = [{"params": pieces, "rate": rate} for rate, pieces in by_rate.items()]
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
        self,
        surrogate: Surrogate,
        completions: Completions,
        *,
        slices: Sequence[Slice | None] | None = None,
        is_on_policy: bool = True,
    ) -> UpdateStats:
        """Make one update, up the surrogate of some completions.

        The gradient is summed over micro-batches, slices and ranks, each already divided by the whole update's
        denominators, so it does not depend on how the completions are split.

        Args:
            surrogate: What is raised.
            completions: What it is raised on, of all ranks.
            slices: This rank's slices of them, None for one of which none is in this update; where it is None itself,
                all are one slice.
            is_on_policy: Whether the weights are those that drew the completions, so that sampling and this pass must
                agree.

        Raises:
            DivergedError: The gradient is not finite; the weights are not moved.
            SamplerGapError: Sampling and this pass disagree about the tokens; the weights are not moved.
        """
        policy = self._policy
        gaps: list[Tensor] = []  # sum and largest of each pass, asked for when all are under way
        own = slices or [Slice(completions, torch.arange(len(completions), device=completions.ids.device))]
        is_sliced = len(own) > 1 or self.world.size > 1
        total = TreeSum(_add_gradients)
        for each in own:
            gaps += [] if each is None else self._differentiate(surrogate, each)
            gradients = dict(policy.take_gradients())
            total.add(self._in_full_width(gradients) if is_sliced else gradients)
        found_gaps = torch.stack(gaps).tolist() if gaps else []
        gradients, found_gaps = self._add_over_ranks(total.total(), found_gaps)
        sums, largest = zip(*found_gaps, strict=True)
        gap_max = max(0.0, *largest)
        gap_mean = sum(sums) / float(completions.lengths.sum())
        if is_on_policy:
            self._check_gap(gap_mean)
        grad_norm = _norm([gradient for _, gradient in gradients])
        if not math.isfinite(grad_norm):
            raise DivergedError(
                f"the gradient is not finite (length {grad_norm}) after {policy.num_updates} updates; "
                "the weights were not changed; try a lower --lr"
            )
        is_long = self._max_grad_norm is not None and grad_norm > self._max_grad_norm
        scale = self._max_grad_norm / grad_norm if self._max_grad_norm is not None and is_long else 1.0
        lr = self.rate_scale * learning_rate(self._config, policy.num_updates // self._updates_per_step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["rate"]
        self._move(gradients, scale)
        policy.moved()
        return UpdateStats(
            grad_norm=grad_norm,
            lr=lr,
            sampler_gap_mean=gap_mean,
            sampler_gap_max=gap_max,
        )

    def skip(self) -> UpdateStats:
        """Skip an update: the weights stay, and the update still counts."""
        self._policy.moved()
        return UpdateStats(grad_norm=0.0, lr=0.0, sampler_gap_mean=0.0, sampler_gap_max=0.0, is_skipped=True)

    def moments(self) -> dict[str, Tensor]:
        """The state by `name/step`, `name/exp_avg` and `name/exp_avg_sq`; averages have the shape of their weight."""
        moments: dict[str, Tensor] = {}
        for name, averages in self._averages.items():
            moments |= {f"{name}/{what}": average for what, average in averages.items()}
            moments[f"{name}/step"] = self.optimiser.state[self._pieces[name][0]]["step"]
        return moments

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Give the optimiser the state that `moments` returned, a tensor at a time.

        The form of klimb 0.1 is read, too, in which a weight's averages were flat pieces: `name/0/exp_avg`, `name/1/…`.

        Raises:
            ArgumentError: Names or shapes are not those of the weights that move; nothing is changed.
        """
        keys = _keys_by_name(moments, self._weights)
        for name, found in keys.items():
            self._require_state(name, found, moments)
        self.optimiser.state.clear()
        self._averages.clear()
        for name, found in keys.items():
            averages = self._add_state(name, moments[found["step"][0]])
            for what in _AVERAGES:
                pieces = averages[what].view(-1).split([moments[key].numel() for key in found[what]])
                for piece, key in zip(pieces, found[what], strict=True):
                    piece.copy_(moments[key].view(-1))

    def _differentiate(self, surrogate: Surrogate, part: Slice) -> list[Tensor]:
        """Add the gradient of a slice to the policy's, and return the sum and the largest of each pass's gaps, (2,)."""
        policy, gaps = self._policy, list[Tensor]()
        micro_batches = part.completions.micro_batches(policy.micro_batch_size)
        for rows in micro_batches:
            completions = part.completions.rows(rows)
            scores = self._score(completions)
            surrogate(scores, part.rows[rows]).backward()
            token_log_probs = scores.log_probs if isinstance(scores, TokenScores) else scores
            if len(micro_batches) > 1:
                policy.widen_gradients()  # in bfloat16 a sum of many would lose what each adds
            gap = (token_log_probs.detach() - completions.token_log_probs).abs()
            gaps.append(torch.stack([gap.sum(), gap.max()]))
        return gaps

    def _in_full_width(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Widen gradients to the dtype of their weights, in which slices are added."""
        if not gradients:
            return gradients
        dtype = next(iter(self._weights.values())).dtype
        return dict(zip(gradients, widened(list(gradients.values()), dtype), strict=True))

    def _add_over_ranks(
        self, gradients: dict[str, Tensor], gaps: list[list[float]]
    ) -> tuple[list[tuple[str, Tensor]], list[list[float]]]:
        """Add this rank's gradients to those of the others, and return them, in the order of weights, with all gaps."""
        missing = [number for number, name in enumerate(self._weights) if name not in gradients]
        found = self.world.gather("gradients", [{"missing": missing, "gaps": gaps}])
        in_none = set.intersection(*(set(part["missing"]) for part in found))
        names = [name for number, name in enumerate(self._weights) if number not in in_none]
        summed = [
            gradients[name] if name in gradients else torch.zeros_like(self._weights[name]) for name in names
        ]
        gradients.clear()
        self.world.sum("gradients", summed)
        return list(zip(names, summed, strict=True)), [gap for part in found for gap in part["gaps"]]

    def _require_state(self, name: str, keys: Mapping[str, list[str]], moments: Mapping[str, Tensor]) -> None:
        """Raise unless a weight's state has all parts that the optimiser keeps, in the weight's shape."""
        expected = _STATE[self._config.optimiser]
        if set(keys) != expected:
            raise ArgumentError(
                f"moments: expected {', '.join(sorted(expected)) or 'nothing'} of {name}, "
                f"got {', '.join(sorted(keys))}"
            )
        shape = self._weights[name].shape
        for what in _AVERAGES:
            shapes = [moments[key].shape for key in keys[what]]
            is_flat = all(len(piece) == 1 for piece in shapes) and len(keys["step"]) == len(shapes)
            if shapes != [shape] and not (is_flat and sum(map(math.prod, shapes)) == shape.numel()):
                raise ArgumentError(
                    f"moments: expected {name}/{what} as {tuple(shape)}, got {', '.join(map(str, map(tuple, shapes)))}"
                )

    def _add_state(self, name: str, step: Tensor | None = None) -> dict[str, Tensor]:
        """Make a weight's averages, zero and in its shape, of which the optimiser gets views, piece by piece."""
        weight = self._weights[name].detach()
        averages = self._averages[name] = {what: torch.zeros_like(weight) for what in _AVERAGES}
        start = torch.zeros((), dtype=torch.float32) if step is None else step
        for number, piece in enumerate(self._pieces[name]):
            views = {what: average.view(-1).split(_PORTION)[number] for what, average in averages.items()}
            self.optimiser.state[piece] = {"step": start.to(weight.device, copy=True), **views}
        return averages

    def _move(self, gradients: list[tuple[str, Tensor]], scale: float) -> None:
        """Let the optimiser move some weights after the others: of few at a time is the gradient held in full width."""
        portion: list[tuple[Tensor, Tensor]] = []
        while gradients:
            name, gradient = gradients.pop()
            if _STATE[self._config.optimiser] and name not in self._averages:
                self._add_state(name)
            most = _PORTION if is_on_cpu(gradient) else _PORTION_ON_GPU
            for piece, part in zip(self._pieces[name], gradient.reshape(-1).split(_PORTION), strict=True):
                portion.append((piece, part))
                if not gradients or sum(piece.numel() for piece, _ in portion) >= most:
                    self._move_together(portion, scale)

    def _move_together(self, portion: list[tuple[Tensor, Tensor]], scale: float) -> None:
        """Move weights by their gradients, in few calls; neither is left behind."""
        pieces = [piece for piece, _ in portion]
        gradients = widened([part for _, part in portion], pieces[0].dtype)
        portion.clear()
        if scale != 1:
            torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
        for piece, gradient in zip(pieces, gradients, strict=True):
            piece.grad = gradient
        self.optimiser.step()
        for piece in pieces:
            piece.grad = None  # now, so that sampling has their memory

    def _check_gap(self, gap: float) -> None:
        if gap > self._max_gap:  # NaN is reported as a gradient that is not finite
            raise SamplerGapError(
                f"sampling and training differ by {gap:.2g} nats per token on average, more than max_logprob_mismatch "
                f"{self._max_gap:g}, after {self._policy.num_updates} updates; the weights were not changed. "
                "The gradient would not be that of the policy that sampled: use --precision float32, or raise "
                "--max-logprob-mismatch if the gap has been creeping up in metrics.jsonl and you accept it"
            )


@torch.no_grad()
def _add_gradients(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the gradients of two branches by name, into the memory of either; where one has none, it is 0."""
    both = [name for name in left if name in right]
    if both:
        torch._foreach_add_([left[name] for name in both], [right[name] for name in both])  # pyright: ignore[reportPrivateImportUsage]
    of_one = {name: gradient for name, gradient in {**left, **right}.items() if name not in both}
    for gradient in of_one.values():
        gradient.add_(0.0)  # −0 + 0 is 0, as where another rank adds zeros
    return left | of_one


def _score_of(policy: Policy, objective: Objective) -> Callable[[Completions], Scores]:
    if objective.needs_exact_scores:
        return functools.partial(policy.token_scores, with_kl=objective.has_exact_kl)
    return policy.log_probs


def _keys_by_name(
    moments: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, dict[str, list[str]]]:
    """Find the keys of each weight's state, by what they are of it; several where they are of pieces, in order."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    for key in moments:
        place, _, what = key.rpartition("/")
        name, _, number = (place, "", "0") if place in weights else place.rpartition("/")
        if name not in weights or not number.isdecimal():
            raise ArgumentError(f"moments: {key} belongs to none of the trained weights")
        found.setdefault(name, {}).setdefault(int(number), {})[what] = key
    by_name: dict[str, dict[str, list[str]]] = {name: {} for name in found}
    for name, pieces in found.items():
        for number in sorted(pieces):
            for what, key in pieces[number].items():
                by_name[name].setdefault(what, []).append(key)
    return by_name


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _norm(gradients: list[Tensor]) -> float:
    """Length of the gradient over all weights, in at least float32."""
    parts = [part for gradient in gradients for part in gradient.reshape(-1).split(_PORTION)]
    if not parts:
        return 0.0
    norms = torch._foreach_norm(  # pyright: ignore[reportPrivateImportUsage]
        parts,
        dtype=_wide(parts[0].dtype),  # which widens all that it is given
    )
    return float(torch.linalg.vector_norm(torch.stack(norms)))
