"""The observer between a run and a tracker: what is logged when; a failing tracker never stops the run."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from klimb.config.train import TrainConfig
from klimb.io.atomic import write_file
from klimb.io.progress import warn
from klimb.io.show import printable, redact, redacted
from klimb.rl.declaration import Declaration
from klimb.rl.rollout import Rollout
from klimb.training.evaluate.estimates import REWARD, Change, Rows, by_prompt, point, short_name
from klimb.training.evaluate.evaluator import completion_rows
from klimb.training.evaluate.summary import Summary, show_prompt
from klimb.training.observer import Observer
from klimb.training.storage.folder import RunFolder
from klimb.training.trackers.registry import make_tracker
from klimb.training.trackers.sent import SentPoints, reproducible
from klimb.training.trackers.tracker import Outcome, Table, TrackedRun, Tracker

RUN_IDS = "trackers.json"
"""The file in a run's folder with each tracker's id of the run, so that a resumed run continues its curve."""

COLUMNS = ("step", "prompt", "completion", "reward", "kl", "length", "finish_reason")
_MOST_ROWS = 32  # of a table: one completion for each of so many prompts
_STEPS_BETWEEN_TABLES = 10  # of completions that were trained on
_MOST_SAID = 200  # characters of what a library says of its failure


def trackings(config: TrainConfig, step: int = 0, evaluations: Sequence[Rows] = ()) -> list[Observer]:
    """Make the observers that report to the trackers which a configuration names.

    Args:
        config: The run's options.
        step: Steps taken when the run is taken up; 0 for a new one.
        evaluations: The evaluations that a resumed run has and does not make again.
    """
    latest = evaluations[-1] if evaluations and evaluations[-1][0]["step"] == step else None
    return [Tracking(name, config.track_project, step, latest) for name in config.track]


class Tracking(Observer):
    """Reports a run to a tracker.

    Curves are named `train/…`, one point a step, and `eval/…`, one point an evaluation; a point's step is the number
    of steps that it describes. A tracker that fails is left out from then on, after one warning.

    Args:
        name: The tracker's name.
        project: The project, or experiment, that the run belongs to.
        step: Steps taken when the run is taken up; 0 for a new one.
        latest: The evaluation after exactly these steps, where the run has it already.
    """

    def __init__(self, name: str, project: str, step: int = 0, latest: Rows | None = None) -> None:
        self._name, self._project, self._step, self._latest = name, project, step, latest
        self._sent: SentPoints | None = None  # known once the tracker is open
        self._tracker: Tracker | None = None  # opened at the first event after the run's folder was made
        self._run: TrackedRun | None = None
        self._has_failed = False
        self._outcome: Outcome = "failed"
        self._judges: tuple[str, ...] = ()

    def run_started(self, config: TrainConfig, declaration: Declaration, facts: dict[str, str]) -> None:
        """Remember what the tracker begins with; the run's folder may not be there yet."""
        notes = [*declaration.words, "", *declaration.formulas, ""]
        notes += [f"{name}: {fact}" for name, fact in facts.items()]
        self._judges = config.judges
        options = redacted(config.to_dict())
        self._run = TrackedRun(
            config.out, self._project, config.out.name, options, redact("\n".join(notes)), self._step
        )

    def policy_evaluated(self, rows: Rows, *, is_best: bool = False) -> None:  # noqa: ARG002
        """Log the means of an evaluation, and a table of its completions."""
        self._attempt(lambda tracker: self._log_evaluation(tracker, rows))

    def step_finished(self, metrics: dict[str, Any], rollout: Rollout) -> None:
        """Log a step's metrics, and now and then a table of its completions."""
        self._attempt(lambda tracker: self._log_step(tracker, metrics, rollout))

    def run_interrupted(self, num_steps: int) -> None:  # noqa: ARG002
        """Note that the run can be resumed."""
        self._outcome = "interrupted"

    def run_finished(self, folder: RunFolder, summary: Summary) -> None:
        """Log the report, and the numbers that sum the run up."""
        self._attempt(lambda tracker: tracker.log_report(folder.report, summary_numbers(summary)))
        self._outcome = "finished"

    def run_closed(self) -> None:
        """Let the tracker write out what it has."""
        if self._tracker is not None:
            self._attempt(lambda tracker: tracker.close(self._outcome))

    def _attempt(self, work: Callable[[Tracker], None]) -> None:
        """Open the tracker if it is not, and let it work; where it fails, warn, and leave it out from then on."""
        if self._has_failed:
            return
        try:
            if self._tracker is None:
                self._tracker = self._open()
            work(self._tracker)
        except Exception as error:  # whatever a library raises, the run does not depend on it
            self._has_failed = True
            said = " ".join(redact(str(error)).split())[:_MOST_SAID] or type(error).__name__
            warn(
                f"track: {self._name} failed and is left out from here on ({printable(said)}); the run "
                "continues, and its folder has everything"
            )

    def _open(self) -> Tracker:
        if self._run is None:
            raise RuntimeError("the run has not started")
        tracker = make_tracker(self._name)
        run = replace(self._run, run_id=read_run_ids(self._run.folder).get(self._name))
        run_id = tracker.open(run)
        self._sent = SentPoints(run.folder, self._name)
        if tracker.purges and run.run_id is not None and self._latest is not None:
            self._send_evaluation(tracker, self._latest)  # purged, and not made again
        if run_id != run.run_id:  # read again: another tracker may have written its own meanwhile
            write_run_ids(run.folder, read_run_ids(run.folder) | {self._name: run_id})
        return tracker

    def _log_evaluation(self, tracker: Tracker, rows: Rows) -> None:
        point_name = f"{rows[0]['when']}, {rows[0]['step']} steps"
        self._once(tracker, point_name, rows, lambda: self._send_evaluation(tracker, rows))

    def _log_step(self, tracker: Tracker, metrics: dict[str, Any], rollout: Rollout) -> None:
        point_name = f"step {metrics['step']}"
        self._once(
            tracker, point_name, reproducible(metrics), lambda: self._send_step(tracker, metrics, rollout)
        )

    def _once(self, tracker: Tracker, point_name: str, content: object, send: Callable[[], None]) -> None:
        """Send a point, unless an earlier process of the run sent the same one and the tracker still has it."""
        if not tracker.keeps_points or self._sent is None:
            send()
        elif not self._sent.has(point_name, content):
            send()
            self._sent.add(point_name, content)

    def _send_evaluation(self, tracker: Tracker, rows: Rows) -> None:
        found = point(rows, self._judges)
        names = metric_names(found.means)
        values = {f"eval/{names[name]}": estimate.mean for name, estimate in found.means.items()}
        values |= {} if found.kl is None else {"eval/kl": found.kl.mean}
        tracker.log(found.step, _finite(values))
        tracker.log_table(found.step, f"completions/{rows[0]['when']}", completions_table(rows))

    @staticmethod
    def _send_step(tracker: Tracker, metrics: dict[str, Any], rollout: Rollout) -> None:
        step = metrics["step"]
        tracker.log(step, flat_metrics(metrics))
        if step % _STEPS_BETWEEN_TABLES == 0:
            rows = completion_rows(rollout, step=step)
            tracker.log_table(step, f"completions/train-{step:06d}", completions_table(rows))


