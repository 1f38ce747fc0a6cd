"""Starting ranks as processes of this machine: `klimb train --ranks`, by torch's elastic launch.

The launcher does nothing but start the ranks, start them again where one was lost, and hand them the signals that it
gets. An environment variable names its folder, to which each rank writes its process id, and rank 0 its exit code.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

from klimb.errors import ConfigError
from klimb.io.progress import warn
from klimb.kernels.quota import processor_quota

_FOLDER = "KLIMB_LAUNCH_FOLDER"
_PROCESS = "KLIMB_RANK_PROCESS"
_SHUTDOWN = 10  # seconds from SIGTERM to SIGKILL for ranks that remain after one was lost
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def is_rank() -> bool:
    """Whether this process was started as one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_speaker() -> bool:
    """Whether this process tells people what happens: rank 0, or the only one."""
    return not is_rank() or os.environ.get("RANK") == "0"


def is_restarted() -> bool:
    """Whether ranks were started before this one and lost."""
    return is_rank() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def launch(arguments: Sequence[str], num_ranks: int, max_restarts: int) -> int:
    """Run `klimb ARGUMENTS` as so many ranks, and return the exit code.

    Args:
        arguments: Of the command line.
        num_ranks: Processes to start.
        max_restarts: How often all ranks are started again after one was lost.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what happened is told below
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_rank(num_ranks)))
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(_SHUTDOWN)
    options: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": num_ranks,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "127.0.0.1:0",
        "local_addr": "127.0.0.1",
        "max_restarts": max_restarts,
        "signals_to_handle": "SIGQUIT",  # the others go to the ranks, which finish their step
    }
    known = {field.name for field in fields(LaunchConfig)}
    config = LaunchConfig(**{name: value for name, value in options.items() if name in known})
    with tempfile.TemporaryDirectory(prefix="klimb-ranks-") as temporary:
        folder = Path(temporary)
        os.environ[_FOLDER] = temporary
        try:
            with _passing_signals(folder):
                elastic_launch(config, sys.executable)("-m", "klimb", *arguments)
        except ChildFailedError as error:
            code = _code_of_lost({rank: failure.exitcode for rank, failure in error.failures.items()})
            return _read(folder / "exit") or code
        finally:
            del os.environ[_FOLDER]
        return _read(folder / "exit") or 0


def _code_of_lost(codes: Mapping[int, int]) -> int:
    """Say which ranks were ended by which signal, and return the exit code; the others are ended by SIGTERM then."""
    lost = {rank: code for rank, code in sorted(codes.items()) if code < 0 and code != -signal.SIGTERM}
    for rank, code in lost.items():
        warn(f"rank {rank} was ended by {signal.Signals(-code).name}")
    code = next(iter(lost.values() or codes.values()))
    return 128 - code if code < 0 else code


def threads_of_rank(num_ranks: int) -> int:
    """Threads of each of so many ranks of this machine: together they have one a processor."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(available, processor_quota() or available) // num_ranks, 1)


def require_ranks(num_ranks: int, max_restarts: int) -> None:
    """Raise where the options of a launch cannot be.

    Raises:
        ConfigError: One is out of range, or ranks were started already.
    """
    if num_ranks < 1:
        raise ConfigError(f"ranks: expected at least 1, got {num_ranks}")
    if max_restarts < 0:
        raise ConfigError(f"max_restarts: expected at least 0, got {max_restarts}")
    if is_rank() and _FOLDER not in os.environ and num_ranks > 1:
        raise ConfigError(
            f"ranks: torchrun has started {os.environ['WORLD_SIZE']} ranks, so expected no --ranks, got {num_ranks}"
        )


def enter_rank() -> None:
    """Note this process for its launcher, and end with it; do nothing in a process that has none.

    Raises:
        KeyboardInterrupt: The launcher was asked to stop in the meantime.
    """
    folder = _folder()
    if folder is None:
        return
    os.environ[_PROCESS] = str(os.getpid())  # which what a reward starts has, too, and is none of the ranks
    _end_with_parent()
    (folder / f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
    if os.environ["RANK"] == "0":
        (folder / "exit").unlink(missing_ok=True)
    if (signum := _read(folder / "stop")) is not None:
        interruption = KeyboardInterrupt("interrupted; what was written stays")
        interruption.exit_code = 128 + signum  # pyright: ignore[reportAttributeAccessIssue]
        raise interruption


def leave_rank(code: int, *, ranks_agree: bool) -> int:
    """Return the exit code of a rank: 0 where all ranks end alike, so that they are not started again.

    Args:
        code: That of the command.
        ranks_agree: Whether all ranks end with it.
    """
    folder = _folder()
    if folder is None:
        return code
    if os.environ["RANK"] == "0":
        (folder / "exit").write_text(str(code))
    return 0 if ranks_agree else code


def _folder() -> Path | None:
    """The launcher's folder; None where this process is none of its ranks."""
    is_of_launcher = is_rank() and _FOLDER in os.environ
    is_this = os.environ.get(_PROCESS, str(os.getpid())) == str(os.getpid())
    return Path(os.environ[_FOLDER]) if is_of_launcher and is_this else None


def _read(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


@contextlib.contextmanager
def _passing_signals(folder: Path) -> Iterator[None]:
    """Hand Ctrl-C, SIGTERM and SIGHUP to all ranks, which are in sessions of their own."""

    def hand_on(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  what a handler is given
        (folder / "stop").write_text(str(signum))
        for file in folder.glob("rank-*"):
            if (process := _read(file)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signum)

    before = {
        signum: signal.signal(signum, hand_on) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _end_with_parent() -> None:
    """Let this process have a SIGTERM when its launcher ends, however it ends; on Linux."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
