"""Converts a GGUF file to a safetensors folder."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from klimb.errors import ModelNotFoundError
from klimb.io.atomic import cache_folder, whole_folder
from klimb.io.digest import cached_sha256
from klimb.model.complete import check_complete
from klimb.model.progress_bars import without_progress_bars
from klimb.model.safe_loading import alone, without_pickle


def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a safetensors folder in the cache, once for each content.

    The quantised weights are expanded to float32 by transformers' reader; the folder is named
    by the file's SHA-256, so a changed file is converted again.

    Returns:
        The folder, in Hugging Face's layout.

    Raises:
        ModelNotFoundError: The file cannot be read as a GGUF model.
    """
    digest = cached_sha256(file)
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest[:16]}"
    if folder.exists():
        return folder
    # The reader draws its bar on standard error whatever transformers' settings are.
    with (
        without_progress_bars(),
        contextlib.redirect_stderr(io.StringIO()),
        without_pickle(),
        alone(file) as place,
    ):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file.name, trust_remote_code=False)
            reader: Any = AutoModelForCausalLM
            model, info = reader.from_pretrained(
                place,
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                trust_remote_code=False,
                output_loading_info=True,
            )
            check_complete(model, info, {})
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
