"""The surrogate of an update: log-probs, summed with their score weights.

Axes: N completions of an update, n of a micro-batch, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from klimb.config.train import TrainConfig
from klimb.core.aggregation import aggregation, count_denominators
from klimb.core.objective import Objective
from klimb.core.score_weights import ScoreWeights, TokenBatch, find_score_weights
from klimb.core.surrogate import reinforce
from klimb.errors import ArgumentError, DivergedError, KlimbError, LogRatioError
from klimb.policy.completions import Completions
from klimb.policy.scores import TokenScores

Scores = Tensor | TokenScores
"""Log-probs of tokens, (n, T), differentiable; with their exact KL and entropy where an objective needs these."""

Surrogate = Callable[[Any, Tensor], Tensor]
"""(scores of tokens, and which rows of the update they are (n,)) → a scalar to be raised."""


@dataclass
class WeightStats:
    """Statistics of the score weights over the tokens of updates.

    Attributes:
        parts: Of each micro-batch, in order, sums over its tokens by name, `masked` ones count tokens, and the largest
            ratio as `ratio_max`.
    """

    parts: list[dict[str, float]] = field(default_factory=list)

    def add(self, found: ScoreWeights) -> None:
        """Add those of a micro-batch."""
        is_token, ratios = found.is_token, found.ratios
        is_clipped = is_token & (found.trust == 0) & (ratios > 0)
        size = found.weights.abs()
        counts = {
            "tokens": is_token,
            "ratio": ratios.where(is_token, ratios.new_zeros(())),
            "clipped_low": is_clipped & (ratios < 1),
            "clipped_high": is_clipped & (ratios > 1),
            "weight": size,
            "weight_squared": size * size,
            **{f"masked_{name}": mask for name, mask in found.masked.items()},
        }
        if "correction" in found.masked:
            counts["correction"] = found.correction.where(is_token, ratios.new_zeros(()))
        sums = {name: float(values.sum(dtype=torch.float64)) for name, values in counts.items()}
        self.parts.append(sums | {"ratio_max": float(counts["ratio"].max())})

    def add_exact(self, scores: TokenScores) -> None:
        """Add the exact KL of the micro-batch that was added last."""
        self.parts[-1]["exact_kl"] = float(scores.kl.detach().sum(dtype=torch.float64))

    def metrics(self) -> dict[str, float]:
        """Give the mean and largest ratio, the shares of tokens left out, and the effective share (Σ|c|)² / (n Σc²)."""
        sums: dict[str, float] = {}
        for part in self.parts:
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        num_tokens = sums.get("tokens", 0.0)
        if not num_tokens:
            return {}
        shares = {
            name: total / num_tokens
            for name, total in sums.items()
            if name.startswith(("clipped_", "masked_"))
        }
        squares = num_tokens * sums["weight_squared"]
        return {
            "ratio_mean": sums["ratio"] / num_tokens,
            "ratio_max": max(0.0, *(part["ratio_max"] for part in self.parts)),
            **shares,
            **({"correction_mean": sums["correction"] / num_tokens} if "correction" in sums else {}),
            **({"exact_kl": sums["exact_kl"] / num_tokens} if "exact_kl" in sums else {}),
            "effective_share": sums["weight"] ** 2 / squares if squares else 0.0,
        }


@dataclass(frozen=True)
class SumOfCompletions:
    """The definition: each completion's summed log-prob by its advantage, divided by their number.

    Attributes:
        advantages: Of each completion, (N,).
    """

    advantages: Float[Tensor, " N"]

    def __call__(self, log_probs: Float[Tensor, "n T"], rows: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Sum a micro-batch: tokens first, so that one multiplication is made for a completion."""
        return reinforce(log_probs.sum(dim=1), self.advantages[rows], len(self.advantages))


