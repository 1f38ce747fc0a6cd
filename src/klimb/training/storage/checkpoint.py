"""A checkpoint: the weights that move and the optimiser's state after so many steps, with their checksums."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from klimb.errors import RunFolderError
from klimb.io.atomic import sha256, whole_folder

_STATE = "state.json"
OTHERS = ("value", "value_optimiser")
"""Files of tensors that some runs have: the value function's weights, and its optimiser's state."""


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for and not kept.

    Args:
        file: The file; it must not change while this is used.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with safe_open(file, framework="pt") as tensors:
            self._names = dict.fromkeys(tensors.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._file, framework="pt") as tensors:  # anew: it holds on to what it has read
            return tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is certain to be what was written.

    Attributes:
        path: Its folder.
        step: Steps taken until then.
        num_updates: Updates of the weights until then.
        state: What else the run must remember, as JSON types.
        weights: The weights that move.
        moments: What the optimiser remembered.
        others: Tensors of the run's other parts, by their file's name: `value` and `value_optimiser`, if there are any.
    """

    path: Path
    step: int
    num_updates: int
    state: dict[str, Any]
    weights: StoredTensors
    moments: StoredTensors
    others: dict[str, StoredTensors] = field(default_factory=dict[str, StoredTensors])


def write_checkpoint(
    path: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    step: int,
    num_updates: int,
    remembered: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint as a folder that is there whole or not at all.

    Args:
        path: The folder; it must not exist.
        parts: Tensors by name, for each file's name without its suffix: `weights`, `optimiser`, and of `OTHERS`.
        step: Steps taken.
        num_updates: Updates of the weights.
        remembered: What else the run must remember, as JSON types.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    with whole_folder(path) as unfinished:
        for part, tensors in parts.items():
            try:
                save_file(dict(tensors), unfinished / f"{part}.safetensors")
            except SafetensorError as error:  # which says in its own words that a disk is full
                raise OSError(f"{path}: cannot be written: {error}") from error
        checksums = {file.name: sha256(file) for file in sorted(unfinished.glob("*.safetensors"))}
        state = {
            "step": step,
            "num_updates": num_updates,
            "remembered": dict(remembered or {}),
            "sha256": checksums,
        }
        state["seal"] = seal(state)
        (unfinished / _STATE).write_text(json.dumps(state, indent=2) + "\n")


def open_checkpoint(path: Path, step: int) -> Checkpoint:
    """Open a checkpoint, once all of it is certain to be what was written.

    Raises:
        RunFolderError: The checkpoint or a file of it is missing, cut short, altered, or of another step.
    """
    state = _checked_state(path, step)
    weights, moments = (_open_file(path, part, state) for part in ("weights", "optimiser"))
    others = {
        part: _open_file(path, part, state) for part in OTHERS if f"{part}.safetensors" in state["sha256"]
    }
    return Checkpoint(path, step, state["num_updates"], state["remembered"], weights, moments, others)


def open_weights(path: Path, step: int) -> tuple[StoredTensors, int]:
    """Open the weights of a checkpoint alone, once they are certain to be what was written.

    Args:
        path: The checkpoint's folder.
        step: Steps taken, as the checkpoint must say too.

    Returns:
        The weights, and how many updates they had.

    Raises:
        RunFolderError: The checkpoint or its file of weights is missing, cut short, altered, or of another step.
    """
    state = _checked_state(path, step)
    return _open_file(path, "weights", state), state["num_updates"]


def seal(state: Mapping[str, Any]) -> str:
    """SHA-256 of what `state.json` says, its own seal left out."""
    sealed = {name: value for name, value in state.items() if name != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _open_file(path: Path, part: str, state: dict[str, Any]) -> StoredTensors:
    file = path / f"{part}.safetensors"
    if not file.is_file():
        raise RunFolderError(f"{file}: missing; choose another checkpoint")
    if sha256(file) != state["sha256"].get(file.name):
        raise RunFolderError(
            f"{file}: cut short or altered since it was written: its SHA-256 is not the one in {_STATE}; "
            "choose another checkpoint"
        )
    return StoredTensors(file)


def _checked_state(path: Path, step: int) -> dict[str, Any]:
    if not path.is_dir():
        raise RunFolderError(f"{path}: no such checkpoint; choose one that is in {path.parent}")
    state = _read_state(path / _STATE)
    if state["step"] != step:
        raise RunFolderError(
            f"{path / _STATE}: the checkpoint is of step {state['step']}, not {step}; "
            "give the folder its original name, or choose another checkpoint"
        )
    return state


def _read_state(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise RunFolderError(f"{file}: missing; choose another checkpoint")
    try:
        state = json.loads(file.read_bytes())
    except ValueError as error:
        raise RunFolderError(f"{file}: cut short or altered: {error}; choose another checkpoint") from error
    if not (
        isinstance(state, dict)
        and isinstance(state.get("num_updates"), int)
        and isinstance(state.get("remembered"), dict)
        and isinstance(state.get("sha256"), dict)
    ):
        raise RunFolderError(
            f"{file}: altered: expected num_updates, remembered and sha256; choose another checkpoint"
        )
    if state.get("seal") != seal(state):
        raise RunFolderError(f"{file}: altered since it was written; choose another checkpoint")
    state.setdefault("step", state["num_updates"])  # klimb 0.1 made one update a step, and wrote that alone
    return state
