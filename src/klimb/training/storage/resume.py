"""Resumes an interrupted run from its newest good checkpoint, to the same result as an uninterrupted one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from klimb.config.address import is_address
from klimb.config.sections import EvaluationOptions
from klimb.config.train import TrainConfig
from klimb.errors import ConfigError, RunFolderError
from klimb.reward.load import PEOPLE
from klimb.training.evaluate.best import rebuild_best
from klimb.training.storage.checkpoint import Checkpoint
from klimb.training.storage.environment import ENVIRONMENT, compare_environments
from klimb.training.storage.fingerprint import CLOCK, Fingerprint, check_fingerprints, read_fingerprints
from klimb.training.storage.folder import RunFolder, standing
from klimb.training.storage.log_recovery import EvaluationLines, StepLines

_MAY_CHANGE = {
    "num_steps": "",
    "checkpoint_every": "",
    "keep_checkpoints": "",
    "eval_every": "",
    "patience": "",
    "lr": "",
    "value_lr": "",
    "beta": "the objective changes from here on",
    "max_grad_norm": "",
    "max_logprob_mismatch": "",
    "trust_remote_code": "",
    "preflight": "",
    "on_alarm": "",
    "max_kl": "",
    "min_entropy": "",
    "max_entropy": "",
    "max_duplicate_share": "",
    "max_grad_spike": "",
    "max_failed": "",
    "reward_timeout": "",
    "rank_timeout": "",
    "people_host": "",
    "people_port": "",
    "people_rater": "",
    "track": "",
    "track_project": "trackers keep a run in the project where it began",
    "push_to_hub": "",
    "device": "rounding may differ",
    "micro_batch_size": "rounding may differ",
}
"""Options that may change at a resume: length, outputs and speed of a run; each with what a change implies."""

_PASSED_OVER = "passed over: "
_PLACES = {"model", "prompts", "eval_prompts"}  # the same content may lie elsewhere


@dataclass(frozen=True)
class Resumption:
    """Where and how an interrupted run resumes.

    Attributes:
        folder: The run's folder.
        config: The options from here on.
        step: Steps after which it resumes; 0 where it starts anew.
        checkpoint: The state that it takes up; None where it starts anew.
        evaluations: What was found until then, the start first.
        changes: Options that changed, each with its value then and now, as JSON types.
        remarks: What a person should know.
        is_finished: Whether there is nothing left to do.
    """

    folder: RunFolder
    config: TrainConfig
    step: int
    checkpoint: Checkpoint | None = None
    evaluations: list[list[dict[str, Any]]] = field(default_factory=list)
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    is_finished: bool = False

    def sentences(self) -> list[str]:
        """Return sentences that say where the run resumes, and what to know."""
        path, num_steps = self.folder.path, self.config.num_steps
        if self.is_finished:
            return [f"{path}: the run is finished, after {self.step} steps; nothing is changed"]
        start = f"after {self.step} of {num_steps} steps" if self.step else "from the beginning"
        return [f"Resuming {path} {start}", *self.remarks]

    def compare(self, now: dict[str, Fingerprint], accept: Sequence[str] = ()) -> list[str]:
        """Compare the content that the run began with with the present one, and say what a person should know.

        Args:
            now: The present fingerprints.
            accept: Names of content that may differ.

        Raises:
            ConfigError: Content has changed that is not accepted.
        """
        then = read_fingerprints(self.folder.fingerprints)
        if then is None:
            file = self.folder.fingerprints
            return [f"{file}: missing, so klimb cannot check that prompts, model and rewards are unchanged"]
        then.pop(CLOCK, None)
        known = [
            then.pop(ENVIRONMENT, {}),
            *(entry.get("environment", {}) for entry in self.folder.read_resumed()),
        ]
        others = compare_environments(next(filter(None, reversed(known)), {}), now.get(ENVIRONMENT, {}))
        changed = check_fingerprints(then, now, accept)
        return [
            *self._not_compared(then),
            *(f"{name}: the content has changed since the run began; accepted" for name in changed),
            *(f"{name}: {old} → {new} (rounding may differ)" for name, (old, new) in others.items()),
        ]

    def _not_compared(self, then: dict[str, Fingerprint]) -> list[str]:
        """Say of what nobody can tell whether it is the same."""
        rewards = [*self.config.reward, *self.config.judges]
        return [
            f"{name}: a service; klimb cannot check that it answers as before"
            if is_address(name)
            else f"{name}: its content was not recorded when the run began, so klimb cannot check that it is unchanged"
            for name in ("model", "prompts", *rewards)
            if name not in then and name != PEOPLE
        ]

    def rewind(self, fingerprints: dict[str, Fingerprint], accepted: Sequence[str] = ()) -> None:
        """Bring the folder back to how it was at the checkpoint, and note in its options that it is resumed.

        The resumed run writes again what is cut and removed. A crash in the middle of this leaves a folder that
        can be resumed from the same checkpoint.

        Args:
            fingerprints: What the run is made from now, for a folder that does not know what it began with, or
                where content was accepted.
            accepted: Names of content that has changed and is accepted.
        """
        folder = self.folder
        folder.report.unlink(missing_ok=True)
        folder.remove_model()
        for step in folder.checkpoint_steps():
            if step > self.step or self.checkpoint is None:
                folder.remove_checkpoint(step)
        for name in ("metrics", "completions"):
            StepLines.scan(folder.path / f"{name}.jsonl").cut(self.step)
        EvaluationLines.scan(folder.path / "evaluations.jsonl").cut(self.step)
        if self.checkpoint is None:
            (folder.path / "best.json").unlink(missing_ok=True)
        folder.sweep()
        if accepted or not folder.fingerprints.is_file():
            began = read_fingerprints(folder.fingerprints) or {}
            kept = {name: began[name] for name in (ENVIRONMENT, CLOCK) if name in began}
            folder.write_fingerprints(fingerprints | {ENVIRONMENT: {}} | kept)
        entry: dict[str, Any] = {"step": self.step, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        entry["changes"] = {name: list(values) for name, values in self.changes.items()}
        entry["environment"] = fingerprints.get(ENVIRONMENT, {})
        if accepted:
            entry["accepted"] = list(accepted)
        folder.write_config(self.config.to_dict(), [*folder.read_resumed(), entry])


def plan_resumption(config: TrainConfig, from_step: int | None = None) -> Resumption:
    """Find out where the run in `config.out` was interrupted, and how it resumes; nothing is changed.

    Args:
        config: The options from here on.
        from_step: Updates of the checkpoint to go back to; of the newest good one where None.

    Raises:
        RunFolderError: There is no such run, none of its checkpoints is good, or not the one that was asked for.
        ConfigError: Options cannot be what they are now, each named with its value then and now.
    """
    folder = RunFolder.find(config.out)
    then = _options_until_now(folder)
    config = replace(config, num_slices=config.num_slices or then.num_slices)
    changes, remarks = _compare(then, config)
    if (moved := changes.keys() & _PLACES) and not folder.fingerprints.is_file():
        raise ConfigError(
            f"{min(moved)}: has moved, and {folder.fingerprints} is missing, so klimb cannot check that it is unchanged"
        )
    metrics = StepLines.scan(folder.path / "metrics.jsonl")
    evaluations = EvaluationLines.scan(folder.path / "evaluations.jsonl")
    if from_step is None and _is_finished(
        folder, config, evaluations, has_all_steps=len(metrics.ends) == config.num_steps
    ):
        return Resumption(folder, config, len(metrics.ends), changes=changes, is_finished=True)
    completions = StepLines.scan(folder.path / "completions.jsonl")
    num_lines = min(len(metrics.ends), len(completions.ends))
    passed_over: list[str] = []
    for step in _steps_to_try(folder, from_step):
        try:
            checkpoint = folder.open_checkpoint(step)
            _check_lines(folder, step, num_lines, evaluations, then.eval_every)
            _check_best(folder, config, step, evaluations, bool(changes))
        except OSError as error:
            passed_over.append(f"{_PASSED_OVER}{error}")
            continue
        if step > config.num_steps:
            raise ConfigError(
                f"num_steps: {step} steps have been taken; expected at least as many, got {config.num_steps}"
            )
        rows = [evaluation.rows for evaluation in evaluations.until(step)]
        return Resumption(folder, config, step, checkpoint, rows, changes, [*passed_over, *remarks])
    if passed_over and (from_step is not None or folder.checkpoint_steps()[0] > 0):
        raise RunFolderError(
            f"{folder.path}: "
            + ("none of its checkpoints can be used: " if from_step is None else "cannot go back to that: ")
            + "; ".join(line.removeprefix(_PASSED_OVER) for line in passed_over)
            + "; start a new run with --out"
        )
    if not passed_over and num_lines > then.checkpoint_every:
        raise RunFolderError(
            f"{folder.path}: has the lines of {num_lines} steps but no checkpoint; restore its checkpoints, or start "
            "a new run with --out"
        )
    return Resumption(folder, config, 0, changes=changes, remarks=[*passed_over, *remarks])


def _steps_to_try(folder: RunFolder, from_step: int | None) -> list[int]:
    """Steps of the checkpoints that a run may resume from, the newest first."""
    steps = [step for step in reversed(folder.checkpoint_steps()) if step > 0]
    if from_step is None:
        return steps
    if from_step not in steps:
        raise RunFolderError(
            f"{folder.path}: has no checkpoint of step {from_step} to go back to; "
            f"expected {', '.join(map(str, reversed(steps))) or 'one, but there is none'}"
        )
    return [from_step]


def _options_until_now(folder: RunFolder) -> TrainConfig:
    try:
        config = TrainConfig.from_dict(folder.read_config())
        return replace(config, num_slices=config.num_slices or 1)  # klimb 0.1 had no slices
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder.path / 'config.json'}: not options of this version of klimb: {error}; start a new run with --out"
        ) from error


def _compare(before: TrainConfig, config: TrainConfig) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Find the options that changed, and what each change implies; the folder itself may have been moved."""
    then, now = before.to_dict(), config.to_dict() | {"out": str(before.out)}
    changes = {name: (then[name], now[name]) for name in now if then[name] != now[name]}
    refused = {
        name: values
        for name, values in changes.items()
        if (name not in _MAY_CHANGE and not (name in _PLACES and None not in values))
        or (name == "beta" and config.kl_target is not None)  # which moves it by itself
    }
    if refused:
        raise ConfigError(
            "a resumed run cannot change "
            + "; ".join(
                f"{name}: {_show(old)} when it began, {_show(new)} now"
                for name, (old, new) in refused.items()
            )
            + ". Resume without, or start a new run with --out"
        )
    remarks = []
    for name, (old, new) in changes.items():
        remark = f" ({_MAY_CHANGE[name]})" if _MAY_CHANGE.get(name) else ""
        remarks.append(f"{name}: {_show(old)} → {_show(new)}{remark}")
    if "num_steps" in changes and config.lr_schedule != "constant":
        remarks.append(f"lr_schedule: {config.lr_schedule} now falls to the new end, from the next step on")
    return changes, remarks


