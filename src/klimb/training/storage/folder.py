"""A run's folder: its files, and how they are written atomically."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from klimb.errors import RunFolderError
from klimb.io.atomic import (
    append_text,
    make_folder,
    remove_folder,
    remove_leftovers,
    sync,
    whole_folder,
    write_file,
)
from klimb.io.show import redacted
from klimb.rl.metrics import with_present_names
from klimb.training.evaluate.best import BestSoFar
from klimb.training.storage.checkpoint import (
    Checkpoint,
    StoredTensors,
    open_checkpoint,
    open_weights,
    write_checkpoint,
)

_OF_A_START = re.compile(
    r"people\.db\.lock|fingerprints\.json|\.(fingerprints|config)\.json\.[a-z0-9_]{8}|inputs|\.inputs\.[a-z0-9_]{8}"
)
_WRITTEN_ASIDE = re.compile(
    r"(fingerprints|config|best|trackers)\.json|report\.html|model|inputs|step-\d{6,}"
)
_CHECKPOINT = re.compile(r"step-(\d{6,})")


class RunFolder:
    """The files of one run.

    `config.json` what was asked for, and how the run was resumed · `fingerprints.json` checksums of what it
    began with · `metrics.jsonl` one line a step · `completions.jsonl` one
    line a completion · `evaluations.jsonl` one line a completion judged before, along the way and after ·
    `checkpoints/step-000040/` after 40 steps · `best.json` which of them is the best, where that is kept ·
    `model/` the result · `report.html` · `inputs/` prompts and a model that were given as Python objects ·
    `trackers.json` the run's ids at trackers · where people are the reward, `people.db` what they said, and
    `people.jsonl` what each step learned from it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.report = path / "report.html"
        self.inputs = path / "inputs"
        self.fingerprints = path / "fingerprints.json"

    @classmethod
    def create(
        cls, path: Path, config: dict[str, Any], fingerprints: Mapping[str, Mapping[str, str]] | None = None
    ) -> "RunFolder":
        """Make the folder and write into it what the run begins with, the configuration last: it makes it a run's.

        Raises:
            RunFolderError: Something is there already, or the folder cannot be made.
        """
        cls.require_free(path)
        folder = cls(path)
        try:
            make_folder(path)
            folder.write_fingerprints(fingerprints or {})
            write_file(path / "config.json", _json(redacted(config)))
        except OSError as error:
            raise RunFolderError(f"{path}: cannot make the run's folder: {error.strerror}") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an earlier run.

        Raises:
            RunFolderError: It is not the folder of a run.
        """
        if not (path / "config.json").is_file() or not (path / "metrics.jsonl").is_file():
            raise RunFolderError(f"{path}: not the folder of a run: it has no config.json and metrics.jsonl")
        return cls(path)

    @classmethod
    def find(cls, path: Path) -> "RunFolder":
        """Open the folder of a run that may not have taken a step yet.

        Raises:
            RunFolderError: It is not the folder of a run.
        """
        if not (path / "config.json").is_file():
            raise RunFolderError(f"{path}: not the folder of a run: it has no config.json")
        return cls(path)

    @staticmethod
    def require_free(path: Path) -> None:
        """Raise unless nothing is at `path`, an empty folder, or what is left of a start that was cut off."""
        if path.is_dir() and all(_OF_A_START.fullmatch(entry.name) for entry in path.iterdir()):
            return
        if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
            raise RunFolderError(
                f"{path}: exists already, and is a run: resume it with klimb train --resume {path}, or choose "
                "another --out"
            )
        if path.exists():
            raise RunFolderError(f"{path}: exists already; choose another --out, or move it away")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from running in this folder meanwhile; the end of this one ends the claim.

        Raises:
            RunFolderError: Another process runs in it, or the folder is gone.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be opened: {error.strerror}") from error
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)

    def write_config(self, config: Mapping[str, Any], resumed: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write what is asked for now, and how the run was resumed, as one file that is replaced as a whole."""
        write_file(self.path / "config.json", _json(redacted({**config, "resumed": list(resumed)})))

    def write_fingerprints(self, fingerprints: Mapping[str, Mapping[str, str]]) -> None:
        """Write `fingerprints.json`: the checksums of what the run is made from."""
        write_file(self.fingerprints, _json(fingerprints))

    def append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines to `metrics.jsonl`, `completions.jsonl` or `evaluations.jsonl`, synced to the disk."""
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        append_text(self.path / f"{name}.jsonl", lines)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Read the lines of one of the files that `append` writes.

        A last line without its end was cut off by a crash and is left out. Metrics of an earlier version get their
        present names.

        Raises:
            RunFolderError: The file is missing, or a line of it is not JSON.
        """
        file = self.path / f"{name}.jsonl"
        if not file.is_file():
            raise RunFolderError(f"{file}: missing; the run did not get that far")
        rows = []
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith("\n"):
                    break
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise RunFolderError(f"{file}:{number}: not JSON: {error.msg}") from error
                rows.append(with_present_names(row) if name == "metrics" else row)
        return rows

    def read_config(self) -> dict[str, Any]:
        """Read what was asked for, the last time that the run was begun or resumed.

        Raises:
            RunFolderError: The file is not JSON.
        """
        file = self.path / "config.json"
        try:
            options = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{file}: not JSON: {error}") from error
        options.pop("resumed", None)
        return options

    def remove_model(self) -> None:
        """Remove the model of weights that are gone back from, if there is one."""
        if self.model.is_dir():
            remove_folder(self.model)

    def read_resumed(self) -> list[dict[str, Any]]:
        """Read how the run was resumed: each time the `step`, the `time`, and the `changes` of options."""
        return json.loads((self.path / "config.json").read_text(encoding="utf-8")).get("resumed", [])

    def save_model(self, write: Callable[[Path], None]) -> None:
        """Write the fine-tuned model as a folder that transformers opens, in the place of an earlier one.

        Args:
            write: Writes the model's files into the folder that it is given.

        Raises:
            OSError: It cannot be written; an earlier one is as it was.
        """
        with whole_folder(self.model, replaces=True) as unfinished:
            try:
                write(unfinished)
            except SafetensorError as error:  # which says in its own words that a disk is full
                raise OSError(f"{self.model}: cannot be written: {error}") from error

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after so many steps is, if there is one."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """After how many steps there are checkpoints, in order, damaged ones included."""
        folder = self.path / "checkpoints"
        found = [_CHECKPOINT.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name[1]) for name in found if name)

    def save_checkpoint(
        self,
        step: int,
        num_updates: int,
        parts: Mapping[str, Mapping[str, Tensor]],
        remembered: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write named tensors and what else is remembered as a checkpoint, with their checksums.

        The step and the seed decide all else, since the RNG is counter-based. A checkpoint of this step that exists
        already is left as it is.

        Args:
            step: Steps taken so far.
            num_updates: Updates of the weights so far.
            parts: Tensors by name, for each file: `weights`, those that are trained, and `optimiser`, its state.
            remembered: The state of the run's other parts, as JSON types.
        """
        path = self.checkpoint(step)
        if path.exists():
            sync(path)  # a run that was killed may have named it without
            return path
        write_checkpoint(path, parts, step, num_updates, remembered)
        return path

    def open_checkpoint(self, step: int) -> Checkpoint:
        """Open the checkpoint after so many steps, once all of it is certain to be what was written.

        Raises:
            RunFolderError: It or a file of it is missing, cut short or altered.
        """
        return open_checkpoint(self.checkpoint(step), step)

    def open_weights(self, step: int) -> tuple[StoredTensors, int]:
        """Open the weights after so many steps, once they are certain to be what was written.

        Returns:
            The weights, and how many updates they had.

        Raises:
            RunFolderError: The checkpoint or its file of weights is missing, cut short or altered.
        """
        return open_weights(self.checkpoint(step), step)

    def remove_checkpoint(self, step: int) -> None:
        """Remove a checkpoint if it is there, so that it is whole or gone whatever the moment of a crash."""
        if self.checkpoint(step).is_dir():
            remove_folder(self.checkpoint(step))

    def sweep(self) -> None:
        """Remove what a crash left of files and folders that were being written or removed."""
        for folder in (self.path, self.path / "checkpoints"):
            if folder.is_dir():
                remove_leftovers(folder, _WRITTEN_ASIDE)

    def write_best(self, best: BestSoFar) -> None:
        """Write `best.json`: which weights are the best so far, and why."""
        write_file(self.path / "best.json", _json(best.to_dict()))

    def read_best(self) -> BestSoFar | None:
        """Read `best.json`; None where the run keeps its last weights.

        Raises:
            RunFolderError: The file is not what `write_best` wrote.
        """
        file = self.path / "best.json"
        if not file.is_file():
            return None
        try:
            return BestSoFar.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{file}: damaged or edited: {type(error).__name__}: {error}; restore the file"
            ) from error


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunFolderError(
            f"{path}: another process is using it; wait until it ends, or stop it"
        ) from error
    except OSError:  # a file system without locks
        return


def standing(resumed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose of the times at which a run was resumed those that it has not gone back from since."""
    return [
        entry
        for number, entry in enumerate(resumed)
        if all(entry["step"] <= later["step"] for later in resumed[number:])
    ]
