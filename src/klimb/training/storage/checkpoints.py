"""The checkpoints of a run: when they are written, which are kept, and what is left when something goes wrong."""

from collections.abc import Sequence
from pathlib import Path

from klimb.config.sections import CheckpointOptions
from klimb.errors import ArgumentError, DivergedError, GuardError, KlimbError, RunFolderError
from klimb.training.storage.checkpoint import Checkpoint
from klimb.training.storage.folder import RunFolder
from klimb.training.trainer import Trainer


class Checkpoints:
    """Writes the state of a run as checkpoints, removes those that are not kept, and gives the state back.

    Args:
        folder: The run's folder.
        trainer: Whose state is written.
        options: When they are written, and how many are kept.

    Attributes:
        best: Step of the best weights so far, whose checkpoint is kept whatever its age.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer, options: CheckpointOptions) -> None:
        self.best: int | None = None
        self._folder, self._trainer, self._options = folder, trainer, options
        self._is_broken = False

    def save(self, *, removes: bool = True) -> Path:
        """Write a checkpoint, unless there is one of this step, and remove the oldest that are too many.

        Args:
            removes: False leaves those that are too many.

        Raises:
            OSError: It cannot be written; those that were there still are.
        """
        self._is_broken = True
        trainer, policy = self._trainer, self._trainer.policy
        state = {name: part.state() for name, part in trainer.parts.items()}
        weights = {name: p.detach().contiguous() for name, p in policy.trainable().items()}
        tensors = {"weights": weights, "optimiser": trainer.optimizer.moments()}
        if trainer.value is not None:
            tensors["value"] = {
                name: weight.detach().contiguous()
                for name, weight in trainer.value.function.trainable().items()
            }
            tensors["value_optimiser"] = trainer.value.optimizer.moments()
        path = self._folder.save_checkpoint(trainer.step, policy.num_updates, tensors, state)
        steps = self._folder.checkpoint_steps()
        for step in surplus(steps, self._options.keep_checkpoints, self.best) if removes else []:
            self._folder.remove_checkpoint(step)
        self._is_broken = False
        return path

    def save_if_due(self) -> None:
        """Write a checkpoint if it is time to."""
        if self._trainer.step % self._options.checkpoint_every == 0:
            self.save()

    def set_best(self, step: int) -> None:
        """Record of which step the best weights are; a checkpoint that was kept as the former best alone is removed."""
        former, self.best = self.best, step
        is_due = former is not None and former > 0 and former % self._options.checkpoint_every == 0
        if former is not None and former != step and not is_due:
            self._folder.remove_checkpoint(former)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give the trainer the state of a checkpoint.

        Raises:
            RunFolderError: It is of other weights than those that the policy trains.
        """
        trainer = self._trainer
        try:
            trainer.policy.restore(checkpoint.weights, checkpoint.num_updates)
            trainer.optimizer.restore(checkpoint.moments)
            if trainer.value is not None:
                trainer.value.function.restore(checkpoint.others["value"], checkpoint.num_updates)
                trainer.value.optimizer.restore(checkpoint.others["value_optimiser"])
            for name, part in trainer.parts.items():
                part.restore(checkpoint.state[name])
            trainer.step, trainer.num_updates = checkpoint.step, checkpoint.num_updates
        except (ArgumentError, KeyError) as error:
            raise RunFolderError(
                f"{checkpoint.path}: not of this policy: {error}; use the model and the options of its run"
            ) from error

    def restore_weights(self, step: int) -> None:
        """Give the policy the weights that it had after so many steps, in place, a tensor at a time.

        Raises:
            RunFolderError: The checkpoint is missing, cut short, altered, or of other weights than those that are
                trained; the policy is unchanged.
        """
        weights, num_updates = self._folder.open_weights(step)
        try:
            self._trainer.policy.restore(weights, num_updates)
        except ArgumentError as error:
            raise RunFolderError(
                f"{self._folder.checkpoint(step) / 'weights.safetensors'}: not weights of this policy: {error}; "
                "use the model and the options of its run"
            ) from error

    def save_and_annotate(self, error: KlimbError, num_steps: int) -> None:
        """Save what can be saved after an error, and add to the error what that is and how to resume.

        Args:
            error: What ended the run.
            num_steps: Steps whose lines are written.
        """
        has_all_lines = 0 < num_steps == self._trainer.step and self._trainer.is_between_steps
        if has_all_lines and not self._is_broken and not isinstance(error, DivergedError):
            try:
                self.save(removes=not isinstance(error, GuardError))  # the last good weights may be older
            except OSError as failure:
                error.add_note(f"the last steps could not be saved: {failure}")
        error.add_note(f"steps taken: {num_steps}; what was written stays in {self._folder.path}")
        error.add_note(self._advice())

    def translate(self, error: OSError, num_steps: int) -> RunFolderError:
        """Say what an error of the system means for the run: what is left of it, and how to go on.

        Args:
            error: What ended the run, such as that the disk is full.
            num_steps: Steps whose lines are written.
        """
        told = RunFolderError(f"{self._folder.path}: cannot be written to: {error}")
        told.add_note(f"steps taken: {num_steps}; what was written stays in {self._folder.path}")
        told.add_note(self._advice())
        return told

    def _advice(self) -> str:
        path = self._folder.path
        if not (path / "config.json").is_file():
            return "the run's folder has been removed, with its checkpoints"
        steps = self._folder.checkpoint_steps()
        last = f"the last checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
        return f"{last}; resume from there with: klimb train --resume {path}"


def surplus(steps: Sequence[int], keep: int | None, best: int | None) -> list[int]:
    """Choose which checkpoints to remove.

    Args:
        steps: Steps of each, in order.
        keep: How many of the newest stay, ≥ 1; all where None.
        best: The one that stays whatever its age, where there is one.
    """
    return [] if keep is None else [step for step in steps[:-keep] if step != best]


def note_last_good(error: KlimbError, folder: RunFolder, num_steps: int) -> None:
    """Add to an error that is about the weights which checkpoint is the newest that it does not concern.

    Args:
        error: What stopped the run.
        folder: The run's.
        num_steps: Steps that had been taken.
    """
    if not isinstance(error, (DivergedError, GuardError)):
        return
    # A guard has seen completions of the weights before the last step, and does not trust these either.
    most = num_steps if isinstance(error, DivergedError) else num_steps - 2
    step = last_good_checkpoint(folder, most)
    if not step:
        error.add_note(
            "no checkpoint of a step is from before that: the last good weights are those that the run began with"
        )
    else:
        error.add_note(
            f"the last good weights are those after step {step}; go back to them, with a smaller learning rate, by: "
            f"klimb train --resume {folder.path} --from-step {step} --lr …"
        )


def last_good_checkpoint(folder: RunFolder, most: int) -> int | None:
    """Find the newest checkpoint of at most so many steps that is whole and whose weights are all finite."""
    for step in reversed([step for step in folder.checkpoint_steps() if step <= most]):
        try:
            weights, _ = folder.open_weights(step)
        except RunFolderError:
            continue
        if all(bool(weights[name].isfinite().all()) for name in weights):
            return step
    return None