def _is_finished(
    folder: RunFolder, options: EvaluationOptions, evaluations: EvaluationLines, *, has_all_steps: bool
) -> bool:
    is_out_of_patience = False
    if options.keep_best is not None and options.patience is not None and evaluations.along:
        best, _ = rebuild_best([evaluation.rows for evaluation in evaluations.along], options.keep_best)
        is_out_of_patience = best.num_since >= options.patience
    has_all = evaluations.after is not None and folder.model.is_dir() and folder.report.is_file()
    return has_all and (has_all_steps or is_out_of_patience)


def _check_lines(
    folder: RunFolder, step: int, num_lines: int, evaluations: EvaluationLines, eval_every: int | None
) -> None:
    """Raise unless everything that was written before a checkpoint is there."""
    path = folder.checkpoint(step)
    if num_lines < step:
        raise RunFolderError(
            f"{path}: metrics.jsonl and completions.jsonl can be read for the first {num_lines} steps only"
        )
    found = evaluations.until(step)
    if not found:
        raise RunFolderError(f"{path}: evaluations.jsonl lacks the evaluation before training")
    if eval_every is None:
        return
    changed = [entry["step"] for entry in standing(folder.read_resumed()) if "eval_every" in entry["changes"]]
    known = max(found[-1].step, *changed, 0)
    missing = (known // eval_every + 1) * eval_every
    if missing < step:
        raise RunFolderError(f"{path}: evaluations.jsonl lacks the evaluation after {missing} steps")


def _check_best(
    folder: RunFolder, options: EvaluationOptions, step: int, evaluations: EvaluationLines, has_changes: bool
) -> None:
    """Raise unless the best weights until a checkpoint can be had.

    Where their checkpoint is gone, better ones had been found, which the resumed run reaches
    again unless options change.
    """
    if options.keep_best is None:
        return
    best, _ = rebuild_best([evaluation.rows for evaluation in evaluations.until(step)], options.keep_best)
    if best.step == step:
        return
    if folder.checkpoint(best.step).is_dir():
        folder.open_weights(best.step)
    elif has_changes:
        raise RunFolderError(
            f"{folder.checkpoint(step)}: the best weights until then, of step {best.step}, are missing, and with "
            "changed options the resumed run may not reach better ones"
        )


def _show(value: Any) -> str:
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
