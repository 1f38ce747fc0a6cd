"""Python objects given to a run: prompts and models are written to its folder, functions get names."""

import contextlib
import copy
import functools
import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from klimb.data.objects import HUB, hub_rows, is_place, rows_of, write_rows
from klimb.errors import ConfigError
from klimb.io.atomic import whole_folder
from klimb.io.show import quote
from klimb.model.saving import save_whole
from klimb.reward.load import OBJECT


def name_rewards(
    argument: str, given: Any, taken: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, Callable[..., Any]]]:
    """Name rewards that were given as names, folders, learned rewards and functions.

    Args:
        argument: What they were given as, for messages.
        given: One of them, or a list.
        taken: Names that others have.

    Returns:
        Their names for a configuration, and the functions by name.

    Raises:
        ConfigError: One is none of these; the message says what it is, and what to give.
    """
    names: list[str] = []
    found: dict[str, Callable[..., Any]] = {}
    for reward in given if isinstance(given, list | tuple) else [given]:
        if is_place(reward):
            names.append(str(reward))
        elif is_place(folder := getattr(reward, "folder", None)):  # a klimb.RewardModel
            names.append(str(folder))
        else:
            _require_function(argument, reward)
            name = _free_name(reward, [*taken, *names])
            found[name] = reward
            names.append(name)
    return tuple(names), found


@contextlib.contextmanager
def inputs_in(folder: Path, **given: Any) -> Iterator[dict[str, str]]:
    """Write a model and prompts that are objects into a folder, and name them as options do.

    Where the body fails before it made the folder above a run's, what was written is removed.

    Args:
        folder: The folder to make: a run's `inputs`. It is not made where nothing is an object.
        given: `model`, `tokenizer`, `prompts`, `eval_prompts` and `prompt_column`.

    Yields:
        The options `model`, `prompts` and `eval_prompts`, those that were given.

    Raises:
        ConfigError: The model is of a kind that klimb does not train, or has no tokenizer.
        DataError: The prompts are of a kind that klimb cannot read.
    """
    options: dict[str, str] = {}
    objects: dict[str, Any] = {}
    for name in ("model", "prompts", "eval_prompts"):
        value = given.get(name)
        if value is None:
            continue
        if is_place(value) and not (name != "model" and str(value).startswith(HUB)):
            options[name] = str(value)
        else:
            objects[name] = value
    is_new = bool(objects) and not folder.parent.exists()
    try:
        if objects:
            with whole_folder(folder, replaces=True) as unfinished:
                if "model" in objects:
                    write_model(objects["model"], given.get("tokenizer"), unfinished / "model")
                    options["model"] = str(folder / "model")
                for name in objects.keys() - {"model"}:
                    column = given.get("prompt_column") or "prompt"
                    file = write_prompts(name, objects[name], unfinished, column)
                    options[name] = str(folder / file.name)
        yield options
    except BaseException:
        if objects and not (folder.parent / "config.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if is_new:
                with contextlib.suppress(OSError):  # something else was written there
                    folder.parent.rmdir()
        raise


def write_prompts(argument: str, prompts: Any, folder: Path, column: str = "prompt") -> Path:
    """Write prompts that are an object, or a data set of the hub, into a folder; a file is left where it is.

    Args:
        argument: What they were given as, for messages.
        prompts: As for `klimb.train`.
        folder: Where to; it exists.
        column: Where the prompts stand.

    Returns:
        The file.

    Raises:
        DataError: They are of a kind that klimb cannot read.
    """
    if is_place(prompts) and not str(prompts).startswith(HUB):
        return Path(prompts).expanduser()
    file = folder / f"{argument}.jsonl"
    rows = hub_rows(str(prompts)) if is_place(prompts) else rows_of(argument, prompts, column)
    write_rows(file, rows)
    return file


def write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model that is an object, and its tokenizer, into a folder that is made, adapters merged.

    Args:
        model: A `klimb.Policy`, a transformers model, or one with its tokenizer as a pair.
        tokenizer: The tokenizer; that of a pair, or of where the model was loaded from, where None.
        folder: Where to.

    Raises:
        ConfigError: The model is of another kind, or has no tokenizer.
    """
    if isinstance(model, tuple):
        model, tokenizer = _pair(model)
    if callable(getattr(model, "ref_log_probs", None)):  # a klimb.Policy
        folder.mkdir(parents=True)
        model.save(folder)
        return
    if not callable(getattr(model, "save_pretrained", None)) or not hasattr(model, "config"):
        raise ConfigError(
            "model: expected a name of the hub, a folder, a .gguf file, a klimb.Policy or a transformers model, got "
            f"{quote(model)}"
        )
    tokenizer = _tokenizer_of(model) if tokenizer is None else tokenizer
    folder.mkdir(parents=True)
    try:
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        save_whole(model, tokenizer, folder, {})
    except OSError:
        raise
    except Exception as error:  # weights on other devices or quantised, and tokenizers of other libraries
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"model: cannot be copied into the run's folder ({type(error).__name__}: {reason}); save it with "
            "save_pretrained, whole and not quantised, and give the folder"
        ) from error


def _pair(given: tuple[Any, ...]) -> tuple[Any, Any]:
    if len(given) != 2:
        raise ConfigError(f"model: expected a model and its tokenizer as a pair, got {len(given)} objects")
    return given[0], given[1]


def _tokenizer_of(model: Any) -> Any:
    """Load the tokenizer from where a model was loaded.

    Raises:
        ConfigError: It cannot be found.
    """
    from transformers import AutoTokenizer

    from klimb.model.load import resolve

    place = getattr(model, "name_or_path", "") or "the model"
    try:
        return AutoTokenizer.from_pretrained(resolve(place))
    except Exception as error:  # readers of tokenizers raise whatever the bytes lead to
        raise ConfigError(
            f"tokenizer: {place} has none that can be loaded; if the model is an object, also give tokenizer=…"
        ) from error


def _require_function(argument: str, reward: Any) -> None:
    expected = "expected a function, a name, a folder or a klimb.RewardModel"
    if inspect.iscoroutine(reward):
        raise ConfigError(
            f"{argument}: {expected}, got a coroutine; give the function itself, without the parentheses that call it"
        )
    if callable(getattr(reward, "save_pretrained", None)) or callable(getattr(reward, "state_dict", None)):
        raise ConfigError(
            f"{argument}: {expected}, got a model; give the folder that save_pretrained wrote, or a function that "
            "calls it and returns a number for each completion"
        )
    if not callable(reward):
        raise ConfigError(f"{argument}: {expected}, got {quote(reward)}")


def _free_name(function: Callable[..., Any], taken: Sequence[str]) -> str:
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = OBJECT + getattr(inner, "__name__", type(inner).__name__)
    number = 2
    chosen = name
    while chosen in taken:
        chosen, number = f"{name}_{number}", number + 1
    return chosen
