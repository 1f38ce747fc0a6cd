"""The observer that writes a run's lines and its report into the run's folder."""

from typing import Any

from klimb.io.progress import Say
from klimb.rl.rollout import Rollout
from klimb.training.evaluate.estimates import Rows
from klimb.training.evaluate.evaluator import completion_rows
from klimb.training.evaluate.summary import Summary
from klimb.training.observer import Observer
from klimb.training.report.card import write_card
from klimb.training.report.report import write_report
from klimb.training.storage.folder import RunFolder


class Recorder(Observer):
    """Appends to `metrics.jsonl`, `completions.jsonl` and `evaluations.jsonl`, and writes `report.html` at the end.

    Args:
        folder: The run's folder.
        say: Takes a line for a person.
    """

    def __init__(self, folder: RunFolder, say: Say) -> None:
        self._folder, self._say = folder, say

    def policy_evaluated(self, rows: Rows, *, is_best: bool = False) -> None:  # noqa: ARG002
        """Append the evaluation's lines."""
        self._folder.append("evaluations", rows)

    def step_finished(self, metrics: dict[str, Any], rollout: Rollout) -> None:
        """Append the step's lines, its metrics first."""
        self._folder.append("metrics", [metrics])
        self._folder.append("completions", completion_rows(rollout, step=metrics["step"]))

    def run_interrupted(self, num_steps: int) -> None:
        """Write the report of the steps so far, if there are any."""
        if num_steps:
            self._say(f"The run so far: {write_report(self._folder)}")

    def run_finished(self, folder: RunFolder, summary: Summary) -> None:
        """Write the model's card, and the report, which makes the run a finished one."""
        write_card(folder, summary)
        write_report(folder)
