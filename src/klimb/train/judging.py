"""Judging a policy on the evaluation prompts, before, along and after its run, and keeping the best of its weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from klimb.errors import RewardError
from klimb.policy.counted import Stream
from klimb.policy.policy import Draw, Policy
from klimb.progress import Progress, Say, ignore
from klimb.reward.failures import Tolerance
from klimb.reward.reward import WeightedSum
from klimb.train.choice import Choice, recall, weigh
from klimb.train.config import TrainConfig
from klimb.train.display import Display
from klimb.train.estimates import Rows, mean, point
from klimb.train.folder import RunFolder
from klimb.train.memory import EVALUATED_AT_ONCE
from klimb.train.prompts import PromptRow
from klimb.train.retention import Checkpoints
from klimb.train.step import Judged, sample_and_judge, trainer_state


@dataclass(frozen=True)
class Evaluator:
    """What a policy is judged by.

    Attributes:
        policy: The policy, as it is when it is judged.
        reward: What is trained on, and the judges.
        rows: The evaluation prompts.
        config: The options of the run.
        num_prompts: How many prompts are trained on; as many as the evaluation has where None.
        say: Is told how far it is.
    """

    policy: Policy
    reward: WeightedSum
    rows: list[PromptRow]
    config: TrainConfig
    num_prompts: int | None = None
    say: Say = ignore

    def evaluate_start(self) -> list[dict[str, Any]]:
        """Judge the policy as it is before its run.

        Raises:
            RewardError: Rewards failed for more completions than may fail, or the judge that the best is kept by has no
                opinion on any.
        """
        rows, judge = self.evaluate("before"), self.config.keep_best
        if judge is not None and math.isnan(mean(rows, judge).mean):
            raise RewardError(
                f"reward {judge}: returned None for every completion of the evaluation prompts, so the best "
                "cannot be kept by it; choose another --keep-best"
            )
        return rows

    def evaluate(self, when: str) -> list[dict[str, Any]]:
        """Judge the policy; every time draws with the same random numbers, which pairs them.

        Raises:
            RewardError: Rewards failed for more completions than may fail.
        """
        group = self.config.eval_completions_per_prompt
        at_once = max(EVALUATED_AT_ONCE // group, 1)
        evaluation = []
        tolerance = Tolerance(self.config.max_failed, group * len(self.rows))
        num_prompts = self.num_prompts or len(self.rows)
        state = trainer_state(self.config, num_prompts, self.policy.num_updates)
        progress = Progress("judging", group * len(self.rows), "completions", self.say)
        for start in range(0, len(self.rows), at_once):
            part = self.rows[start : start + at_once]
            indices = list(range(start, start + len(part)))
            judged = sample_and_judge(
                self.policy,
                self.reward,
                part,
                completions_per_prompt=group,
                max_new_tokens=self.config.max_new_tokens,
                draw=Draw(self.config.seed, 0, indices, Stream.EVALUATE),
                state=state,
            )
            tolerance.take(judged.rewards.failures)
            evaluation += completion_rows(judged, start, when=when, step=self.policy.num_updates)
            progress.advance(group * len(part))
        return evaluation


class Keeper:
    """Keeps the best weights of a run as a checkpoint, which is there whatever happens to the run.

    The best are those of the highest mean of one judge on the evaluation prompts; the start is one of the
    candidates. The mean alone decides; how sure a difference is, is recorded beside it. What was the best until then
    is removed, unless it is a checkpoint that the run writes anyway.

    Attributes:
        choice: The best so far, among those that were judged; None before the start was.
    """

    def __init__(
        self, judge: str, folder: RunFolder, policy: Policy, checkpoints: Checkpoints, config: TrainConfig
    ) -> None:
        self._judge = judge
        self.choice: Choice | None = None
        self._folder, self._policy, self._checkpoints, self._config = folder, policy, checkpoints, config
        self._best_rows: Rows = []

    def consider(self, rows: Rows) -> bool:
        """Take note of an evaluation of the weights as they are, and say whether they are the best so far."""
        old, choice = self.choice, weigh(self.choice, self._best_rows, rows, self._judge)
        is_best = old is None or choice.step != old.step
        if is_best:
            self._checkpoints.save()
            self._best_rows = rows
        self._note(choice)
        if is_best:
            self._checkpoints.prefer(choice.step)
        return is_best

    def recall(self, evaluations: Sequence[Rows]) -> None:
        """Take note once more of what an interrupted run had found, the start first."""
        choice, self._best_rows = recall(evaluations, self._judge)
        self._checkpoints.best = choice.step
        self._note(choice)

    def is_out_of_patience(self) -> bool:
        """Whether so many evaluations in a row as are allowed brought nothing better."""
        patience = self._config.patience
        return patience is not None and self.choice is not None and self.choice.num_since >= patience

    def stop(self) -> None:
        """Take note that the run ends here for want of anything better."""
        if self.choice is not None:
            self._note(replace(self.choice, was_stopped=True))

    def restore(self) -> None:
        """Give the policy its best weights back."""
        if self.choice is not None and self.choice.step != self._policy.num_updates:
            self._folder.load_weights(self._policy, self.choice.step)

    def _note(self, choice: Choice) -> None:
        self._folder.write_choice(choice)
        self.choice = choice


class Watch:
    """Judges a policy before, along and after its run, writes and shows what it finds, and keeps the best if asked."""

    def __init__(
        self, evaluator: Evaluator, folder: RunFolder, checkpoints: Checkpoints, display: Display
    ) -> None:
        self._evaluator, self._folder, self._display = evaluator, folder, display
        self._policy, self._config = evaluator.policy, evaluator.config
        self._latest: Rows = []
        self._keeper = (
            None
            if self._config.keep_best is None
            else Keeper(self._config.keep_best, folder, self._policy, checkpoints, self._config)
        )

    @property
    def choice(self) -> Choice | None:
        """Which weights are the best so far; None where the last are kept."""
        return None if self._keeper is None else self._keeper.choice

    def start(self, before: Rows) -> None:
        """Take note of how the policy was judged before its run."""
        self._note(before)

    def recall(self, evaluations: Sequence[Rows]) -> None:
        """Take note of what an interrupted run had found; nothing is judged, written or shown again."""
        self._latest = evaluations[-1]
        if self._keeper is not None:
            self._keeper.recall(evaluations)

    def look(self) -> bool:
        """Judge the policy if it is time to, and say whether the run goes on."""
        config, step = self._config, self._policy.num_updates
        is_last = step == config.num_steps
        if config.eval_every is None or (step % config.eval_every and not is_last):
            return True
        if self._latest[0]["step"] != step:  # else it was judged before the run was interrupted
            self._note(self._evaluator.evaluate(f"step-{step:06d}"))
        if self._keeper is None or is_last or not self._keeper.is_out_of_patience():
            return True
        self._keeper.stop()
        return False

    def settle(self) -> None:
        """Give the policy the weights that are kept."""
        if self._keeper is not None and self._keeper.choice is not None:
            self._keeper.restore()
            self._display.chosen(self._keeper.choice, self._config.num_steps)

    def finish(self) -> None:
        """Judge the policy with the weights that are kept."""
        if self._latest[0]["step"] == self._policy.num_updates:  # as it is, it has been judged
            after = [row | {"when": "after"} for row in self._latest]
        else:
            self._display.evaluating("after", len(self._evaluator.rows))
            after = self._evaluator.evaluate("after")
        self._folder.append("evaluations", after)

    def _note(self, rows: Rows) -> None:
        self._latest = rows
        self._folder.append("evaluations", rows)
        is_best = self._keeper is not None and self._keeper.consider(rows)
        if self._config.eval_every is not None:
            self._display.judged(point(rows, self._config.judges), is_best=is_best)


def completion_rows(judged: Judged, first_index: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """A row for each completion, as `completions.jsonl` and `evaluations.jsonl` have them: where a reward failed, why.

    What reward functions logged stands under `extra`, and what the prompt opened of the completion under `opening`,
    where there is anything.

    Args:
        judged: The completions.
        first_index: The number of the first of their prompts.
        columns: What stands first in every row.
    """
    lengths, reasons = judged.completions.lengths.tolist(), judged.rewards.reasons
    extra, openings = judged.rewards.extra, judged.openings
    return [
        columns
        | {
            "prompt_index": first_index + owner,
            "prompt": judged.rows[owner].prompt,
            "completion": judged.texts[index],
            "reward": judged.rewards.total[index],
            "rewards": {name: values[index] for name, values in judged.rewards.parts.items()},
            **({} if judged.kl is None else {"kl": judged.kl[index]}),
            "length": lengths[index],
            "finish_reason": judged.completions.finish_reasons[index],
            "failure": reasons.get(index),
        }
        | ({"extra": {name: values[index] for name, values in extra.items()}} if extra else {})
        | ({"opening": openings[index]} if openings and openings[index] else {})
        for index, owner in enumerate(judged.completions.prompt_of.tolist())
    ]
