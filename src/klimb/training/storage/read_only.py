"""A run's folder for every rank but 0: they read it, and only rank 0 writes."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from klimb.training.evaluate.best import BestSoFar
from klimb.training.storage.folder import RunFolder


class ReadOnlyFolder(RunFolder):
    """A run's folder in which every method that writes does nothing."""

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Leave the claim to rank 0."""
        yield

    def write_config(self, config: Mapping[str, Any], resumed: Sequence[Mapping[str, Any]] = ()) -> None:
        """Do nothing."""

    def write_fingerprints(self, fingerprints: Mapping[str, Mapping[str, str]]) -> None:
        """Do nothing."""

    def append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Do nothing."""

    def remove_model(self) -> None:
        """Do nothing."""

    def save_model(self, write: Callable[[Path], None]) -> None:
        """Do nothing."""

    def save_checkpoint(
        self,
        step: int,
        num_updates: int,  # noqa: ARG002
        parts: Mapping[str, Mapping[str, Tensor]],  # noqa: ARG002
        remembered: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> Path:
        """Return where rank 0 writes it."""
        return self.checkpoint(step)

    def remove_checkpoint(self, step: int) -> None:
        """Do nothing."""

    def sweep(self) -> None:
        """Do nothing."""

    def write_best(self, best: BestSoFar) -> None:
        """Do nothing."""
