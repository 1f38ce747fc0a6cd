"""What a program does to files, as strace writes it down: the calls of all its threads, when each begins and ends."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TRACED = (
    "open openat creat write pwrite64 writev pwritev pwritev2 sendto sendmsg lseek truncate ftruncate fallocate "
    "fsync fdatasync rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat mkdir mkdirat rmdir "
    "mmap sendfile copy_file_range splice syncfs"
)
_LINE = re.compile(r"(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))")
_END = re.compile(r"(.*)\) += (-?\d+|\?)(.*)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_OPENED = re.compile(r"(AT_FDCWD|\d+)(?:<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?)?")
WRITES = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2", "sendto", "sendmsg"})
SYNCS = frozenset({"fsync", "fdatasync"})


class UnknownCallError(Exception):
    """The trace holds something that the simulated disk cannot follow."""


@dataclass(frozen=True)
class Call:
    """A call of the system: its result is -1 where it failed, or the process was killed in it."""

    name: str
    arguments: list[str]
    result: int = -1

    @property
    def data(self) -> bytes:
        """All that is written by it."""
        found = [_STRING.search(argument) for argument in self.arguments]
        if any(match and match[2] for match in found):
            raise UnknownCallError(f"strace has cut what was written: {self.name}")
        return b"".join(unescaped(match[1]) for match in found if match)

    def opened(self, index: int) -> tuple[int, str | None]:
        """A descriptor and its file's path; None where that is deleted."""
        found = _OPENED.match(self.arguments[index])
        if found is None or found[2] is None:
            return -1, None
        return -1 if found[1] == "AT_FDCWD" else int(found[1]), None if found[3] else os.fsdecode(
            unescaped(found[2])
        )

    def path(self, index: int) -> str:
        """The path at this place, which may be relative to the descriptor before."""
        found = _STRING.match(self.arguments[index])
        before = self.opened(index - 1)[1] if index else None
        name = os.fsdecode(unescaped(found[1] if found else ""))
        if before is None and not os.path.isabs(name):
            raise UnknownCallError(f"{self.name} of a path relative to nobody knows what: {name}")
        return os.path.normpath(os.path.join(before or "/", name))


@dataclass(frozen=True)
class Event:
    """A call begins, or it ends: what it writes counts from its end, what it says from its beginning."""

    call: Call
    begins: bool


def escaped(text: bytes) -> str:
    """Bytes as strace writes them."""
    return "".join(f"\\x{byte:02x}" for byte in text)


def unescaped(escaped: str) -> bytes:
    """Bytes that strace wrote."""
    return bytes.fromhex(escaped.replace("\\x", ""))


def read_trace(lines: Iterable[str]) -> list[Event]:
    """Read what `strace -f -y -xx` wrote down, in order, also where calls of several threads overlap."""
    events: list[Event] = []
    begun: dict[str, tuple[int, str, str]] = {}
    for line in lines:
        if (found := _LINE.match(line)) is None:
            continue
        thread, name, rest = found[1], found[2] or found[4], found[3] if found[2] else found[5]
        if name not in _TRACED.split():
            continue
        if found[2]:
            begun[thread] = (len(events), name, "")
            events.append(Event(Call(name, rest.removesuffix("<unfinished ...>").split(", ")), begins=True))
        if rest.rstrip().endswith("<unfinished ...>"):
            begun[thread] = (len(events) - 1, name, rest.rstrip().removesuffix("<unfinished ...>").rstrip())
            continue
        index, _, before = begun.pop(thread)
        end = _END.match(before + rest)
        if end is None:
            continue
        result = -1 if end[2] == "?" else int(end[2])
        opens = [end[2] + end[3]] if name in ("open", "openat", "creat") else []
        call = Call(name, end[1].split(", ") + opens, result)
        events[index] = Event(call, begins=True)
        events.append(Event(call, begins=False))
    return events


def trace(command: Sequence[str], file: Path, kill_at: str = "") -> list[str]:
    """The command that runs another and writes to a file what it does; `fsync:40` kills it at its 40th such call."""
    name, _, number = kill_at.partition(":")
    # strace injects no signal where it lets the kernel filter the calls, which is faster.
    way = [f"--inject={name}:signal=KILL:when={number}"] if kill_at else ["--seccomp-bpf"]
    calls = ",".join(f"?{name}" for name in _TRACED.split())
    shown = ["-f", "-y", "-xx", "-s", "1000000000", "-e", f"trace={calls}"]
    return ["strace", *shown, *way, "-o", str(file), *command]
