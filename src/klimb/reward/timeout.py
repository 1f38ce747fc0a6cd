"""A limit to how long a call may take.

Python cannot stop a thread. A call with a limit runs in a thread of its own, and when the time is up nobody waits for
it any longer; it may still be running. Until it has ended, no other call is made.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

_Jobs: TypeAlias = "SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]"


class TimeLimit:
    """Makes calls one after the other in one thread, which does not keep the process from ending.

    Attributes:
        seconds: How long a call may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._jobs: _Jobs = SimpleQueue()
        self._latest: Future[Any] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a call that was given up is still running."""
        return self._latest is not None and not self._latest.done()

    def __call__(self, call: Callable[[], T]) -> T:
        """Make a call and return what it returned.

        Raises:
            TimeoutError: It took too long; its thread keeps running.
            BaseException: Whatever the call raised.
        """
        if self._latest is None:
            Thread(target=_work, args=(self._jobs,), name="klimb-reward", daemon=True).start()
            weakref.finalize(self, self._jobs.put, None)
        future: Future[T] = Future()
        self._latest = future
        self._jobs.put((call, future))
        wait([future], timeout=self.seconds)
        if not future.done():
            raise TimeoutError
        return future.result()


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        call, future = job
        try:
            future.set_result(call())
        except BaseException as error:  # it is raised where the result is waited for
            future.set_exception(error)
        del job, call, future  # or the last batch would stay in memory
