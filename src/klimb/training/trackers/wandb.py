"""Weights & Biases, online or offline as WANDB_MODE says."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]  an extra

from klimb.training.trackers.tracker import Outcome, Table, TrackedRun, Tracker


class WandbTracker(Tracker):
    """Reports to W&B; its files are in `RUN/wandb/` unless WANDB_DIR names another folder.

    The axis of every curve is a metric `step` of klimb's, so that a resumed run may log a step again. It does: W&B
    writes points in blocks of 32 KiB, and loses the last block when the process is killed.
    """

    keeps_points = False

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: TrackedRun) -> str:
        """Begin a run, or take up the one of that id."""
        _require_login()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.project),
            name=run.name,
            id=run.run_id,
            resume="allow",
            config=run.options,
            notes=run.notes,
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step", hidden=True)
        for group in ("train/*", "eval/*"):
            self._run.define_metric(group, step_metric="step")
        return self._run.id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics, and their step as one of them."""
        self._run.log({"step": step, **metrics})

    def log_table(self, step: int, name: str, table: Table) -> None:
        """Add a table."""
        rows = [list(row) for row in table.rows]
        found = wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)
        self._run.log({"step": step, name: found})

    def log_report(self, report: Path, numbers: Mapping[str, float]) -> None:
        """Add the report as an artifact, and the numbers to the run's summary."""
        self._run.summary.update(dict(numbers))
        artifact = wandb.Artifact(f"report-{self._run.id}", type="report")
        artifact.add_file(str(report))
        self._run.log_artifact(artifact)

    def close(self, outcome: Outcome) -> None:
        """Wait until everything is written or sent."""
        self._run.finish(exit_code=1 if outcome == "failed" else 0)


def _require_login() -> None:
    """Raise where W&B would ask for a key at the terminal, and the run would wait for the answer."""
    is_online = os.environ.get("WANDB_MODE", "online") == "online"
    if is_online and not wandb.api.api_key:
        raise RuntimeError("no API key: run wandb login first, or set WANDB_MODE=offline")
