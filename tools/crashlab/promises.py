"""What klimb promises about a loss of power: judgements that were acknowledged, checkpoints that were written."""

import hashlib
import random
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tools.crashlab.disk import Disk


class Judgements:
    """Each judgement that was acknowledged is in the store: its number, and the note that came with it."""

    def __init__(self, notes: dict[int, str]) -> None:
        self._notes = notes

    def hear(self, said: bytes, disk: Disk) -> int | None:
        """The number in an answer of the server's."""
        del disk
        found = re.search(rb'\{"saved":(\d+)', said)
        return int(found[1]) if found else None

    def find(self, folder: Path) -> dict[int, str] | Exception:
        """Notes by number."""
        from klimb.feedback.store.store import Store

        try:
            with Store.open(folder / "feedback.db") as store:
                found = {judgement.id: judgement.note for judgement in store.judgements()}
            with sqlite3.connect(folder / "feedback.db") as connection:
                (said,) = connection.execute("PRAGMA integrity_check").fetchone()
            connection.close()
        except Exception as error:  # whatever it is, the store is not open
            return error
        return found if said == "ok" else ValueError(said)

    def lack(self, found: dict[int, str] | Exception, promised: Sequence[int]) -> str | None:
        """Numbers that are missing, or stand for another judgement."""
        if isinstance(found, Exception):
            return f"the store cannot be opened: {found!r}"
        lost = [number for number in promised if found.get(number) != self._notes[number]]
        return f"{len(lost)} of {len(promised)} acknowledged judgements are gone: {lost}" if lost else None


class Checkpoints:
    """A run can go on from the last checkpoint that was written or a newer one, whose files are what was written."""

    def __init__(self) -> None:
        self._files: dict[int, dict[str, str]] = {}

    def hear(self, said: bytes, disk: Disk) -> int | None:
        """How many updates the checkpoint is of that is said to be written."""
        found = re.search(rb"klimb wrote step-(\d+)\n", said)
        if found is None:
            return None
        place = f"run/checkpoints/step-{found[1].decode()}/"
        state = disk.state("everything", random.Random())  # noqa: S311  nothing is left to chance
        self._files[int(found[1])] = {
            path.removeprefix(place): hashlib.sha256(content or b"").hexdigest()
            for path, content in state.items()
            if path.startswith(place)
        }
        return int(found[1])

    def find(self, folder: Path) -> tuple[int, dict[str, str]] | Exception:
        """Updates after which the run goes on, and SHA-256 of that checkpoint's files."""
        from klimb.config.train import TrainConfig
        from klimb.training.storage.folder import RunFolder
        from klimb.training.storage.resume import plan_resumption

        run = RunFolder(folder / "run")
        try:
            if not (run.path / "config.json").is_file():
                RunFolder.require_free(run.path)
                return 0, {}
            found = plan_resumption(replace(TrainConfig.from_dict(run.read_config()), out=run.path))
            if found.step == 0:
                return 0, {}
            checkpoint = found.checkpoint or run.open_checkpoint(run.checkpoint_steps()[-1])
        except Exception as error:  # whatever it is, the run cannot go on
            return error
        files = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.path.iterdir()
        }
        return checkpoint.num_updates, files

    def lack(self, found: tuple[int, dict[str, str]] | Exception, promised: Sequence[int]) -> str | None:
        """What keeps the run from going on where it should."""
        if isinstance(found, Exception):
            return f"the run cannot go on: {found!r}"
        step, files = found
        if step < max(promised, default=0):
            return f"the run goes on after {step} updates; a checkpoint of {max(promised)} had been written"
        if step and files != self._files.get(step, files):
            return f"the checkpoint of {step} updates is not what was written"
        return None
