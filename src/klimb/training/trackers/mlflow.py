"""MLflow, at the place that MLFLOW_TRACKING_URI names."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]  an extra
from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]  an extra

from klimb.training.trackers.tracker import Outcome, Table, TrackedRun, Tracker

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST_PARAM = 500  # characters, which every store of MLflow takes
_AT_ONCE = 100  # parameters of a request


class MlflowTracker(Tracker):
    """Reports to MLflow through a client of its own, so that the run that a program has open stays as it is."""

    def __init__(self) -> None:
        self._client = MlflowClient()
        self._run_id = ""

    def open(self, run: TrackedRun) -> str:
        """Begin a run, or take up the one of that id; parameters are those that it began with."""
        if run.run_id is None:
            experiment = self._client.get_experiment_by_name(run.project)
            experiment_id = (
                self._client.create_experiment(run.project)
                if experiment is None
                else experiment.experiment_id
            )
            tags = {"mlflow.note.content": run.notes}
            self._run_id = self._client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
            params = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in run.options.items()]
            for start in range(0, len(params), _AT_ONCE):
                self._client.log_batch(self._run_id, params=params[start : start + _AT_ONCE])
        else:
            self._run_id = run.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        self._client.log_dict(self._run_id, run.options, "config.json")
        return self._run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics at their step."""
        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=points)

    def log_table(self, step: int, name: str, table: Table) -> None:  # noqa: ARG002  the rows have it
        """Add a table in the form that MLflow's page shows: JSON with columns and data."""
        content = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
        self._client.log_text(self._run_id, json.dumps(content, ensure_ascii=False), f"{name}.json")

    def log_report(self, report: Path, numbers: Mapping[str, float]) -> None:
        """Add the report as an artifact, and the numbers as metrics."""
        self.log(0, numbers)
        self._client.log_artifact(self._run_id, str(report))

    def close(self, outcome: Outcome) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._run_id, status=_STATUS[outcome])