def read_run_ids(folder: Path) -> dict[str, str]:
    """Read each tracker's id of a run; none where there is no file, or one that is damaged."""
    try:
        found = json.loads((folder / RUN_IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(run_id) for name, run_id in found.items()} if isinstance(found, dict) else {}


def write_run_ids(folder: Path, ids: Mapping[str, str]) -> None:
    """Write each tracker's id of a run."""
    write_file(folder / RUN_IDS, json.dumps(ids, indent=2) + "\n")


def metric_names(rewards: Iterable[str]) -> dict[str, str]:
    """Short names for rewards, no two alike, of characters that every tracker takes.

    Example:
        >>> metric_names(["reward", "models/kind", "other/kind", "rules.py:letters"])
        {'reward': 'reward', 'models/kind': 'kind', 'other/kind': 'kind-2', 'rules.py:letters': 'rules.py_letters'}
    """
    names: dict[str, str] = {}
    for reward in rewards:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", short_name(reward)) or "_"
        number, unique = 1, name
        while unique in names.values():
            number += 1
            unique = f"{name}-{number}"
        names[reward] = unique
    return names


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl`, each under its path, such as `train/seconds/sampling`.

    Example:
        >>> flat_metrics({"step": 3, "reward": 0.5, "rewards": {"a/b.py:c": 1}, "kl": None})
        {'train/reward': 0.5, 'train/rewards/b.py_c': 1.0}
    """
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            names = metric_names(value)
            flat |= {f"train/{name}/{names[key]}": part for key, part in value.items()}
        elif name != "step":
            flat[f"train/{name}"] = value
    return _finite(flat)


def completions_table(rows: Rows) -> Table:
    """The first completion of each of the first prompts, with its reward."""
    shown: list[tuple[str | float | int | None, ...]] = []
    for completions in by_prompt(rows)[:_MOST_ROWS]:
        row = completions[0]
        prompt, completion = redact(show_prompt(row["prompt"])), redact(row["completion"])
        shown.append((row["step"], prompt, completion, *(row.get(name) for name in COLUMNS[3:])))
    return Table(COLUMNS, shown)


def summary_numbers(summary: Summary) -> dict[str, float]:
    """The means before and after a run, and their difference, of the reward and of each judge."""
    changes = {REWARD: Change(summary.before, summary.after, summary.gain), **summary.judges}
    names = metric_names(changes)
    numbers = {
        f"final/{names[name]}_{side}": getattr(change, side).mean
        for name, change in changes.items()
        for side in ("before", "after", "gain")
    }
    return _finite(numbers)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers, without those that are not finite, which no tracker draws."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
