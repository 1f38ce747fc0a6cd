"""Evaluations of a run: when the policy is evaluated, and which of its weights are kept."""

from collections.abc import Sequence
from dataclasses import replace

from klimb.training.evaluate.best import BestSoFar, rebuild_best, update_best
from klimb.training.evaluate.estimates import Rows
from klimb.training.evaluate.evaluator import Evaluator
from klimb.training.observer import Observer
from klimb.training.storage.checkpoints import Checkpoints
from klimb.training.storage.folder import RunFolder


class BestCheckpoint:
    """Keeps the best weights of a run as a checkpoint, which is there whatever happens to the run.

    The best have the highest mean of one judge on the evaluation prompts; the start is one of the candidates. The mean
    alone decides; the interval of a difference is recorded beside it. The checkpoint of the former best is removed,
    unless the run writes it anyway.

    Args:
        judge: The judge that chooses, or `REWARD`.
        patience: Evaluations in a row without a new best after which the run stops; never where None.
        folder: Where `best.json` is.
        checkpoints: Writes and restores the weights.

    Attributes:
        best: The best so far; None before the start was evaluated.
    """

    def __init__(self, judge: str, patience: int | None, folder: RunFolder, checkpoints: Checkpoints) -> None:
        self.best: BestSoFar | None = None
        self._judge, self._patience, self._folder, self._checkpoints = judge, patience, folder, checkpoints
        self._best_rows: Rows = []

    def would_be_best(self, rows: Rows) -> bool:
        """Whether these weights are better than all before."""
        return update_best(self.best, self._best_rows, rows, self._judge).step == rows[0]["step"]

    def update(self, rows: Rows) -> None:
        """Add an evaluation of the present weights; they are saved where they are the best so far."""
        old, best = self.best, update_best(self.best, self._best_rows, rows, self._judge)
        is_best = old is None or best.step != old.step
        if is_best:
            self._checkpoints.save()
            self._best_rows = rows
        self._record(best)
        if is_best:
            self._checkpoints.set_best(best.step)

    def rebuild(self, evaluations: Sequence[Rows]) -> None:
        """Find the best once more from the evaluations of an interrupted run, the start first."""
        best, self._best_rows = rebuild_best(evaluations, self._judge)
        self._checkpoints.best = best.step
        self._record(best)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether so many evaluations in a row as are allowed brought nothing better."""
        return self._patience is not None and self.best is not None and self.best.num_since >= self._patience

    def record_stop(self) -> None:
        """Record that the run stops here for want of anything better."""
        if self.best is not None:
            self._record(replace(self.best, was_stopped=True))

    def _record(self, best: BestSoFar) -> None:
        self._folder.write_best(best)
        self.best = best


class EvaluationLoop:
    """Evaluates a policy before, along and after its run, and keeps the best weights if asked.

    Args:
        evaluator: Evaluates the policy as it is.
        checkpoints: Writes and restores the weights.
        folder: The run's folder.
        observer: Receives each evaluation.
    """

    def __init__(
        self, evaluator: Evaluator, checkpoints: Checkpoints, folder: RunFolder, observer: Observer
    ) -> None:
        config = evaluator.config
        self._evaluator, self._checkpoints, self._observer = evaluator, checkpoints, observer
        self._config = config
        self._latest: Rows = []
        self._best = None
        if config.keep_best is not None:
            self._best = BestCheckpoint(config.keep_best, config.patience, folder, checkpoints)

    @property
    def best(self) -> BestSoFar | None:
        """Which weights are the best so far; None where the last are kept."""
        return None if self._best is None else self._best.best

    def start(self, before: Rows) -> None:
        """Record the evaluation of the policy before its run."""
        self._record(before)

    def rebuild(self, evaluations: Sequence[Rows]) -> None:
        """Take up the evaluations of an interrupted run; nothing is evaluated, written or shown again."""
        self._latest = evaluations[-1]
        if self._best is not None:
            self._best.rebuild(evaluations)

    def evaluate_if_due(self, step: int) -> bool:
        """Evaluate the policy if it is time to, and return whether the run continues."""
        config, is_last = self._config, step == self._config.num_steps
        if config.eval_every is None or (step % config.eval_every and not is_last):
            return True
        if self._latest[0]["step"] != step:  # else it was evaluated before the run was interrupted
            self._record(self._evaluator.evaluate(f"step-{step:06d}", step))
        if self._best is None or is_last or not self._best.is_out_of_patience:
            return True
        self._best.record_stop()
        return False

    def restore_best(self, step: int) -> int:
        """Give the policy the weights that are kept, and return the step that they are of.

        Args:
            step: Steps taken.
        """
        best = self.best
        if best is None:
            return step
        if best.step != step:
            self._checkpoints.restore_weights(best.step)
        self._observer.best_chosen(best, self._config.num_steps)
        return best.step

    def final_evaluation(self, step: int) -> None:
        """Evaluate the policy with the weights that are kept, those of `step`."""
        if self._latest[0]["step"] == step:  # it has been evaluated as it is
            after = [row | {"when": "after"} for row in self._latest]
        else:
            self._observer.evaluation_started("after", len(self._evaluator.rows))
            after = self._evaluator.evaluate("after", step)
        self._observer.policy_evaluated(after)

    def _record(self, rows: Rows) -> None:
        self._latest = rows
        is_best = self._best is not None and self._best.would_be_best(rows)
        self._observer.policy_evaluated(rows, is_best=is_best)
        if self._best is not None:
            self._best.update(rows)
