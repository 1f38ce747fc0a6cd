"""An event loop in a thread of its own, in which a run's asynchronous rewards are awaited."""

import asyncio
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from threading import Event, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class EventLoop:
    """Runs coroutines, many at once, in one thread that does not keep the process from ending.

    One loop serves a whole run, so that a function may keep a client or a lock from call to call.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Running[T]":
        """Begin with a coroutine, and do not wait for it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            Thread(target=_run, args=(self._loop,), name="klimb-async-reward", daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        begun, ended = Event(), Event()
        noting = _noting(coroutine, begun, ended)
        return Running(asyncio.run_coroutine_threadsafe(noting, self._loop), begun, ended)


class Running(Generic[T]):
    """A coroutine that runs, or is about to."""

    def __init__(self, future: "Future[T]", begun: Event, ended: Event) -> None:
        self._future, self._begun, self._ended = future, begun, ended

    @property
    def is_busy(self) -> bool:
        """Whether it has begun and has not ended, though it may have been given up."""
        return self._begun.is_set() and not self._ended.is_set()

    def result(self, seconds: float | None) -> T:
        """Wait for it and return what it returned.

        Raises:
            TimeoutError: It took longer than so many seconds; it was asked to end.
            Exception: Whatever it raised.
        """
        try:
            return self._future.result(seconds)
        except TimeoutError:
            if self._future.done():
                raise
            self._future.cancel()
            raise TimeoutError from None


async def _noting(coroutine: Coroutine[Any, Any, T], begun: Event, ended: Event) -> T:
    begun.set()
    try:
        return await coroutine
    finally:
        ended.set()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()
