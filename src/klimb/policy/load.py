"""From a folder, a hub name or a GGUF file to a causal language model and its tokenizer."""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from klimb.errors import ConfigError, ModelNotFoundError
from klimb.files import cache_folder, whole_folder
from klimb.policy.allocation import keep_memory_flat
from klimb.policy.trust import alone, explain, without_pickle


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, in evaluation mode: dropout is off.

    Args:
        source: A folder in Hugging Face's layout, a GGUF file (converted once, then taken from
            the cache), or a name on the Hugging Face hub.
        dtype: What the weights are converted to.
        device: Where the model goes, such as `cpu` or `cuda:1`; the first GPU if there is one,
            else the CPU, where None.
        trust_remote_code: Whether Python code that comes with the model may run.

    Returns:
        The model and the tokenizer.

    Raises:
        ModelNotFoundError: Nothing loadable at `source`; weights other than safetensors are not read.
        ConfigError: There is no such device.
    """
    place = resolve(source)
    with without_progress_bars(), without_pickle():
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
            model: Any = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelNotFoundError(
                f"{source}: cannot load a causal language model from it: {explain(place, error)}"
            ) from error
    keep_memory_flat()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without that device
        raise ConfigError(f"device: cannot use {device!r}: {error}") from error


def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a safetensors folder in the cache, once for each content.

    The quantised weights are expanded to float32 by transformers' reader; the folder is named
    by the file's SHA-256, so a changed file is converted again.

    Returns:
        The folder, in Hugging Face's layout.

    Raises:
        ModelNotFoundError: The file cannot be read as a GGUF model.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest[:16]}"
    if folder.exists():
        return folder
    # The reader draws its bar on standard error whatever transformers is told.
    with (
        without_progress_bars(),
        contextlib.redirect_stderr(io.StringIO()),
        without_pickle(),
        alone(file) as place,
    ):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file.name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                place,
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                trust_remote_code=False,
            )
        except Exception as error:  # transformers' and gguf's readers raise whatever the bytes lead to
            raise ModelNotFoundError(f"{file}: cannot be read as a GGUF model: {error}") from error
        try:
            with whole_folder(folder) as unfinished:
                model.save_pretrained(unfinished)
                tokenizer.save_pretrained(unfinished)
                origin = {"converted_from": file.name, "sha256": digest}
                (unfinished / "klimb.json").write_text(json.dumps(origin, indent=2) + "\n")
        except OSError:
            if not folder.exists():  # else another process has just converted the same file
                raise
    return folder


def resolve(source: str | Path) -> str:
    """Find the folder, or the hub's name, that transformers loads for what the user named.

    Raises:
        ModelNotFoundError: There is nothing of that name here, and it is no name of the hub.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelNotFoundError(
                f"{source}: expected a model folder, a .gguf file or a hub name, got another kind of file"
            )
        return str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(
                f"{source}: the folder has no config.json; expected a model saved by save_pretrained"
            )
        return str(path)
    text = str(source)
    if text.startswith((".", "/", "~")) or text.count("/") != 1 or path.suffix.lower() == ".gguf":
        raise ModelNotFoundError(
            f"{source}: no such folder or file; give a model folder, a .gguf file, or a hub name (owner/model)"
        )
    return text


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence transformers' own bars, which would break into ours, and its table of what a file lacks."""
    was_enabled, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if was_enabled:
            logging.enable_progress_bar()
