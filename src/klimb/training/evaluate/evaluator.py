"""Evaluates a policy: samples completions of the evaluation prompts and scores them with rewards and judges."""

import math
from dataclasses import dataclass
from typing import Any

from klimb.config.train import TrainConfig
from klimb.core.rng import Stream
from klimb.data.prompts import PromptRow
from klimb.errors import RewardError
from klimb.io.progress import Progress, Say, ignore
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.failures import Failure, Tolerance
from klimb.reward.reward import WeightedSum
from klimb.rl.rollout import Rollout, rollout, trainer_state
from klimb.rl.sampler import Sampler
from klimb.training.evaluate.estimates import mean
from klimb.world import ALONE, World

EVALUATED_AT_ONCE = 64
"""Completions that an evaluation draws and scores at once."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a policy on prompts.

    Attributes:
        policy: The policy, evaluated as it is at the time.
        reward: What is trained on, and the judges.
        rows: The evaluation prompts.
        config: The options of the run.
        num_prompts: How many prompts are trained on; as many as the evaluation has where None.
        say: Takes lines about how far an evaluation is.
        sampler: What draws the completions; the policy itself where None.
        world: The ranks, which share the prompts.
    """

    policy: Policy
    reward: WeightedSum
    rows: list[PromptRow]
    config: TrainConfig
    num_prompts: int | None = None
    say: Say = ignore
    sampler: Sampler | None = None
    world: World = ALONE

    def evaluate_start(self) -> list[dict[str, Any]]:
        """Evaluate the policy as it is before its run.

        Raises:
            RewardError: Rewards failed for more completions than may fail, or the judge that the best is kept by has no
                opinion on any.
        """
        rows, judge = self.evaluate("before", 0), self.config.keep_best
        if judge is not None and math.isnan(mean(rows, judge).mean):
            raise RewardError(
                f"reward {judge}: returned None for every completion of the evaluation prompts, so it "
                "cannot select the best weights; choose another --keep-best"
            )
        return rows

    def evaluate(self, when: str, step: int) -> list[dict[str, Any]]:
        """Evaluate the policy; each evaluation draws with the same random numbers, which pairs them.

        Args:
            when: `before`, `after` or `step-000010`, as its lines say.
            step: Steps that the policy was trained for.

        Raises:
            RewardError: Rewards failed for more completions than may fail.
        """
        group, num_rows = self.config.eval_completions_per_prompt, len(self.rows)
        at_once = min(max(EVALUATED_AT_ONCE // group, 1), math.ceil(num_rows / (self.config.num_slices or 1)))
        starts = range(0, num_rows, at_once)
        evaluation: list[dict[str, Any]] = []
        tolerance = Tolerance(self.config.max_failed, group * num_rows)
        progress = Progress("judging", group * num_rows, "completions", self.say)
        for first in range(
            0, len(starts), self.world.size
        ):  # each rank evaluates some prompts at the same time
            own = starts[first : first + self.world.size][self.world.rank : self.world.rank + 1]
            parts = [self._evaluate_some(start, at_once, when, step) for start in own]
            for part in self.world.gather("evaluation", parts):
                tolerance.take([Failure(*failure) for failure in part["failures"]])
                evaluation += part["rows"]
                progress.advance(len(part["rows"]))
        return evaluation

    def _evaluate_some(self, start: int, count: int, when: str, step: int) -> dict[str, Any]:
        """Evaluate the policy on some of the prompts: its rows, and what failed."""
        part = self.rows[start : start + count]
        drawn = rollout(
            self.policy,
            self.reward,
            part,
            completions_per_prompt=self.config.eval_completions_per_prompt,
            max_new_tokens=self.config.max_new_tokens,
            key=SampleKey(self.config.seed, 0, list(range(start, start + len(part))), Stream.EVALUATE),
            state=trainer_state(self.config, self.num_prompts or len(self.rows), step),
            sampler=self.sampler,
        )
        failures = [[f.index, f.num_completions, f.text, f.reason] for f in drawn.rewards.failures]
        return {"rows": completion_rows(drawn, start, when=when, step=step), "failures": failures}


def completion_rows(rollout: Rollout, first_index: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """A row for each completion, as `completions.jsonl` and `evaluations.jsonl` have them: where a reward failed, why.

    What reward functions logged stands under `extra`, and what the prompt opened of the completion under `opening`,
    where there is anything.

    Args:
        rollout: The completions.
        first_index: The number of the first of their prompts.
        columns: What stands first in every row.
    """
    lengths, reasons = rollout.completions.lengths.tolist(), rollout.rewards.reasons
    extra, openings = rollout.rewards.extra, rollout.openings
    return [
        columns
        | {
            "prompt_index": first_index + owner,
            "prompt": rollout.rows[owner].prompt,
            "completion": rollout.texts[index],
            "reward": rollout.rewards.total[index],
            "rewards": {name: values[index] for name, values in rollout.rewards.parts.items()},
            **({} if rollout.kl is None else {"kl": rollout.kl[index]}),
            "length": lengths[index],
            "finish_reason": rollout.completions.finish_reasons[index],
            "failure": reasons.get(index),
        }
        | ({"extra": {name: values[index] for name, values in extra.items()}} if extra else {})
        | ({"opening": openings[index]} if openings and openings[index] else {})
        for index, owner in enumerate(rollout.completions.prompt_of.tolist())
    ]
