"""The checkpoints of a run: when they are written, which are kept, and what is left when something goes wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from klimb.errors import ArgumentError, DivergedError, GuardError, KlimbError, RunFolderError
from klimb.policy.policy import Policy
from klimb.train.ascent import Ascent
from klimb.train.checkpoint import Checkpoint
from klimb.train.config import TrainConfig
from klimb.train.folder import RunFolder


@runtime_checkable
class Remembering(Protocol):
    """A part of a run that a later step depends on, beside weights and optimiser."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as JSON types."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        ...


class Checkpoints:
    """Writes the state of a run as checkpoints, removes those that are not kept, and gives the state back.

    Args:
        folder: The run's folder.
        policy: Whose weights move.
        ascent: What moves them.
        config: The options of the run.
        remembering: What else has a state, by name.

    Attributes:
        best: Updates of the weights that are the best so far, whose checkpoint is kept whatever its age.
    """

    def __init__(
        self,
        folder: RunFolder,
        policy: Policy,
        ascent: Ascent,
        config: TrainConfig,
        remembering: Mapping[str, Remembering],
    ) -> None:
        self.best: int | None = None
        self._folder, self._policy, self._ascent = folder, policy, ascent
        self._remembering, self._config = remembering, config
        self._is_broken = False

    def save(self, *, removes: bool = True) -> Path:
        """Write a checkpoint, unless there is one of these updates, and remove the oldest that are too many.

        Args:
            removes: False leaves those that are too many.

        Raises:
            OSError: It cannot be written; those that were there still are.
        """
        self._is_broken = True
        remembered = {name: part.state() for name, part in self._remembering.items()}
        path = self._folder.save_checkpoint(self._policy, self._ascent, remembered)
        steps = self._folder.checkpoint_steps()
        for step in surplus(steps, self._config.keep_checkpoints, self.best) if removes else []:
            self._folder.remove_checkpoint(step)
        self._is_broken = False
        return path

    def save_if_due(self) -> None:
        """Write a checkpoint if it is time to."""
        if self._policy.num_updates % self._config.checkpoint_every == 0:
            self.save()

    def prefer(self, step: int) -> None:
        """Take note that weights are the best so far; those that were, and were kept for that alone, are removed."""
        former, self.best = self.best, step
        is_due = former is not None and former > 0 and former % self._config.checkpoint_every == 0
        if former is not None and former != step and not is_due:
            self._folder.remove_checkpoint(former)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give policy, optimiser and what else remembers the state of a checkpoint.

        Raises:
            RunFolderError: It is of other weights than those that the policy moves.
        """
        try:
            self._policy.restore(checkpoint.weights, checkpoint.num_updates)
            self._ascent.restore(checkpoint.moments)
            for name, part in self._remembering.items():
                part.restore(checkpoint.state[name])
        except (ArgumentError, KeyError) as error:
            raise RunFolderError(
                f"{checkpoint.path}: not of this policy: {error}; use the model and the options of its run"
            ) from error

    def explain(self, error: KlimbError, num_updates: int) -> None:
        """Save what can be saved after an error, and add to it what that is and how to go on.

        Args:
            error: What ended the run.
            num_updates: Updates of the weights whose lines are written.
        """
        has_all_lines = 0 < num_updates == self._policy.num_updates
        if has_all_lines and not self._is_broken and not isinstance(error, DivergedError):
            try:
                self.save(removes=not isinstance(error, GuardError))  # the last good weights may be older
            except OSError as failure:
                error.add_note(f"the last updates could not be saved: {failure}")
        error.add_note(f"{num_updates} updates were made; what was written stays in {self._folder.path}")
        error.add_note(self._advice())

    def translate(self, error: OSError, num_updates: int) -> RunFolderError:
        """Say what an error of the system means for the run: what is left of it, and how to go on.

        Args:
            error: What ended the run, such as that the disk is full.
            num_updates: Updates of the weights whose lines are written.
        """
        told = RunFolderError(f"{self._folder.path}: cannot be written to: {error}")
        told.add_note(f"{num_updates} updates were made; what was written stays in {self._folder.path}")
        told.add_note(self._advice())
        return told

    def _advice(self) -> str:
        path = self._folder.path
        if not (path / "config.json").is_file():
            return "the run's folder is gone, and its checkpoints with it"
        steps = self._folder.checkpoint_steps()
        last = f"the last checkpoint is of {steps[-1]} updates" if steps else "there is no checkpoint yet"
        return f"{last}; go on from there with: klimb train --resume {path}"


def surplus(steps: Sequence[int], keep: int | None, best: int | None) -> list[int]:
    """Choose which checkpoints to remove.

    Args:
        steps: Updates of the weights in each, in order.
        keep: How many of the newest stay, ≥ 1; all where None.
        best: The one that stays whatever its age, where there is one.
    """
    return [] if keep is None else [step for step in steps[:-keep] if step != best]
