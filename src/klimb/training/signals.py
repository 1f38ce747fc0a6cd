"""Ctrl-C and SIGTERM: the first lets the step be finished, a second leaves at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_NOTICE = b"\nklimb: finishing the step and writing a checkpoint; again to leave at once\n"
_STANDARD_ERROR = 2


class RunInterrupted(KeyboardInterrupt):
    """A run was asked to stop, by Ctrl-C or a signal, and has.

    Attributes:
        exit_code: The exit status: 128 and the signal's number, so 130 or 143.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class Interruption:
    """Whether a run was asked to stop.

    Args:
        advice: What to do to go on, for messages.
        is_quiet: Whether to leave it to another process to say that the signal came.

    Attributes:
        signum: The signal that came; None where none did.
    """

    def __init__(self, advice: str, *, is_quiet: bool = False) -> None:
        self._advice, self._is_quiet = advice, is_quiet
        self.signum: int | None = None
        self._agreed: int | None = None

    @property
    def was_asked_for(self) -> bool:
        """Whether a signal came."""
        return self.signum is not None

    def agree(self, signum: int | None) -> bool:
        """Leave as for this signal of some rank, and return whether to; one of this rank's own may follow."""
        self._agreed = signum
        return signum is not None

    def ask(self, signum: int, frame: FrameType | None = None) -> None:  # noqa: ARG002  what a handler is given
        """Handle a signal.

        Raises:
            RunInterrupted: It is the second.
        """
        if self.signum is not None:
            raise RunInterrupted(signum, f"stopped at once; what was written stays; {self._advice}")
        self.signum = signum
        if self._is_quiet:
            return
        with contextlib.suppress(OSError):
            os.write(_STANDARD_ERROR, _NOTICE)  # print may be at work at this very moment

    def leave(self, num_steps: int) -> NoReturn:
        """Leave once everything is written.

        Args:
            num_steps: Steps that were taken.

        Raises:
            RunInterrupted: Always.
        """
        signum = self._agreed or self.signum or signal.SIGINT
        raise RunInterrupted(signum, f"stopped after {num_steps} steps; {self._advice}")


@contextlib.contextmanager
def listening(advice: str, *, is_quiet: bool = False) -> Iterator[Interruption]:
    """Handle Ctrl-C and SIGTERM meanwhile, and hand them back to whoever handled them before.

    Only the main thread can: elsewhere signals stay whoever's they are. One that is ignored stays so, as
    nohup has it.

    Args:
        advice: What to do to go on, for messages.
        is_quiet: Whether to leave it to another process to say that the signal came.
    """
    interruption = Interruption(advice, is_quiet=is_quiet)
    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(signum)
            if handler not in (signal.SIG_IGN, None):  # None: not Python's, and could not be handed back
                before[signum] = handler
                signal.signal(signum, interruption.ask)
    try:
        yield interruption
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
