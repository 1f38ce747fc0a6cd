"""Learning a reward by gradient: a low-rank adapter, or every weight of the backbone.

Axes: n texts, D features, M pairs.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.config.reward import RewardConfig
from klimb.core.preferences import preference_nll, preference_probabilities
from klimb.core.rng import permutation
from klimb.errors import DataError, DivergedError
from klimb.feedback.pairs import Pairs
from klimb.io.progress import show_seconds
from klimb.model.layers import use_fast_layers
from klimb.model.trainable import Lora, add_lora
from klimb.reward.learn.evaluation import evaluate
from klimb.reward.learn.head import Head, fit_head
from klimb.reward.scorer import Scorer

CHOICE_SHARE = 0.1
"""Share of the prompts to learn from (of the texts, where they have none) by which an epoch is chosen instead."""

_TIE_LR = 0.01  # of log ν, which is of order 1 where weights are of order 0.01
_NUM_REPORTS = 10  # of an epoch


@dataclass(frozen=True)
class Epoch:
    """What the weights were worth after a pass over the pairs, by the pairs kept for choosing.

    Attributes:
        number: How many passes there had been; 0 for the linear head on frozen features, where it all starts.
        nll: Mean negative log-likelihood, in nats per pair.
        accuracy: Pairwise accuracy, ties left out.
    """

    number: int
    nll: float
    accuracy: float


@dataclass(frozen=True)
class Tuning:
    """What was done to a scorer's weights.

    Attributes:
        start: The head on frozen features that it started with.
        tie: ν at the end.
        epochs: What each was worth.
        chosen: The one whose weights were kept.
        num_pairs: Pairs that were learned from.
        num_weights: Weights that moved.
        lr: Learning rate after warm-up.
    """

    start: Head
    tie: float
    epochs: list[Epoch]
    chosen: Epoch
    num_pairs: int
    num_weights: int
    lr: float

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file: all but the head, whose weights are in the model."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "chosen": self.chosen.number,
            "num_pairs": self.num_pairs,
            "num_weights": self.num_weights,
            "lr": self.lr,
        }


def tune(
    scorer: Scorer,
    texts: list[list[int]],
    features: Float[np.ndarray, "n D"],
    pairs: Pairs,
    config: RewardConfig,
    say: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Move a scorer's weights from the best linear head on, and keep those of the best epoch.

    min_θ,ν  1/M Σ_m ℓ(s_θ(left) − s_θ(right), o_m)   by AdamW, in batches

    A tenth of the prompts is not learned from: the epoch under which their judgements are likeliest
    is the best one, epoch 0 among them, which is the head that everything starts with.

    Args:
        scorer: Moved in place; an adapter is merged into its weights at the end.
        texts: The pairs' texts, encoded.
        features: What the scorer's head sees of them before anything moves.
        pairs: The pairs, with their outcomes.
        config: The method and its options.
        say: Takes lines of progress.

    Raises:
        DataError: There are too few prompts to keep some for choosing.
        DivergedError: Scores or gradients are no longer finite numbers.
    """
    learned, kept = split_for_choice(pairs, config.seed)
    start = fit_head(features, learned, seed=config.seed)
    scorer.set_head(start.weights)
    num_steps = config.num_epochs * math.ceil(len(learned) / config.batch_size)
    tuner = Tuner(scorer, start.tie, config, num_steps)
    say(
        f"Moving {tuner.num_weights:,} weights in {num_steps:,} steps; {len(learned):,} pairs are learned from, "
        f"{len(kept):,} choose the epoch …"
    )
    epochs = [tuner.judge(texts, kept, 0)]
    say(f"epoch 0, the linear head: {_said(epochs[0])}")
    tuner.remember()
    best = epochs[0]
    for number in range(1, config.num_epochs + 1):
        _learn(tuner, texts, learned, config, number, say)
        epochs.append(tuner.judge(texts, kept, number))
        say(f"epoch {number}: {_said(epochs[-1])}")
        if epochs[-1].nll < best.nll:
            tuner.remember()
            best = epochs[-1]
    tuner.finish()
    return Tuning(start, tuner.tie, epochs, best, len(learned), tuner.num_weights, tuner.lr)


