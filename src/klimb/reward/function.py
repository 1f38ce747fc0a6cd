"""A reward that is a Python function with TRL's signature.

`f(prompts, completions, **columns) -> list[float | None]`
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

from klimb.errors import RewardError, RewardHangsError
from klimb.reward.failures import Answer, Failed, answers
from klimb.reward.limit import TimeLimit
from klimb.reward.reward import Batch


class FunctionReward:
    """Calls a function with the prompts, the completions, and the columns that it takes.

    A function that raises is called again for each completion alone, once, so that one that it cannot take does not
    cost the others their rewards. One that compares the completions of a call with each other must not raise.

    Args:
        name: What messages and files call it.
        function: The function.
        time_limit: Seconds that a batch may take, the calls for single completions included; None: as long as it
            likes. With a limit the function runs in a thread other than the main one.
    """

    def __init__(self, name: str, function: Callable[..., Any], time_limit: float | None = None) -> None:
        self.name = name
        self._function = function
        self._limit = None if time_limit is None else TimeLimit(time_limit)
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # written in C, without a signature to read
            parameters = []
        self._takes_all = not parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters}

    def __call__(self, batch: Batch) -> Any:
        """Judge a batch; what the function returns is not checked here, what it raises becomes `Failed`.

        Raises:
            RewardHangsError: It is still busy with a call that was given up.
        """
        singly: list[Answer] = []
        if self._limit is None:
            return self._judge(batch, singly, Event())
        if self._limit.is_busy:
            raise RewardHangsError(
                f"reward {self.name} is still busy with a call that was given up after {self._limit.seconds:g} s, and "
                "Python cannot stop it: make it give up by itself, or raise --reward-timeout"
            )
        is_given_up = Event()
        try:
            return self._limit(lambda: self._judge(batch, singly, is_given_up))
        except TimeoutError:
            is_given_up.set()
            done = list(singly)
            late = Failed(f"reward {self.name} took longer than {self._limit.seconds:g} s")
            return done + [late] * (len(batch.texts) - len(done))

    def _judge(self, batch: Batch, singly: list[Answer], is_given_up: Event) -> Any:
        """Judge a batch at once, or if that raises one completion after the other."""
        try:
            return self._call(batch)
        except RewardError as error:
            if len(batch.texts) == 1:
                return [Failed(str(error))]
        for index in range(len(batch.texts)):
            if is_given_up.is_set():
                break
            singly.append(self._judge_one(batch.rows(index, 1)))
        return singly

    def _judge_one(self, batch: Batch) -> Answer:
        try:
            return answers(self.name, self._call(batch), 1)[0]
        except RewardError as error:
            return Failed(str(error))

    def _call(self, batch: Batch) -> Any:
        columns = dict(batch.columns) | {"prompts": batch.prompts, "completions": batch.completions}
        taken = {key: value for key, value in columns.items() if self._takes_all or key in self._names}
        try:
            values = self._function(**taken)
            return (
                list(values) if isinstance(values, Iterator) else values
            )  # a generator runs here, not later
        except (Exception, SystemExit) as error:  # whatever a user raises is reported with its name
            raise RewardError(
                f"reward {self.name} raised {type(error).__name__}: {error} ({_place(error)})"
            ) from error


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
    except Exception as error:  # the file is the user's program
        raise RewardError(f"reward {spec}: loading {file} raised {type(error).__name__}: {error}") from error
    return module


def _load_module(spec: str, name: str) -> Any:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except Exception as error:  # the module is the user's program
        raise RewardError(
            f"reward {spec}: importing {name} raised {type(error).__name__}: {error}"
        ) from error


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _place(error: BaseException) -> str:
    """The innermost line of the traceback, where the user's function went wrong."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}" if traceback else "place unknown"
