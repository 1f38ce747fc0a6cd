"""A reward that is a Python function with TRL's signature, synchronous or asynchronous.

`f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns) -> list[float | None]`
"""

import asyncio
import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from threading import Event
from typing import Any

from klimb.errors import RewardError, RewardHangsError
from klimb.reward.call import Signature, as_answers, describe
from klimb.reward.event_loop import EventLoop, Running
from klimb.reward.failures import Answer, Failed, answers
from klimb.reward.reward import Batch
from klimb.reward.state import RewardLog
from klimb.reward.timeout import TimeLimit

# What stops a run or a task. All else counts as the user's: libraries in Rust panic with a BaseException, and
# func_timeout raises one.
_OURS = (KeyboardInterrupt, asyncio.CancelledError)


class FunctionReward:
    """Calls a function with the prompts, the completions, what else TRL hands over, and the columns that it takes.

    A function that raises is called again for each completion alone, once, so that one that it cannot take does not
    cost the others their rewards. One that compares the completions of a call with each other must not raise.

    An `async def` function, method or object is awaited in an event loop that lasts as long as the reward, or as the
    run where `loop` is given; several are awaited at once, and so are the calls for single completions.

    Attributes:
        is_async: Whether it is awaited, so that others can be asked meanwhile.

    Args:
        name: What messages and files call it.
        function: The function.
        time_limit: Seconds that a batch may take, the calls for single completions included; None: as long as it
            likes. With a limit a synchronous function runs in a thread other than the main one.
        loop: Where it is awaited; one of its own where None.

    Raises:
        RewardError: It asks for something that klimb never has.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        time_limit: float | None = None,
        loop: EventLoop | None = None,
    ) -> None:
        self.name = name
        self._function = function
        self._seconds = time_limit
        self._limit = None if time_limit is None else TimeLimit(time_limit)
        self._signature = Signature(name, function)
        self._loop = loop or EventLoop()
        self._latest: Running[Any] | None = None
        self.is_async = self._signature.is_async

    def __call__(self, batch: Batch) -> Any:
        """Judge a batch; what the function returns is not checked here, what it raises becomes `Failed`.

        Raises:
            RewardHangsError: It is still busy with a call that was given up.
        """
        if self.is_async:
            return self.start(batch)()
        singly: dict[int, Answer] = {}
        if self._limit is None:
            return self._judge(batch, singly, Event())
        if self._limit.is_busy:
            raise self._hangs()
        is_given_up = Event()
        try:
            return self._limit(lambda: self._judge(batch, singly, is_given_up))
        except TimeoutError:
            is_given_up.set()
            return self._late(batch, singly)

    def start(self, batch: Batch) -> Callable[[], Any]:
        """Begin to await an asynchronous function's answer.

        Returns:
            What waits for the answer and returns it.

        Raises:
            RewardHangsError: It is still busy with a call that was given up.
        """
        if self._latest is not None and self._latest.is_busy:
            raise self._hangs()
        singly: dict[int, Answer] = {}
        is_given_up = Event()
        self._latest = running = self._loop.start(self._judge_async(batch, singly, is_given_up))

        def wait() -> Any:
            try:
                return running.result(self._seconds)
            except TimeoutError:
                is_given_up.set()
                return self._late(batch, singly)

        return wait

    def _hangs(self) -> RewardHangsError:
        return RewardHangsError(
            f"reward {self.name} is still busy with a call that was given up after {self._seconds:g} s, and "
            "Python cannot stop it: make it give up by itself, or raise --reward-timeout"
        )

    def _late(self, batch: Batch, singly: dict[int, Answer]) -> list[Answer]:
        done = dict(singly)
        late = Failed(f"reward {self.name} took longer than {self._seconds:g} s")
        return [done.get(index, late) for index in range(len(batch.texts))]

    def _judge(self, batch: Batch, singly: dict[int, Answer], is_given_up: Event) -> Any:
        """Judge a batch at once, or if that raises one completion after the other."""
        try:
            return self._call(batch, 0, is_given_up)
        except RewardError as error:
            if len(batch.texts) == 1 or isinstance(error, _CannotBeAskedError):
                return [Failed(str(error))] * len(batch.texts)
        for index in range(len(batch.texts)):
            if is_given_up.is_set():
                break
            try:
                singly[index] = self._one(self._call(batch, index, is_given_up, alone=True))
            except RewardError as error:
                singly[index] = Failed(str(error))
        return list(singly.values())

    async def _judge_async(self, batch: Batch, singly: dict[int, Answer], is_given_up: Event) -> Any:
        """Judge a batch at once, or if that raises each completion alone, all of them together."""
        try:
            return await self._await(batch, 0, is_given_up)
        except RewardError as error:
            if len(batch.texts) == 1 or isinstance(error, _CannotBeAskedError):
                return [Failed(str(error))] * len(batch.texts)

        async def judge_one(index: int) -> None:
            try:
                singly[index] = self._one(await self._await(batch, index, is_given_up, alone=True))
            except RewardError as error:
                singly[index] = Failed(str(error))

        await asyncio.gather(*map(judge_one, range(len(batch.texts))))
        return [singly[index] for index in range(len(batch.texts))]

    def _one(self, values: Any) -> Answer:
        return answers(self.name, values, 1)[0]

    def _call(self, batch: Batch, first: int, is_given_up: Event, *, alone: bool = False) -> Any:
        part = batch.rows(first, 1) if alone else batch
        log = RewardLog(len(part.texts))
        by_position, by_name = self._arguments(part, log)
        try:
            values = self._function(*by_position, **by_name)
            if inspect.isawaitable(values) or isinstance(values, AsyncIterator):
                values = self._loop.start(_awaited(values)).result(None)  # a coroutine that nothing announced
            values = as_answers(values)
        except _OURS:
            raise
        except BaseException as error:  # whatever a user raises is reported with its name
            raise RewardError(f"reward {self.name} raised {describe(error)}") from error
        if not is_given_up.is_set():
            batch.log.take(log, first)
        return values

    async def _await(self, batch: Batch, first: int, is_given_up: Event, *, alone: bool = False) -> Any:
        part = batch.rows(first, 1) if alone else batch
        log = RewardLog(len(part.texts))
        by_position, by_name = self._arguments(part, log)
        try:
            values = as_answers(await _awaited(self._function(*by_position, **by_name)))
        except _OURS:
            raise
        except BaseException as error:  # whatever a user raises is reported with its name
            raise RewardError(f"reward {self.name} raised {describe(error)}") from error
        if not is_given_up.is_set():
            batch.log.take(log, first)
        return values

    def _arguments(self, batch: Batch, log: RewardLog) -> tuple[list[Any], dict[str, Any]]:
        try:
            return self._signature.arguments(batch, log)
        except RewardError as error:
            raise _CannotBeAskedError(str(error)) from error


class _CannotBeAskedError(RewardError):
    """A function needs an argument that there is not, for one completion as for all."""


async def _awaited(values: Awaitable[Any] | AsyncIterator[Any]) -> Any:
    if isinstance(values, AsyncIterator):
        return [value async for value in values]
    return await values


def load_function(spec: str) -> Callable[..., Any]:
    """Find the function that `module:function` or `file.py:function` names.

    A module is looked for where Python looks and in the current folder.

    Raises:
        RewardError: No such file, module or function, or loading it raised.
    """
    where, _, name = spec.rpartition(":")
    module = _load_file(spec, Path(where)) if where.endswith(".py") else _load_module(spec, where)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [
            key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"
        ]
        raise RewardError(
            f"reward {spec}: {where} has no function {name!r}; it has {', '.join(functions) or 'none'}"
        )
    return function


def _load_file(spec: str, file: Path) -> Any:
    if not file.is_file():
        raise RewardError(f"reward {spec}: no file {file}")
    module_spec = importlib.util.spec_from_file_location(f"klimb_reward_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise RewardError(f"reward {spec}: {file} cannot be loaded as Python")
    _make_importable(file.resolve().parent)  # as `python file.py` does
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except _OURS:
        raise
    except BaseException as error:  # the file is the user's program
        raise RewardError(f"reward {spec}: loading {file} raised {type(error).__name__}: {error}") from error
    return module


def _load_module(spec: str, name: str) -> Any:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except _OURS:
        raise
    except BaseException as error:  # the module is the user's program
        raise RewardError(
            f"reward {spec}: importing {name} raised {type(error).__name__}: {error}"
        ) from error


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
