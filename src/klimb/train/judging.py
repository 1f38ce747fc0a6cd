"""Judging a policy on the evaluation prompts, before, along and after its run, and keeping the best of its weights."""

import math
from dataclasses import dataclass, replace
from typing import Any

from klimb.errors import RewardError
from klimb.policy.counted import Stream
from klimb.policy.policy import Draw, Policy
from klimb.reward.reward import WeightedSum
from klimb.train.ascent import Ascent
from klimb.train.choice import Candidate, Choice
from klimb.train.config import TrainConfig
from klimb.train.display import Display
from klimb.train.estimates import compare, mean, point
from klimb.train.folder import RunFolder
from klimb.train.prompts import PromptRow
from klimb.train.step import Judged, sample_and_judge

_EVALUATION_BATCH = 64  # completions drawn at once for judging, or fewer by the micro-batch size


@dataclass(frozen=True)
class Evaluator:
    """What a policy is judged by.

    Attributes:
        policy: The policy, as it is when it is judged.
        reward: What is trained on, and the judges.
        rows: The evaluation prompts.
        config: The options of the run.
    """

    policy: Policy
    reward: WeightedSum
    rows: list[PromptRow]
    config: TrainConfig

    def evaluate_start(self) -> list[dict[str, Any]]:
        """Judge the policy as it is before its run.

        Raises:
            RewardError: The judge that the best is kept by has no opinion on any completion.
        """
        rows, judge = self.evaluate("before"), self.config.keep_best
        if judge is not None and math.isnan(mean(rows, judge).mean):
            raise RewardError(
                f"reward {judge}: returned None for every completion of the evaluation prompts, so the best "
                "cannot be kept by it; choose another --keep-best"
            )
        return rows

    def evaluate(self, when: str) -> list[dict[str, Any]]:
        """Judge the policy; every time draws with the same random numbers, which pairs them."""
        group = self.config.eval_completions_per_prompt
        at_once = max(_EVALUATION_BATCH // group, 1)
        evaluation = []
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
            )
            evaluation += completion_rows(judged, start, when=when, step=self.policy.num_updates)
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
        self, judge: str, folder: RunFolder, policy: Policy, ascent: Ascent, config: TrainConfig
    ) -> None:
        self._judge = judge
        self.choice: Choice | None = None
        self._folder, self._policy, self._ascent, self._config = folder, policy, ascent, config
        self._best_rows: list[dict[str, Any]] = []

    def consider(self, rows: list[dict[str, Any]]) -> bool:
        """Take note of an evaluation of the weights as they are, and say whether they are the best so far."""
        step, found, old = self._policy.num_updates, mean(rows, self._judge), self.choice
        if old is None:
            self._keep(Choice(self._judge, step, (Candidate(step, found),)), rows)
            return True
        candidate = Candidate(step, found, compare(self._best_rows, rows, self._judge).gain)
        choice = replace(old, candidates=(*old.candidates, candidate))
        is_best = found.mean > old.best.mean.mean
        if is_best:
            self._keep(replace(choice, step=step), rows)
            if old.step == 0 or old.step % self._config.checkpoint_every:
                self._folder.remove_checkpoint(old.step)  # it was there as the best alone
        else:
            self._note(choice)
        return is_best

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

    def _keep(self, choice: Choice, rows: list[dict[str, Any]]) -> None:
        self._folder.save_checkpoint(self._policy, self._ascent)
        self._note(choice)
        self._best_rows = rows

    def _note(self, choice: Choice) -> None:
        self._folder.write_choice(choice)
        self.choice = choice


class Watch:
    """Judges a policy before, along and after its run, writes and shows what it finds, and keeps the best if asked."""

    def __init__(self, evaluator: Evaluator, folder: RunFolder, ascent: Ascent, display: Display) -> None:
        self._evaluator, self._folder, self._display = evaluator, folder, display
        self._policy, self._config = evaluator.policy, evaluator.config
        self._latest: list[dict[str, Any]] = []
        self._keeper = (
            None
            if self._config.keep_best is None
            else Keeper(self._config.keep_best, folder, self._policy, ascent, self._config)
        )

    @property
    def choice(self) -> Choice | None:
        """Which weights are the best so far; None where the last are kept."""
        return None if self._keeper is None else self._keeper.choice

    def start(self, before: list[dict[str, Any]]) -> None:
        """Take note of how the policy was judged before its run."""
        self._note(before)

    def look(self) -> bool:
        """Judge the policy if it is time to, and say whether the run goes on."""
        config, step = self._config, self._policy.num_updates
        is_last = step == config.num_steps
        if config.eval_every is None or (step % config.eval_every and not is_last):
            return True
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

    def _note(self, rows: list[dict[str, Any]]) -> None:
        self._latest = rows
        self._folder.append("evaluations", rows)
        is_best = self._keeper is not None and self._keeper.consider(rows)
        if self._config.eval_every is not None:
            self._display.judged(point(rows, self._config.judges), is_best=is_best)


def completion_rows(judged: Judged, first_index: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """A row for each completion, as `completions.jsonl` and `evaluations.jsonl` have them.

    Args:
        judged: The completions.
        first_index: The number of the first of their prompts.
        columns: What stands first in every row.
    """
    lengths = judged.completions.lengths.tolist()
    return [
        columns
        | {
            "prompt_index": first_index + owner,
            "prompt": judged.rows[owner].prompt,
            "completion": judged.texts[index],
            "reward": judged.rewards.total[index],
            "rewards": {name: values[index] for name, values in judged.rewards.parts.items()},
            "kl": judged.kl[index],
            "length": lengths[index],
            "finish_reason": judged.completions.finish_reasons[index],
        }
        for index, owner in enumerate(judged.completions.prompt_of.tolist())
    ]
