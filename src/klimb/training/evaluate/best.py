"""The best weights of a run and why they were chosen: the content of `best.json`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from klimb.training.evaluate.estimates import REWARD, Estimate, Rows, compare, mean, short_name


@dataclass(frozen=True)
class Evaluated:
    """Weights that were judged.

    Attributes:
        step: Steps until then.
        mean: The judge's mean on the prompts that are judged by.
        difference: Mean difference from the best until then, each prompt with itself; None for the start.
    """

    step: int
    mean: Estimate
    difference: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """The candidate as JSON types; an interval of one prompt is null."""
        difference = None if self.difference is None else _to_dict(self.difference)
        return {"step": self.step, **_to_dict(self.mean), "difference": difference}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Evaluated":
        """Rebuild it from what `to_dict` gave."""
        difference = fields["difference"]
        return cls(fields["step"], _from_dict(fields), None if difference is None else _from_dict(difference))


@dataclass(frozen=True)
class BestSoFar:
    """The weights that are kept, among those that were judged.

    They are those with the highest mean, the earliest of equals. The mean alone decides, so the difference from the
    next best may be within its interval; and the highest of several means flatters the weights that it is of.

    Attributes:
        judge: The judge that chooses, or `REWARD`.
        step: Steps after which the kept weights were; 0 is the start.
        candidates: All that were judged, the start first.
        was_stopped: Whether patience ended the run before its last step.
    """

    judge: str
    step: int
    candidates: tuple[Evaluated, ...]
    was_stopped: bool = False

    @property
    def best(self) -> Evaluated:
        """What is kept."""
        return next(candidate for candidate in self.candidates if candidate.step == self.step)

    @property
    def last(self) -> Evaluated:
        """What was judged last."""
        return self.candidates[-1]

    @property
    def num_since(self) -> int:
        """Evaluations in a row, up to the last, that were no better."""
        return len(self.candidates) - 1 - self.candidates.index(self.best)

    def sentences(self, num_steps: int) -> list[str]:
        """Say for a reader which weights are kept, and why.

        Args:
            num_steps: Steps that the run was to take.
        """
        name = "the reward" if self.judge == REWARD else f"the judge {short_name(self.judge)}"
        if self.step == 0:
            said = [
                f"Nothing was better than the start by {name}, {self.best.mean}: "
                "the weights are kept as they were before training."
            ]
        else:
            said = [
                f"The weights after {self.step} of {self.last.step} steps are kept: "
                f"there {name} was highest, {self.best.mean}."
            ]
        if self.num_since and self.last.difference is not None:
            said.append(
                f"The last weights differ from those by {self.last.difference}, each prompt with itself."
            )
        if self.was_stopped:
            said.append(
                f"The run stopped after {self.last.step} of {num_steps} steps: "
                f"{self.num_since} evaluation{'s' if self.num_since > 1 else ''} in a row brought nothing better."
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON types: first what is kept, then all that was judged."""
        return {
            "step": self.step,
            "judge": self.judge,
            **_to_dict(self.best.mean),
            "num_updates": self.last.step,
            "was_stopped": self.was_stopped,
            "evaluations": [candidate.to_dict() for candidate in self.candidates],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "BestSoFar":
        """Rebuild it from what `to_dict` gave."""
        candidates = tuple(Evaluated.from_dict(candidate) for candidate in fields["evaluations"])
        return cls(fields["judge"], fields["step"], candidates, fields["was_stopped"])


def update_best(best_so_far: BestSoFar | None, best: Rows, rows: Rows, judge: str) -> BestSoFar:
    """Add an evaluation, and find which weights are the best then.

    Args:
        best_so_far: The best until then; None where this evaluation is of the start.
        best: The evaluation of those weights.
        rows: The evaluation to add.
        judge: The judge that chooses, or `REWARD`.
    """
    step, found = rows[0]["step"], mean(rows, judge)
    if best_so_far is None:
        return BestSoFar(judge, step, (Evaluated(step, found),))
    candidate = Evaluated(step, found, compare(best, rows, judge).gain)
    is_best = found.mean > best_so_far.best.mean.mean
    return replace(
        best_so_far,
        candidates=(*best_so_far.candidates, candidate),
        step=step if is_best else best_so_far.step,
    )


def rebuild_best(evaluations: Sequence[Rows], judge: str) -> tuple[BestSoFar, Rows]:
    """Choose among evaluations of a run once more, the start first, and return the evaluation of what is chosen too."""
    best_so_far, best = update_best(None, [], evaluations[0], judge), evaluations[0]
    for rows in evaluations[1:]:
        best_so_far = update_best(best_so_far, best, rows, judge)
        best = rows if best_so_far.step == best_so_far.last.step else best
    return best_so_far, best


def _to_dict(estimate: Estimate) -> dict[str, Any]:
    """A mean and its interval; null where there is no opinion, and no interval of one prompt."""
    mean, half_width = estimate.mean, estimate.half_width
    return {
        "mean": None if math.isnan(mean) else mean,
        "interval": None if math.isnan(half_width) else [mean - half_width, mean + half_width],
    }


def _from_dict(fields: dict[str, Any]) -> Estimate:
    mean, interval = fields["mean"], fields["interval"]
    return Estimate(
        math.nan if mean is None else mean,
        math.nan if interval is None else (interval[1] - interval[0]) / 2,
    )
