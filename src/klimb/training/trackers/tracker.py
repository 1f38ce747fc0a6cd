"""The interface of a tracker, which receives a run's configuration, metrics, tables and report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["finished", "interrupted", "failed"]
"""How a run left its process; one that was interrupted or failed can be resumed."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker begins with.

    Attributes:
        folder: The run's folder.
        project: What groups runs: a project, or an experiment.
        name: The run's name.
        options: The run's options, as JSON types.
        notes: The declared objective and facts about the run, for a reader.
        step: Steps taken when this process took the run up; 0 for a new one.
        run_id: What an earlier process of this run was given; None for a new run.
    """

    folder: Path
    project: str
    name: str
    options: dict[str, Any]
    notes: str
    step: int = 0
    run_id: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of numbers and texts, such as prompts with their completions."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str | float | int | None]]


class Tracker:
    """One tracking library; each method may raise whatever the library raises, and the run survives it.

    Attributes:
        purges: Whether `open` removes the points that the run has from `TrackedRun.step` on.
        keeps_points: Whether points that were sent are there after the process was killed, and a resumed run need not
            send them again.
    """

    purges: bool = False
    keeps_points: bool = True

    def open(self, run: TrackedRun) -> str:
        """Begin to track a run, or continue one, and return the id with which it can be continued."""
        raise NotImplementedError

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to each curve that is named, at `step`."""
        raise NotImplementedError

    def log_table(self, step: int, name: str, table: Table) -> None:
        """Add a table."""
        raise NotImplementedError

    def log_report(self, report: Path, numbers: Mapping[str, float]) -> None:
        """Add the run's report as an artifact, and the numbers that sum the run up."""
        raise NotImplementedError

    def close(self, outcome: Outcome) -> None:
        """Write out what is left; the run is over in this process."""
        raise NotImplementedError
