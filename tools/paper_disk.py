"""A disk on paper: what a program's calls leave on it if the power is cut.

A program runs under strace (traced.py). What a disk may hold after a cut follows from
that under the strict rules of POSIX: content counts once its file was synced, a name once its folder was. The folder is
then built as it may be found: with what was synced alone, with everything, with all names or all content alone, and in
mixtures, in which an unsynced write may be there, may be missing or torn at a sector, and each folder may be at any
moment since it was last synced. What is promised, and whether it is kept, a `Promise` knows (power_cut.py).
"""

import hashlib
import itertools
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from traced import SYNCS, WRITES, Call, Event, UnknownCallError, unescaped

State = dict[str, bytes | None]
"""What is in a folder: content by path, None for a folder."""

_FIXED = ("synced alone", "everything", "names alone", "content alone")  # states that leave nothing to chance


class Node:
    """A file or folder on paper: what is on the disk for certain, and what came since."""

    def __init__(self) -> None:
        self.pending: list[Any] = []
        self._num_synced = 0

    def moment(self) -> int:
        """The present, as `sync` takes it."""
        return self._num_synced + len(self.pending)

    def sync(self, moment: int) -> None:
        """Bring what came until a moment to the disk."""
        while self._num_synced < moment:
            self._settle(self.pending.pop(0))
            self._num_synced += 1

    def _settle(self, change: Any) -> None:
        raise NotImplementedError


class File(Node):
    """A file; a change is an offset and what is written there, or a size and None."""

    def __init__(self) -> None:
        super().__init__()
        self.synced, self.live = bytearray(), bytearray()

    def change(self, offset: int, data: bytes | None) -> None:
        """Write, or give it another size."""
        self.pending.append((offset, data))
        _apply(self.live, offset, data)

    def _settle(self, change: tuple[int, bytes | None]) -> None:
        _apply(self.synced, *change)

    def mixture(self, chance: random.Random) -> bytes:
        """What may be on the disk: of each change since it was synced all, nothing, or some sectors."""
        content, kept = bytearray(self.synced), chance.choice((0, 0.5, 0.9, 1))
        for offset, data in self.pending:
            if chance.random() < kept:
                _apply(content, offset, data)
            elif data is not None:
                if chance.random() < 0.5:  # the size is there already, the content is not
                    _apply(content, offset + len(data), b"")
                for start, piece in _sectors(offset, data, chance.choice((512, 4096))):
                    if kept and chance.random() < 0.5:
                        _apply(content, start, piece)
        return bytes(content)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
    end = offset + len(data or b"")
    content.extend(bytes(max(end - len(content), 0)))
    if data:
        content[offset:end] = data


