"""A reward that is a Python function with TRL's signature.

`f(prompts, completions, **columns) -> list[float | None]`
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from klimb.errors import RewardError
from klimb.reward.reward import Batch


class FunctionReward:
    """Calls a function with the prompts, the completions, and the columns that it takes."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # written in C, without a signature to read
            parameters = []
        self._takes_all = not parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters}

    def __call__(self, batch: Batch) -> Any:
        """Judge a batch; what the function raises becomes a RewardError, what it returns is not checked here."""
        columns = dict(batch.columns) | {"prompts": batch.prompts, "completions": batch.completions}
        taken = {key: value for key, value in columns.items() if self._takes_all or key in self._names}
        try:
            values = self._function(**taken)
            return (
                list(values) if isinstance(values, Iterator) else values
            )  # a generator runs here, not later
        except Exception as error:  # whatever a user's function raises is reported with its name
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
