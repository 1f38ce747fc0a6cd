"""trackio: a local database and page, or a Space on the Hugging Face hub where TRACKIO_SPACE_ID names one."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio  # pyright: ignore[reportMissingImports]  an extra

from klimb.training.trackers.tracker import Outcome, Table, TrackedRun, Tracker


class TrackioTracker(Tracker):
    """Reports to trackio, which keeps `~/.cache/huggingface/trackio` unless TRACKIO_DIR names another folder."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: TrackedRun) -> str:
        """Begin a run, or take up the one of that name, which is what trackio finds runs by."""
        name = run.run_id or f"{run.name}-{secrets.token_hex(3)}"
        self._run = trackio.init(
            project=run.project,
            name=name,
            config={**run.options, "objective": run.notes},
            resume="allow",
            embed=False,
        )
        return name

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics at their step."""
        self._run.log(dict(metrics), step=step)

    def log_table(self, step: int, name: str, table: Table) -> None:
        """Add a table."""
        rows = [list(row) for row in table.rows]
        self._run.log({name: trackio.Table(columns=list(table.columns), data=rows)}, step=step)

    def log_report(self, report: Path, numbers: Mapping[str, float]) -> None:
        """Add the report as an artifact of the project, and the numbers as the last point."""
        artifact = trackio.Artifact(f"report-{self._run.name}", type="report", metadata=dict(numbers))
        artifact.add_file(str(report))
        self._run.log_artifact(artifact)

    def close(self, outcome: Outcome) -> None:  # noqa: ARG002  trackio has no such field
        """Wait until everything is written."""
        trackio.finish()