def _sectors(offset: int, data: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    starts = [offset, *range(offset - offset % size + size, offset + len(data), size), offset + len(data)]
    for start, end in itertools.pairwise(starts):
        yield start, data[start - offset : end - offset]


class Folder(Node):
    """A folder; a change is all of its names after it."""

    def __init__(self) -> None:
        super().__init__()
        self.synced: dict[str, Node] = {}

    @property
    def live(self) -> dict[str, Node]:
        """Its names now."""
        return self.pending[-1] if self.pending else self.synced

    def put(self, name: str, node: Node) -> None:
        """Give a node a name here, which another may have had."""
        self.pending.append({**self.live, name: node})

    def take(self, name: str) -> Node:
        """Take a name away."""
        self.pending.append({other: node for other, node in self.live.items() if other != name})
        return (self.pending[-2] if len(self.pending) > 1 else self.synced)[name]

    def _settle(self, change: dict[str, Node]) -> None:
        self.synced = change


class Disk:
    """A folder, empty at first, on a disk on paper, which goes through the calls of a trace."""

    def __init__(self, root: Path) -> None:
        self._root = str(root.resolve())
        self._top = Folder()
        self._positions: dict[tuple[int, Node], int | None] = {}  # None: at the end, whatever that is
        self._syncs: dict[int, tuple[Node, int]] = {}

    def go_on(self, event: Event) -> bool:
        """Take what begins or ends into account, and return whether the disk may hold something else now."""
        call = event.call
        if event.begins:
            node = self._node_of(call) if call.name in SYNCS else None
            if node is not None:
                self._syncs[id(call)] = (node, node.moment())
            return False
        if call.result < 0:
            return False
        if call.name in SYNCS:
            node, moment = self._syncs.pop(id(call), (None, 0))
            if node is not None:
                node.sync(moment)
            return node is not None
        return self._change(call)

    def state(self, kind: str, chance: random.Random) -> State:
        """What may be found after a cut: one of `_FIXED`, or a mixture."""
        return dict(_walk(self._top, "", kind, chance))

    def is_elsewhere(self, call: Call) -> bool:
        """Whether what a call writes goes to something else: a browser, or a screen."""
        path = call.opened(0)[1]
        return path is None or self._inside(path) is None

    def _inside(self, path: str) -> str | None:
        if path.endswith("-shm") or not path.startswith(self._root):  # SQLite makes -shm anew
            return None
        return path[len(self._root) :].strip("/") if path[len(self._root) :][:1] in ("", "/") else None

    def _find(self, path: str | None) -> Node | None:
        inside = None if path is None else self._inside(path)
        node: Node | None = None if inside is None else self._top
        for name in filter(None, (inside or "").split("/")):
            node = node.live.get(name) if isinstance(node, Folder) else None
        return node

    def _node_of(self, call: Call) -> Node | None:
        path = call.opened(0)[1]
        node = self._find(path)
        if node is None and path is not None and self._inside(path) is not None:
            raise UnknownCallError(f"{call.name} of a file that was not seen made: {path}")
        return node

    def _parent(self, path: str) -> tuple[Folder, str] | None:
        if not self._inside(path):  # elsewhere, or the folder itself
            return None
        folder, name = os.path.split(path)
        found = self._find(folder)
        if not isinstance(found, Folder):
            raise UnknownCallError(f"a folder that was not seen made: {folder}")
        return found, name

    def _change(self, call: Call) -> bool:
        actions: dict[str, Callable[[], bool]] = {
            "open": lambda: self._open(call, 0),
            "openat": lambda: self._open(call, 1),
            "lseek": lambda: self._seek(call),
            "ftruncate": lambda: self._resize(call),
            "rename": lambda: self._move(call.path(0), call.path(1)),
            "renameat": lambda: self._move(call.path(1), call.path(3)),
            "unlink": lambda: self._remove(call.path(0)),
            "unlinkat": lambda: self._remove(call.path(1)),
            "rmdir": lambda: self._remove(call.path(0)),
            "mkdir": lambda: self._make(call.path(0)),
            **dict.fromkeys(WRITES, lambda: self._write(call)),
        }
        return actions.get(call.name, lambda: self._refuse(call))()

    def _open(self, call: Call, at: int) -> bool:
        path = call.path(at)
        if (place := self._parent(path)) is None:
            return False
        node = self._find(path)
        flags = call.arguments[at + 1].split("|")
        is_new = node is None
        if node is None:
            if "O_CREAT" not in flags:
                raise UnknownCallError(f"opened, but not seen made: {path}")
            node = File()
            place[0].put(place[1], node)
        self._positions[call.result, node] = None if "O_APPEND" in flags else 0
        if isinstance(node, File) and "O_TRUNC" in flags and node.live:
            node.change(0, None)
            return True
        return is_new

    def _seek(self, call: Call) -> bool:
        descriptor, path = call.opened(0)
        node = self._find(path)
        if node is not None and self._positions.get((descriptor, node), 0) is not None:
            self._positions[descriptor, node] = call.result
        return False

    def _write(self, call: Call) -> bool:
        node = self._node_of(call)
        if not isinstance(node, File):
            return False
        data = call.data[: call.result]
        if call.name.startswith("pwrite"):
            node.change(int(call.arguments[-2 if call.name == "pwritev2" else -1]), data)
            return True
        key = call.opened(0)[0], node
        if key not in self._positions:
            raise UnknownCallError(f"a write through a descriptor that was not seen opened: {call.opened(0)}")
        position = self._positions[key]
        node.change(len(node.live) if position is None else position, data)
        self._positions[key] = None if position is None else position + len(data)
        return True

    def _resize(self, call: Call) -> bool:
        node = self._node_of(call)
        if isinstance(node, File):
            node.change(int(call.arguments[1]), None)
        return isinstance(node, File)

    def _move(self, old: str, new: str) -> bool:
        source, target = self._parent(old), self._parent(new)
        if source is None and target is None:
            return False
        if source is None or target is None:
            raise UnknownCallError(f"a move over the edge: {old} to {new}")
        if source[0] is not target[0]:
            target[0].put(target[1], source[0].take(source[1]))
            return True
        names = {name: node for name, node in source[0].live.items() if name != source[1]}
        source[0].pending.append({**names, target[1]: source[0].live[source[1]]})  # one change, not two
        return True

    def _remove(self, path: str) -> bool:
        if (place := self._parent(path)) is not None:
            place[0].take(place[1])
        return place is not None

    def _make(self, path: str) -> bool:
        if (place := self._parent(path)) is not None:
            place[0].put(place[1], Folder())
        return place is not None

    def _refuse(self, call: Call) -> bool:
        """Anything else must not concern the folder, or the disk on paper would go astray."""
        if call.name == "mmap" and not ("SHARED" in call.arguments[3] and "WRITE" in call.arguments[2]):
            return False
        named = re.findall(r'[<"]((?:\\x..)+)[>"]', ", ".join(call.arguments))
        if inside := [
            path for path in map(os.fsdecode, map(unescaped, named)) if self._inside(path) is not None
        ]:
            raise UnknownCallError(f"{call.name} is not followed: {inside}")
        return False


def _walk(folder: Folder, place: str, kind: str, chance: random.Random) -> Iterator[tuple[str, bytes | None]]:
    if kind == "mixture":
        names = chance.choice([folder.synced, *folder.pending])
    else:
        names = folder.live if kind in ("everything", "names alone") else folder.synced
    for name, node in names.items():
        if isinstance(node, Folder):
            yield place + name, None
            yield from _walk(node, f"{place}{name}/", kind, chance)
        elif isinstance(node, File) and kind == "mixture":
            yield place + name, node.mixture(chance)
        elif isinstance(node, File):
            yield place + name, bytes(node.live if kind in ("everything", "content alone") else node.synced)


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
            for kind in [*_FIXED, *["mixture"] * num_mixtures] if index in chosen else []:
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