class SumOfTokens:
    """Each token's log-prob by its score weight.

    Args:
        objective: The objective.
        completions: Those of the update, all of which count.
        advantages: Of their tokens, (N, T).
        ref_log_probs: log π_ref of their tokens, (N, T); None where no term needs it.
        max_length: Most tokens of a completion.
        old_log_probs: log π_old of their tokens, (N, T), where the objective corrects for the sampler; where that is
            None the present weights are those that drew, and this update's own pass finds it. Without a correction,
            what the sampler recorded stands for it.
        numbers: Which completions of the step these are, (N,), for errors; in order from 0 where None.
    """

    def __init__(
        self,
        objective: Objective,
        completions: Completions,
        advantages: Float[Tensor, "N T"],
        ref_log_probs: Float[Tensor, "N T"] | None,
        max_length: int,
        old_log_probs: Float[Tensor, "N T"] | None = None,
        numbers: Int[Tensor, " N"] | None = None,
    ) -> None:
        self.stats = WeightStats()
        self._numbers = torch.arange(len(completions)) if numbers is None else numbers
        self._objective = objective
        recorded = completions.token_log_probs
        self._is_old = objective.corrects_sampler and old_log_probs is None
        self._batch = TokenBatch(
            completions.mask,
            advantages,
            recorded if old_log_probs is None else old_log_probs,
            ref_log_probs,
            recorded if objective.corrects_sampler else None,
        )
        self._denominators = count_denominators(
            completions.lengths, completions.prompt_of, max_length=max_length
        )

    def __call__(self, scores: Scores, rows: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Weigh the tokens of a micro-batch by numbers that are found from their present log-probs."""
        log_probs = scores.log_probs if isinstance(scores, TokenScores) else scores
        columns = log_probs.shape[1]
        batch, present = self._batch.rows((rows, slice(columns))), log_probs.detach()
        if self._is_old:
            batch = replace(batch, old_log_probs=present)
        denominators = self._denominators.rows(rows)
        try:
            found = find_score_weights(present, batch, self._objective, denominators)
        except ArgumentError as error:
            raise self._diverged(error, present, rows) from error
        self.stats.add(found)
        total = (found.weights * log_probs).sum()
        if isinstance(scores, TokenScores):
            self.stats.add_exact(scores)
            lengths = found.is_token.sum(dim=1).to(log_probs.dtype)
            weights = aggregation(lengths, self._objective.aggregation, denominators)
            total = total + exact_terms(scores, weights, self._objective)
        return total

    def _diverged(
        self, error: ArgumentError, log_probs: Float[Tensor, "n T"], rows: Int[Tensor, " n"]
    ) -> KlimbError:
        """Name the token of the step that has no score weight; other errors stay as they are."""
        if isinstance(error, LogRatioError):
            row, token, remedy = error.completion, error.token, error.remedy
            found = f"its log-ratio of {error.log_ratio:.4g} nats is too large to be exponentiated"
        elif not bool(log_probs.isfinite().all()):
            row, token = (~log_probs.isfinite()).nonzero()[0].tolist()
            found, remedy = f"its log-prob is {float(log_probs[row, token])}", "lower lr"
        else:
            return error
        number = int(self._numbers[int(rows[row])])
        return DivergedError(f"completion {number} of the step, token {token}: {found}; {remedy}")


def exact_terms(
    scores: TokenScores, weights: Float[Tensor, "n 1"], objective: Objective
) -> Float[Tensor, ""]:
    """Sum −β KL_it + η H_it by the aggregation's weights: what no score weight can express.

    Args:
        scores: The exact KL and entropy at each token.
        weights: a, (n, 1).
        objective: The objective.

    Raises:
        DivergedError: A KL or an entropy is not finite.
    """
    total = weights.new_zeros(())
    for coefficient, values, name in (
        (-objective.beta if objective.has_exact_kl else 0.0, scores.kl, "KL from the reference"),
        (objective.entropy_coefficient, scores.entropy, "entropy"),
    ):
        if coefficient == 0:
            continue
        if not bool(values.detach().isfinite().all()):
            raise DivergedError(f"the exact {name} is not finite; try a lower --lr")
        total = total + coefficient * (weights * values).sum()
    return total


def make_surrogate(
    config: TrainConfig,
    completions: Completions,
    advantages: Float[Tensor, "N T"] | Float[Tensor, " N"],
    ref_log_probs: Float[Tensor, "N T"] | None,
    old_log_probs: Float[Tensor, "N T"] | None = None,
    numbers: Int[Tensor, " N"] | None = None,
) -> SumOfCompletions | SumOfTokens:
    """Make the surrogate of an update; advantages with one axis are per completion."""
    if advantages.ndim == 1:
        return SumOfCompletions(advantages)
    objective, longest = config.algorithm, config.max_new_tokens
    return SumOfTokens(
        objective, completions, advantages, ref_log_probs, longest, old_log_probs, numbers=numbers
    )


def cut_to_rows(
    completions: Completions, array: Tensor, rows: Int[Tensor, " n"] | Bool[Tensor, " N"]
) -> Tensor:
    """Take rows of an array of tokens (N, T), cut to `completions`, which are those rows."""
    return array[rows, : completions.ids.shape[1]] if array.ndim == 2 else array[rows]
