"""Fingerprints of a run's inputs: the SHA-256 of its files."""

import contextlib
import functools
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from klimb.config.address import is_address
from klimb.config.train import TrainConfig
from klimb.config.value import HEAD, SELF
from klimb.errors import ConfigError, KlimbError, RunFolderError
from klimb.io.digest import cached_sha256
from klimb.model.load import config_place, resolve
from klimb.reward.load import BUILT_IN, NO_FUNCTIONS, PEOPLE, Functions
from klimb.training.storage.sources import (
    Files,
    files_of_data,
    files_of_function,
    files_of_model,
    files_of_package,
)

CLOCK = "<clock>"
"""Where the time that chat templates read stands among a run's fingerprints."""

_VADER = ("vaderSentiment.py", "vader_lexicon.txt", "emoji_utf8_lexicon.txt")
_SHOWN = 12  # characters of a checksum

Fingerprint = dict[str, str]
"""SHA-256 of each file, by its name; of a file that stands alone by the name `content`."""


def take_fingerprints(config: TrainConfig, functions: Functions = NO_FUNCTIONS) -> dict[str, Fingerprint]:
    """Find the checksums of what a configuration names: prompts, the model, rewards and judges.

    Of folders these are those of all files that are read; of a reward that is a Python function those of its file and
    of the local modules that it imports; of VADER those of its code and lexicon. A service has none, and data that a
    reward opens by itself is not seen. Of a function that was given as an object it is that of its source text: what
    it calls, and the values that it closes over, are not seen.

    Args:
        config: The options.
        functions: Rewards and judges that were given as objects, by the names that `config` has for them.

    Returns:
        A fingerprint for `model`, `value_model`, `prompts`, `eval_prompts`, and each reward, judge and objective of
        one's own by its name; what there is none of is left out.
    """
    named = {"model": _model(config.model), "prompts": _checksums(files_of_data(config.prompts))}
    if config.algorithm.baseline == "value" and config.value_source not in (HEAD, SELF):
        named["value_model"] = _model(config.value_source)
    if config.eval_prompts is not None:
        named["eval_prompts"] = _checksums(files_of_data(config.eval_prompts))
    for spec in (*config.reward, *config.judges):
        named[spec] = _function(functions[spec]) if spec in functions else _reward(spec)
    if ".py:" in config.objective:
        named[config.objective] = _reward(config.objective)
    return {name: fingerprint for name, fingerprint in named.items() if fingerprint}


def read_fingerprints(file: Path) -> dict[str, Fingerprint] | None:
    """Read what `write_file` wrote of `take_fingerprints`; None where there is no such file.

    Raises:
        RunFolderError: The file is not as a run writes it.
    """
    if not file.is_file():
        return None
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): dict(fingerprint) for name, fingerprint in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{file}: damaged or edited: {error}; restore the file, or remove it: then the content is not compared"
        ) from error


def read_moment(file: Path) -> datetime | None:
    """Read the time that chat templates read in a run; None where it was not recorded.

    Raises:
        RunFolderError: The file is not as a run writes it.
    """
    moment = (read_fingerprints(file) or {}).get(CLOCK, {}).get("moment")
    try:
        return None if moment is None else datetime.fromisoformat(moment)
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{file}: damaged or edited: {error}; expected a time, got {moment!r}; restore the file"
        ) from error


def check_fingerprints(
    then: dict[str, Fingerprint], now: dict[str, Fingerprint], accepted: Sequence[str] = ()
) -> list[str]:
    """Compare what a run began with with what there is now.

    Args:
        then: The fingerprints of the start.
        now: The present ones.
        accepted: Names of content that may differ.

    Returns:
        The names of content that differs and is accepted.

    Raises:
        ConfigError: Something has changed that is not accepted, or something is accepted that has not changed.
    """
    changed = {name: found for name in then if (found := _difference(then[name], now.get(name, {})))}
    if refused := [f"{name}: {said}" for name, said in changed.items() if name not in accepted]:
        raise ConfigError(
            "the content has changed since the run began: "
            + "; ".join(refused)
            + ". Restore it, start a new run with --out, or accept it with --accept "
            + " ".join(name for name in changed if name not in accepted)
        )
    if idle := [name for name in accepted if name not in changed]:
        raise ConfigError(f"accept: {', '.join(idle)}: nothing of that name has changed since the run began")
    return list(changed)


def find_model(source: str) -> Path | None:
    """Find a model's folder or file here, or in the cache of the hub; None where it is in neither."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    for name in ("config.json", "adapter_config.json"):
        with contextlib.suppress(KlimbError, OSError, ValueError):  # loading it tells what cannot be found
            if file := cached_file(resolve(source), name):
                return Path(file).parent
    return None


def _difference(then: Fingerprint, now: Fingerprint) -> str:
    """Say what differs; nothing where nothing does."""
    if not now:
        return "no longer found"
    for name in sorted(then.keys() | now.keys()):
        what = "its content" if name == "content" else name
        if name not in now:
            return f"{what} is missing"
        if name not in then:
            return f"{what} is new"
        if then[name] != now[name]:
            return f"{what} differs (SHA-256 {then[name][:_SHOWN]}… then, {now[name][:_SHOWN]}… now)"
    return ""


def _checksums(files: Files) -> Fingerprint:
    return {name: cached_sha256(file) for name, file in files.items()}


def _model(source: str, *, is_base: bool = False) -> Fingerprint:
    """Checksums of a model; of an adapter those of the model that it is beside, too."""
    path = find_model(source)
    if path is None:
        return {}
    found = _checksums(files_of_model(path))
    base = None if is_base else _base_of(path)
    if base is not None:
        found |= {f"{base}/{name}": digest for name, digest in _model(base, is_base=True).items()}
    return found


def _base_of(folder: Path) -> str | None:
    """Find the model that an adapter in a folder of its own refers to; None where the folder is no such adapter's."""
    if (folder / "config.json").is_file() or not (folder / "adapter_config.json").is_file():
        return None
    with contextlib.suppress(KlimbError):  # loading it tells what cannot be found
        return config_place(folder)
    return None


def _function(function: Callable[..., Any]) -> Fingerprint:
    """A checksum of a function's source text; nothing where it has none, as in an interactive session."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    with contextlib.suppress(OSError, TypeError):
        source = inspect.getsource(inner if inspect.isroutine(inner) else type(inner))
        return {"source": hashlib.sha256(textwrap.dedent(source).encode()).hexdigest()}
    return {}


def _reward(spec: str) -> Fingerprint:
    if is_address(spec) or spec == PEOPLE:
        return {}
    if spec == "vader":
        return _checksums(files_of_package("vaderSentiment", _VADER))
    if ":" in spec:
        return _checksums(files_of_function(BUILT_IN.get(spec, spec).rpartition(":")[0]))
    return _model(spec)
