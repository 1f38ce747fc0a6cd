"""A simulated disk: it replays a program's system calls and gives each state that a power cut may leave.

POSIX's strict rules: content is on the disk once its file was synced, a name once its folder was. A state holds what
was synced alone, everything, all names or all content alone, or a mixture, in which each unsynced write may be there,
missing or torn at a sector, and each folder may have the names of any moment since it was last synced.
"""

import itertools
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.crashlab.trace import SYNCS, WRITES, Call, Event, UnknownCallError, unescaped

State = dict[str, bytes | None]
"""What is in a folder: content by path, None for a folder."""

FIXED_STATES = (
    "synced alone",
    "everything",
    "names alone",
    "content alone",
)  # states that leave nothing to chance


class Node:
    """A file or folder: what is on the disk for certain, and what came since."""

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
    """The simulated disk of a folder, empty at first, which replays the calls of a trace."""

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
        """What may be found after a cut: one of `FIXED_STATES`, or a mixture."""
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
        """Anything else must not concern the folder, or the simulated disk would go astray."""
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