def split_for_choice(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """Split pairs into those to learn from, and those of a tenth of the prompts, which choose the epoch.

    Where texts have no prompt, a pair chooses if either of its texts is of the tenth.

    Raises:
        DataError: There are too few prompts.
    """
    units = pairs.units
    num_units = int(units.max()) + 1
    chosen = np.random.default_rng([seed, 2]).permutation(num_units)[
        : max(1, round(CHOICE_SHARE * num_units))
    ]
    is_kept = np.isin(units[pairs.left], chosen) | np.isin(units[pairs.right], chosen)
    learned, kept = pairs.take(~is_kept), pairs.take(is_kept)
    if not (learned.outcomes != 0).any() or not (kept.outcomes != 0).any():
        raise DataError(
            f"too little feedback for methods lora and full: of {num_units} prompts (or texts) to learn from, "
            f"{len(chosen)} choose the epoch, by {len(kept)} pairs, which leaves {len(learned)} pairs to learn from; "
            "both need one that is not a tie; use --method head"
        )
    return learned, kept


def preference_loss(
    scores: Float[Tensor, " n"],
    pairs: Pairs,
    log_tie: Float[Tensor, ""] | None = None,
    *,
    num_pairs: int,
) -> Float[Tensor, ""]:
    """Find 1/N Σ_m ℓ(s(left) − s(right), o_m), ℓ the negative log-likelihood under Bradley–Terry with ties.

    Differentiable in the scores and in log ν.

    Args:
        scores: s, (n,), of the pairs' texts.
        pairs: The pairs, with their outcomes.
        log_tie: log ν; None for ν = 0.
        num_pairs: N, of the whole batch.
    """
    outcomes = torch.from_numpy(pairs.outcomes).to(scores)
    left, right = (torch.from_numpy(side).to(scores.device) for side in (pairs.left, pairs.right))
    margins = scores[left] - scores[right]
    if log_tie is None:
        return preference_nll(margins, outcomes).sum() / num_pairs
    tie = float(log_tie.detach().exp())
    # ν is a number there; its gradient, dℓ / d log ν = P(tie) − (1 − |o|), comes in on a term that is 0.
    slope = preference_probabilities(margins.detach(), tie)[:, 2] - (outcomes == 0).to(scores)
    nll = preference_nll(margins, outcomes, tie) + slope * (log_tie - log_tie.detach())
    return nll.sum() / num_pairs


def lr_share(step: int, num_steps: int, warmup_share: float) -> float:
    """Find the share of the learning rate in a step, from 0: a linear rise to 1, then a linear fall towards 0."""
    num_warmup = round(warmup_share * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return (num_steps - step) / max(num_steps - num_warmup, 1)


class Tuner:
    """A scorer whose weights move to make what people said likelier.

    Attributes:
        weights: Those that move.
        log_tie: log ν, which moves with them; None where there are no ties.
        lr: Learning rate after warm-up.

    Args:
        scorer: The model; its head has the weights that it starts with. Dropout is off.
        tie: ν at the start; where it is 0 it stays 0.
        config: The method and its options.
        num_steps: How many there will be.
    """

    def __init__(self, scorer: Scorer, tie: float, config: RewardConfig, num_steps: int) -> None:
        self._scorer = scorer
        self._config = config
        self._adapted: Any = None
        model = scorer.model.requires_grad_(True)
        if config.method == "lora":
            adapter = Lora(config.lora_rank, 2.0 * config.lora_rank)
            self._adapted = add_lora(model, adapter, config.seed, "SEQ_CLS")
            use_fast_layers(model)
        bias = getattr(scorer.head, "bias", None)
        if bias is not None:  # no margin depends on it: it would move by rounding alone
            bias.requires_grad_(False)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.log_tie: Tensor | None = None
        groups: list[dict[str, Any]] = [{"params": self.weights}]
        if tie > 0:
            self.log_tie = self.weights[0].new_tensor(math.log(tie)).requires_grad_(True)
            groups.append({"params": [self.log_tie]})
        self.lr = config.used_lr
        self._optimiser = torch.optim.AdamW(groups, lr=self.lr, weight_decay=0.0, fused=True)
        self._num_steps, self._step = num_steps, 0
        self._kept: list[Tensor] = []

    @property
    def num_weights(self) -> int:
        """How many weights move."""
        return sum(weight.numel() for weight in self.weights)

    @property
    def tie(self) -> float:
        """Return ν."""
        return 0.0 if self.log_tie is None else float(self.log_tie.detach().exp())

    def add_gradient(self, texts: list[list[int]], pairs: Pairs) -> float:
        """Add the gradient of the mean over some pairs to the weights' own, and return that mean.

        Each text is read once, however many pairs it stands in. With a micro-batch size the texts are read
        again for the gradient, so many at once, when the scores' own gradient is known: memory is that of a
        micro-batch, and the gradient the same.

        Raises:
            DivergedError: A score is not finite.
        """
        used, batch = _only_used(pairs)
        parts = list(self._scorer.batches([texts[index] for index in used], self._config.micro_batch_size))
        is_one_pass = self._config.micro_batch_size is None or len(parts) == 1
        with torch.set_grad_enabled(is_one_pass):
            by_part = torch.cat([self._scores(inputs) for _, inputs in parts])
        self._require_finite("score", by_part)
        by_part.requires_grad_(True)
        place = np.argsort([row for rows, _ in parts for row in rows])
        scores = by_part[torch.from_numpy(place).to(by_part.device)]
        loss = preference_loss(scores, batch, self.log_tie, num_pairs=len(batch))
        loss.backward()
        if not is_one_pass:
            sizes = [len(rows) for rows, _ in parts]
            for (_, inputs), to_scores in zip(parts, cast("Tensor", by_part.grad).split(sizes), strict=True):
                self._scores(inputs).backward(to_scores)
        return float(loss.detach())

    def step(self, texts: list[list[int]], pairs: Pairs) -> float:
        """Take a step down the mean over some pairs, and return what it was before.

        Raises:
            DivergedError: A score or the gradient is not finite; the weights are not moved.
        """
        loss = self.add_gradient(texts, pairs)
        longest = self._config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.weights, math.inf if longest is None else longest)
        self._require_finite("gradient", norm)
        share = lr_share(self._step, self._num_steps, self._config.warmup_share)
        for group, lr in zip(self._optimiser.param_groups, (self.lr, _TIE_LR), strict=False):
            group["lr"] = share * lr
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._step += 1
        return loss

    def judge(self, texts: list[list[int]], pairs: Pairs, number: int) -> Epoch:
        """Find what the weights are worth by the pairs that are kept for it.

        Raises:
            DivergedError: A score is not finite.
        """
        used, batch = _only_used(pairs)
        scores = self._scorer.scores([texts[index] for index in used])
        self._require_finite("score", torch.from_numpy(scores))
        found = evaluate(scores, batch, self.tie, self._config.seed)
        return Epoch(number, found.nll, found.accuracy)

    @torch.no_grad()
    def remember(self) -> None:
        """Keep everything that moves as it is now, in place of what was kept before."""
        moving = self._moving()
        if self._kept:
            for kept, weight in zip(self._kept, moving, strict=True):
                kept.copy_(weight)
        else:
            self._kept = [weight.detach().clone() for weight in moving]

    @torch.no_grad()
    def finish(self) -> None:
        """Put back what was kept, and merge the adapter: the scorer's model is a plain one again."""
        for weight, kept in zip(self._moving(), self._kept, strict=True):
            weight.copy_(kept)
        if self._adapted is not None:
            self._scorer.model = self._adapted.merge_and_unload().eval()
        self._scorer.model.requires_grad_(False)

    def _moving(self) -> list[Tensor]:
        return [*self.weights, *([] if self.log_tie is None else [self.log_tie])]

    def _scores(self, inputs: Any) -> Float[Tensor, " n"]:
        return self._scorer.model(**inputs).logits[:, 0]

    def _require_finite(self, name: str, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise DivergedError(
                f"a {name} is not finite after {self._step} steps: nothing was written; try a lower --lr than "
                f"{self.lr:g}"
            )


def _learn(
    tuner: Tuner,
    texts: list[list[int]],
    pairs: Pairs,
    config: RewardConfig,
    epoch: int,
    say: Callable[[str], None],
) -> None:
    """Pass over the pairs once, in an order that is counted from the seed."""
    order = permutation(seed=config.seed, epoch=epoch, count=len(pairs))
    batches = [order[first : first + config.batch_size] for first in range(0, len(order), config.batch_size)]
    start, losses = time.perf_counter(), []
    for number, rows in enumerate(batches, start=1):
        losses.append(tuner.step(texts, pairs.take(rows)))
        if number % math.ceil(len(batches) / _NUM_REPORTS) == 0:
            seconds = time.perf_counter() - start
            left = seconds / number * (len(batches) - number)
            say(
                f"epoch {epoch}, step {number:,} of {len(batches):,}: loss {np.mean(losses):.3f}, {seconds:.0f} s, "
                f"about {show_seconds(left)} left of the epoch"
            )
            losses = []


def _only_used(pairs: Pairs) -> tuple[Int[np.ndarray, " n"], Pairs]:
    """Find the texts that stand in the pairs, each once, and the pairs of these alone."""
    used, place = np.unique(np.concatenate([pairs.left, pairs.right]), return_inverse=True)
    left, right = np.split(place, 2)
    prompts, completions = ([side[index] for index in used] for side in (pairs.prompts, pairs.completions))
    return used, Pairs(prompts, completions, left, right, pairs.outcomes)


def _said(epoch: Epoch) -> str:
    return f"pairwise accuracy {epoch.accuracy:.3f}, {epoch.nll:.3f} nats per pair"
