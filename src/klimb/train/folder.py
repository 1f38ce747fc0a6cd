"""A run is a folder: what is in it, and how it is written so that nothing is ever half there."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from klimb.errors import ArgumentError, RunFolderError
from klimb.files import append_text, make_folder, whole_folder, write_file
from klimb.policy.policy import Policy
from klimb.train.ascent import Ascent
from klimb.train.checkpoint import open_part, write_checkpoint
from klimb.train.choice import Choice


class RunFolder:
    """The files of one run.

    `config.json` what was asked for · `metrics.jsonl` one line a step · `completions.jsonl` one
    line a completion · `evaluations.jsonl` one line a completion judged before, along the way and after ·
    `checkpoints/step-000040/` after 40 updates · `best.json` which of them is the best, where that is kept ·
    `model/` the result · `report.html`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.report = path / "report.html"

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> "RunFolder":
        """Make the folder and write the configuration into it.

        Raises:
            RunFolderError: Something is there already, or the folder cannot be made.
        """
        cls.require_free(path)
        try:
            make_folder(path)
            write_file(path / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunFolderError(f"{path}: cannot make the run's folder: {error.strerror}") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an earlier run.

        Raises:
            RunFolderError: It is not the folder of a run.
        """
        if not (path / "config.json").is_file() or not (path / "metrics.jsonl").is_file():
            raise RunFolderError(f"{path}: not the folder of a run: it has no config.json and metrics.jsonl")
        return cls(path)

    @staticmethod
    def require_free(path: Path) -> None:
        """Raise unless nothing, or an empty folder, is at `path`."""
        if path.is_dir() and not any(path.iterdir()):
            return
        if path.exists():
            raise RunFolderError(f"{path}: exists already; choose another --out, or move it away")

    def append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines to `metrics.jsonl`, `completions.jsonl` or `evaluations.jsonl`, synced to the disk."""
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        append_text(self.path / f"{name}.jsonl", lines)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Read the lines of one of the files that `append` writes.

        A last line without its end was cut off by a crash; it is passed over.

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
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise RunFolderError(f"{file}:{number}: not JSON: {error.msg}") from error
        return rows

    def read_config(self) -> dict[str, Any]:
        """Read what was asked for.

        Raises:
            RunFolderError: The file is not JSON.
        """
        file = self.path / "config.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{file}: not JSON: {error}") from error

    def save_model(self, policy: Policy) -> None:
        """Write the fine-tuned model as a folder that transformers opens."""
        with whole_folder(self.model) as unfinished:
            policy.save(unfinished)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after so many updates is, if there is one."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def save_checkpoint(self, policy: Policy, ascent: Ascent) -> Path:
        """Write the weights that move and the optimiser's state, with their checksums.

        The step and the seed decide all else, since random numbers are counted. A checkpoint
        of this number of updates that exists already is left as it is.
        """
        path = self.checkpoint(policy.num_updates)
        if path.exists():
            return path
        weights = {name: p.detach().contiguous() for name, p in policy.trainable().items()}
        write_checkpoint(path, {"weights": weights, "optimiser": ascent.moments()}, policy.num_updates)
        return path

    def load_weights(self, policy: Policy, step: int) -> None:
        """Give a policy the weights that it had after so many updates, in place.

        Nothing is changed unless the checkpoint is what was written and fits the policy; one tensor at a
        time is read.

        Raises:
            RunFolderError: The checkpoint or a file of it is missing, cut short, altered, or of other weights
                than those that the policy moves.
        """
        path = self.checkpoint(step)
        weights = open_part(path, "weights", step)
        try:
            policy.restore(weights, step)
        except ArgumentError as error:
            raise RunFolderError(
                f"{path / 'weights.safetensors'}: not weights of this policy: {error}; "
                "use the model and the options of its run"
            ) from error

    def remove_checkpoint(self, step: int) -> None:
        """Remove a checkpoint, so that it is there whole or not at all whatever the moment of a crash."""
        path = self.checkpoint(step)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as doomed:
            path.rename(Path(doomed) / path.name)

    def write_choice(self, choice: Choice) -> None:
        """Write `best.json`: which weights are the best so far, and why."""
        write_file(self.path / "best.json", json.dumps(choice.to_dict(), indent=2, allow_nan=False) + "\n")

    def read_choice(self) -> Choice | None:
        """Read `best.json`; None where the run keeps its last weights.

        Raises:
            RunFolderError: The file is not what `write_choice` wrote.
        """
        file = self.path / "best.json"
        if not file.is_file():
            return None
        try:
            return Choice.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{file}: not as a run writes it: {type(error).__name__}: {error}"
            ) from error
