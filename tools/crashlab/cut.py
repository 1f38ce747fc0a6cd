"""Cutting the power: at many instants of a trace, is everything that was promised until then still there?"""

import hashlib
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tools.crashlab.disk import FIXED_STATES, Disk, State
from tools.crashlab.trace import WRITES, Event, UnknownCallError


class Promise(Protocol):
    """What a program has promised, and whether that is kept."""

    def hear(self, said: bytes, disk: Disk) -> Any:
        """What is promised by these words, given the disk at that moment; None where nothing is."""

    def find(self, folder: Path) -> Any:
        """What klimb's own code finds in a folder after a cut; an error where it cannot open it."""

    def lack(self, found: Any, promised: Sequence[Any]) -> str | None:
        """Say what is not as promised."""


@dataclass
class Tally:
    """What came of the cuts: of how many, at which states of the disk, something promised was lost."""

    num_calls: int  # that changed the disk, or synced it
    num_promised: int
    num_cuts: int
    num_states: int = 0
    num_distinct: int = 0
    losses: list[str] = field(default_factory=list)


def cut(
    root: Path,
    events: list[Event],
    promise: Promise,
    *,
    num_cuts: int = 0,
    num_mixtures: int = 4,
    seed: int = 0,
) -> Tally:
    """Cut the power at many instants and see whether what was promised until then is still there.

    Args:
        root: The folder of which the trace tells, as it is at the end.
        events: The trace, from when the folder was empty.
        promise: What is promised, and how to tell.
        num_cuts: At how many instants; those after a sync, another name or a promise come first. 0: at all.
        num_mixtures: States of the disk by chance that are tried for each, beside the four fixed ones.
        seed: Of what is left to chance.

    Raises:
        UnknownCallError: The trace does not lead to what is in the folder now.
    """
    promised, instants = _rehearse(root, events, promise)
    chance = random.Random(seed)  # noqa: S311  no secret
    chosen = _choose(events, promised, instants, num_cuts or len(instants), chance)
    tally = Tally(num_calls=len(instants), num_promised=len(promised), num_cuts=len(chosen))
    disk, until_now, known = Disk(root), [], {}
    with tempfile.TemporaryDirectory(prefix="klimb-power-") as scratch:
        for index, event in enumerate(events):
            disk.go_on(event)
            until_now += [promised[index]] if index in promised else []
            for kind in [*FIXED_STATES, *["mixture"] * num_mixtures] if index in chosen else []:
                state = disk.state(kind, chance)
                digest = _digest(state)
                if digest not in known:
                    known[digest] = promise.find(_build(state, Path(scratch)))
                tally.num_states += 1
                if (lost := promise.lack(known[digest], until_now)) is not None:
                    tally.losses.append(f"after call {index} ({event.call.name}), {kind}: {lost}")
    tally.num_distinct = len(known)
    return tally


def _rehearse(root: Path, events: list[Event], promise: Promise) -> tuple[dict[int, Any], list[int]]:
    """Go through a trace, and return what is promised when, and when the disk changes."""
    disk, promised, instants = Disk(root), {}, []
    for index, event in enumerate(events):
        call = event.call
        if event.begins and call.name in WRITES and call.result > 0:
            heard = promise.hear(call.data, disk) if disk.is_elsewhere(call) else None
            if heard is not None:
                promised[index] = heard
        if disk.go_on(event) or index in promised:
            instants.append(index)
    real = {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in root.rglob("*")}
    real = {path: content for path, content in real.items() if not path.endswith("-shm")}
    paper = disk.state("everything", random.Random())  # noqa: S311  nothing is left to chance
    if differing := [path for path in real.keys() | paper.keys() if real.get(path, 0) != paper.get(path, 0)]:
        raise UnknownCallError(f"the trace does not lead to what is there: {', '.join(sorted(differing))}")
    return promised, instants


def _choose(
    events: list[Event], promised: dict[int, Any], instants: list[int], num_cuts: int, chance: random.Random
) -> set[int]:
    first = [i for i in instants if i in promised or events[i].call.name not in WRITES]
    rest = sorted(set(instants) - set(first))
    first = chance.sample(first, min(num_cuts, len(first)))
    return {*first, *chance.sample(rest, min(num_cuts - len(first), len(rest)))}


def _digest(state: State) -> bytes:
    found = hashlib.sha256()
    for path, content in sorted(state.items()):
        found.update(repr((path, None if content is None else len(content))).encode() + (content or b""))
    return found.digest()


def _build(state: State, scratch: Path) -> Path:
    folder = scratch / "found"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in state.items():
        (folder / path).mkdir() if content is None else (folder / path).write_bytes(content)
    return folder
