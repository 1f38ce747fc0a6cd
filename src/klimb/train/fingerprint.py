"""What a run is made of beside its options: the content of its files, by SHA-256."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from klimb.errors import ConfigError, KlimbError, RunFolderError
from klimb.files import sha256
from klimb.policy.load import config_place, resolve
from klimb.reward.load import BUILT_IN
from klimb.train.config import TrainConfig

_OF_MODELS = {".jinja", ".json", ".model", ".py", ".safetensors", ".txt"}  # what a model's folder is read for
_SHOWN = 12  # characters of a checksum

Fingerprint = dict[str, str]
"""SHA-256 of each file, by its name; of a file that stands alone by the name `content`."""


def take_fingerprints(config: TrainConfig) -> dict[str, Fingerprint]:
    """Find the checksums of what a configuration names: prompts, the model, rewards and judges that are files.

    A reward that is a service, an installed module or built in has none.

    Returns:
        A fingerprint for `model`, `prompts`, `eval_prompts` and each reward and judge by its name; what there is
        none of is left out.
    """
    named = {"model": _model(config.model), "prompts": _file(config.prompts)}
    if config.eval_prompts is not None:
        named["eval_prompts"] = _file(config.eval_prompts)
    named |= {spec: _reward(spec) for spec in (*config.reward, *config.judges)}
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
            f"{file}: not as a run writes it: {error}; without the file the content is not compared"
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
            "the run began with other content: "
            + "; ".join(refused)
            + ". Put it back, start a new run with --out, or go on all the same with --accept "
            + " ".join(name for name in changed if name not in accepted)
        )
    if idle := [name for name in accepted if name not in changed]:
        raise ConfigError(f"accept: {', '.join(idle)}: nothing of that name has changed since the run began")
    return list(changed)


def _difference(then: Fingerprint, now: Fingerprint) -> str:
    """Say what differs; nothing where nothing does."""
    if not now:
        return "cannot be found any more"
    for name in sorted(then.keys() | now.keys()):
        what = "its content" if name == "content" else name
        if name not in now:
            return f"{what} is missing"
        if name not in then:
            return f"{what} is new"
        if then[name] != now[name]:
            return f"{what} is another (SHA-256 {then[name][:_SHOWN]}… then, {now[name][:_SHOWN]}… now)"
    return ""


def _file(file: Path) -> Fingerprint:
    return {"content": sha256(file)} if file.is_file() else {}


def _folder(folder: Path) -> Fingerprint:
    files = sorted(file for file in folder.iterdir() if file.suffix in _OF_MODELS and file.is_file())
    return {file.name: sha256(file) for file in files}


def _model(source: str) -> Fingerprint:
    path = Path(source).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _folder(path) | _of_base(path)
    try:
        config = cached_file(resolve(source), "config.json")
    except (KlimbError, OSError, ValueError):  # what cannot be found is told of when it is loaded
        return {}
    return {} if config is None else _folder(Path(config).parent)


def _of_base(folder: Path) -> Fingerprint:
    """Fingerprint of the model that an adapter in a folder of its own refers to; nothing of any other folder."""
    if (folder / "config.json").is_file():
        return {}
    try:
        place = Path(config_place(folder))
    except KlimbError:
        return {}
    return {f"base/{name}": said for name, said in _folder(place).items()} if place.is_dir() else {}


def _reward(spec: str) -> Fingerprint:
    if spec in BUILT_IN or "://" in spec:
        return {}
    if ":" not in spec:
        return _model(spec)
    where = spec.rpartition(":")[0]
    return _file(Path(where if where.endswith(".py") else where.replace(".", "/") + ".py"))
