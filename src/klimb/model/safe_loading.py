"""Safe loading of model files: no pickle is read, and no code of theirs runs unless you allow it."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers

from klimb.errors import ModelNotFoundError

PICKLED = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
"""What names of pickled weights end in."""

PICKLE_REMEDY = (
    "reading a pickle can run any code, so klimb reads only safetensors: get the model in that format, or, if you "
    "trust its source, load it with transformers and save it again with save_pretrained"
)
"""What to do about pickled weights."""


@contextlib.contextmanager
def without_pickle() -> Iterator[None]:
    """Within, `torch.load` refuses whatever any library wants of it.

    transformers is told to read safetensors alone; this holds too where it or another library falls back on a pickle,
    as for an adapter beside a model. Other threads are refused too meanwhile.
    """
    usual = torch.load
    torch.load = _refuse
    try:
        yield
    finally:
        torch.load = usual


@contextlib.contextmanager
def alone(file: Path) -> Iterator[Path]:
    """Yield a folder in which a file is by itself, so that what lies beside it is not taken for a part of it."""
    with tempfile.TemporaryDirectory(prefix="klimb-") as scratch:
        (Path(scratch) / file.name).symlink_to(file.resolve())
        yield Path(scratch)


OWN_CODE = (
    "it comes with Python code of its own, which does not run unless you allow it: read that code, and add "
    "--trust-remote-code if you trust its makers with this machine"
)
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "couldn't connect", "Max retries exceeded", "offline mode")


def explain(place: str, error: Exception) -> str:
    """Say why a model cannot be loaded, where that is for its makers' code or a pickle with what to do about it.

    Args:
        place: The folder or the hub's name that was to be loaded.
        error: What transformers said.
    """
    said = str(error)
    if "trust_remote_code" in said:
        return OWN_CODE
    if said.startswith("Unrecognized configuration class"):
        return f"transformers {transformers.__version__} has none of the type {_type_in(said)}: choose another model"
    folder = Path(place)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        names = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        if names:
            return f"its weights are pickled ({', '.join(names)}); {PICKLE_REMEDY}"
    if not folder.is_dir():
        if any(word in said for word in _UNREACHABLE):
            return (
                "there is no folder of that name here, and the Hugging Face hub cannot be reached: check the network, "
                "or give the folder of a model or a .gguf file"
            )
        said = f"there is no folder of that name here, and the hub says: {said}"
        if "gated" in said.lower() or "401" in said or "403" in said:
            said += "; accept its terms on its page there, and log in with `hf auth login`"
        return said
    # What else is raised means little without its kind, such as KeyError: 'x'.
    return (
        said if isinstance(error, (OSError, ValueError, ImportError)) else f"{type(error).__name__}: {said}"
    )


def _type_in(said: str) -> str:
    found = re.search(r"models\.(\w+)\.", said)
    return repr(found[1]) if found else "in its config.json"


def _refuse(file: Any = "", *_: Any, **__: Any) -> NoReturn:
    raise ModelNotFoundError(f"{file} is a pickle; {PICKLE_REMEDY}")
