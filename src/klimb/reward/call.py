"""Calls a reward function with TRL's signature and checks what it returns.

`f(prompts=…, completions=…, completion_ids=…, trainer_state=…, log_extra=…, log_metric=…, **columns)`

Axes: N completions.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from klimb.data.rows import RESERVED
from klimb.errors import RewardError
from klimb.reward.reward import Batch
from klimb.reward.state import RewardLog

_HOOKS = inspect.getfile(RewardLog)
_OLD_NAME = "completions_ids"  # TRL's documentation once called the token ids so
_ENVIRONMENTS = "environments"
_NO_POSITION = (
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


class Signature:
    """Which of a function's arguments can be given, by name or, where it takes them so alone, by position.

    Attributes:
        is_async: Whether calling the function gives a coroutine.

    Args:
        name: The reward's, for messages.
        function: The function.

    Raises:
        RewardError: It is a class, or asks for the environments of TRL's agent training.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        if inspect.isclass(function):
            raise RewardError(
                f"reward {name}: is a class, not a function: write judge = {function.__name__}() below "
                "it and name judge"
            )
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (ValueError, TypeError):  # written in C, without a signature to read
            parameters = []
        self._takes_all = not parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self._parameters = {p.name: p for p in parameters if p.kind not in _NO_POSITION[1:]}
        self.is_async = _is_async(function)
        if _ENVIRONMENTS in self._required():
            raise RewardError(
                f"reward {name}: takes `environments`, which are those of TRL's agent training; klimb has none: give "
                "the argument a default, or score only the completions"
            )

    def arguments(self, batch: Batch, log: RewardLog) -> tuple[list[Any], dict[str, Any]]:
        """Choose what the function is called with.

        Raises:
            RewardError: It needs something that is neither TRL's nor a column.
        """
        known = self._known(batch, log)
        missing = [name for name in self._required() if name not in known]
        if missing:
            raise RewardError(self._missing(missing[0], known))
        positional = [
            p.name for p in self._parameters.values() if p.kind is inspect.Parameter.POSITIONAL_ONLY
        ]
        by_position: list[Any] = []
        for name in positional:  # those after one that is left to its default cannot be given
            if name not in known:
                break
            by_position.append(known[name])
        by_name = {
            name: value
            for name, value in known.items()
            if name not in positional and (self._takes_all or name in self._parameters)
        }
        return by_position, by_name

    def _known(self, batch: Batch, log: RewardLog) -> dict[str, Any]:
        known = dict(batch.columns) | {
            "prompts": copy.deepcopy(batch.asked),  # a function may change what it is given
            "completions": batch.completions,
            "trainer_state": batch.state,
            "log_extra": log.log_extra,
            "log_metric": log.log_metric,
        }
        if batch.completion_ids is not None:
            known["completion_ids"] = batch.completion_ids
            if _OLD_NAME in self._parameters:
                known.setdefault(_OLD_NAME, batch.completion_ids)
        return known

    def _required(self) -> list[str]:
        return [name for name, p in self._parameters.items() if p.default is inspect.Parameter.empty]

    def _missing(self, name: str, known: Mapping[str, Any]) -> str:
        if name in ("completion_ids", _OLD_NAME):
            return (
                f"reward {self._name}: takes `{name}`, the completions' tokens, and there are none if texts are "
                "scored without the model that drew them"
            )
        columns = ", ".join(map(repr, sorted(known.keys() - set(RESERVED)))) or "none"
        return (
            f"reward {self._name}: takes `{name}`, which is neither a column of the data nor an argument of TRL's; the "
            f"columns are {columns}"
        )


def as_answers(values: Any) -> Any:
    """Bring what a function returned to a list of numbers and None, or leave it where it is something else.

    A generator runs here, not later. Arrays and tensors, on any device, give their numbers. NaN is no opinion, as TRL
    has it, whose tensors cannot hold None.
    """
    if isinstance(values, Iterator):
        values = list(values)
    if not isinstance(values, list | tuple):
        values = _numbers_of(values)
    return [_opinion(value) for value in values] if isinstance(values, list | tuple) else values


def _numbers_of(values: Any) -> Any:
    """The numbers of an array, tensor or series; one column of them is taken as they stand."""
    if callable(detach := getattr(values, "detach", None)):
        values = detach()
    if not callable(getattr(values, "tolist", None)):
        return values
    numbers = values.tolist()
    shape = getattr(values, "shape", ())
    return [row[0] for row in numbers] if len(shape) == 2 and shape[1] == 1 else numbers


def _opinion(value: Any) -> Any:
    if callable(detach := getattr(value, "detach", None)):
        value = detach()
    try:
        return None if value is None or math.isnan(value) else value
    except (TypeError, ValueError, OverflowError, RuntimeError):  # it is refused where answers are made of it
        return value


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether a function, a method, a partial of one, or an object with `__call__` is `async def`."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004


def describe(error: BaseException) -> str:
    """What was raised, and where: the innermost line of the traceback, but for those of our hooks."""
    place, traceback = "place unknown", error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if place == "place unknown" or file != _HOOKS:
            place = f"{file}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return f"{type(error).__name__}: {error} ({place})"
