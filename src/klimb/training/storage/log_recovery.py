"""Recovers a run's logs after a crash: which lines are complete, and where to cut the rest."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klimb.io.atomic import shorten


@dataclass(frozen=True)
class StepLines:
    """Lines that a run has written step by step: `metrics.jsonl` or `completions.jsonl`.

    Attributes:
        file: The file.
        ends: Bytes up to the end of each step's last line, for the steps 0, 1, 2, … without a gap.
    """

    file: Path
    ends: list[int]

    @classmethod
    def scan(cls, file: Path) -> "StepLines":
        """Read a file as far as its lines are whole and its steps follow one another; none where it is missing."""
        ends: list[int] = []
        for end, row in _lines(file):
            step = row.get("step")
            if ends and step == len(ends) - 1:
                ends[-1] = end
            elif step == len(ends):
                ends.append(end)
            else:
                break
        return cls(file, ends)

    def cut(self, num_steps: int) -> None:
        """Keep the lines of the first so many steps, of which there must be as many."""
        if self.file.is_file():
            shorten(self.file, self.ends[num_steps - 1] if num_steps else 0)


@dataclass(frozen=True)
class Evaluation:
    """What was found at one time.

    Attributes:
        when: `before`, `after`, or the step's name.
        rows: A row for each completion.
        end: Bytes up to the end of its last line.
    """

    when: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    end: int = 0

    @property
    def step(self) -> int:
        """Steps until then."""
        return self.rows[0]["step"]


@dataclass(frozen=True)
class EvaluationLines:
    """The whole evaluations in `evaluations.jsonl`.

    Attributes:
        file: The file.
        along: The start and those along the run, by their steps, as far as they are whole.
        after: What is judged at the end, where that is there whole.
    """

    file: Path
    along: list[Evaluation]
    after: Evaluation | None

    @classmethod
    def scan(cls, file: Path) -> "EvaluationLines":
        """Read a file as far as its evaluations are whole, which is each with as many completions as the first."""
        found: list[Evaluation] = []
        for end, row in _lines(file):
            if "when" not in row or "step" not in row:
                break
            if not found or found[-1].when != row["when"]:
                found.append(Evaluation(row["when"]))
            found[-1].rows.append(row)
            found[-1] = Evaluation(row["when"], found[-1].rows, end)
        whole: list[Evaluation] = []
        for evaluation in found:
            if len(evaluation.rows) != len(found[0].rows):
                break
            whole.append(evaluation)
        after = whole.pop() if whole and whole[-1].when == "after" else None
        return cls(file, whole, after)

    def until(self, num_steps: int) -> list[Evaluation]:
        """The evaluations of weights that had been moved so often or less."""
        return [evaluation for evaluation in self.along if evaluation.step <= num_steps]

    def cut(self, num_steps: int) -> None:
        """Keep the evaluations of weights that had been moved so often or less, none where the run starts anew."""
        kept = self.until(num_steps) if num_steps else []
        if self.file.is_file():
            shorten(self.file, kept[-1].end if kept else 0)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read lines, each with the bytes up to its end, up to the first that is not whole."""
    if not file.is_file():
        return
    end = 0
    with file.open("rb") as lines:
        for line in lines:
            end += len(line)
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(row, dict):
                return
            yield end, row
