"""Saves a model in a form that opens wherever the original did."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

_OF_PROCESSORS = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "image_processor_config.json", "audio_processor_config.json", "feature_extractor_config.json",
    "chat_template.json",
)  # fmt: skip
_OLDER_TOKENIZERS = (
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_GENERATION = "generation_config.json"


def companions(*folders: Path, has_same_tokenizer: bool = True) -> dict[str, Path]:
    """Find the files that belong to a model beside its weights, its configuration and its tokenizer.

    Those of processors (of images and the like), older forms of the tokenizer, settings of generation, and the code
    that a processor names as its own.

    Args:
        folders: Where they may be; the first that has one counts.
        has_same_tokenizer: Whether the tokenizer stays as it is, so that older forms of it still tell the truth.
    """
    found: dict[str, Path] = {}
    names = (*_OF_PROCESSORS, _GENERATION, *(_OLDER_TOKENIZERS if has_same_tokenizer else ()))
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                found.setdefault(name, (folder / name).resolve())
        for name in [name for name in found if name.endswith(".json")]:
            for module in _own_code(found[name]):
                if (folder / module).is_file():
                    found.setdefault(module, (folder / module).resolve())
    return found


def save_whole(model: Any, tokenizer: Any, folder: Path, beside: Mapping[str, Path]) -> None:
    """Save a model and its tokenizer, and carry over what else its folder had for whatever opens it.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer.
        folder: Where to.
        beside: The files to carry over, by their names; what model and tokenizer write themselves is left as it is.

    Raises:
        OSError: It cannot be written.
    """
    with _saveable(model) as is_whole:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, file in beside.items():
        is_written = (folder / name).exists() and (is_whole or name != _GENERATION)
        if not is_written and file.is_file() and (name != _GENERATION or model.can_generate()):
            shutil.copyfile(file, folder / name)


@contextlib.contextmanager
def _saveable(model: Any) -> Iterator[bool]:
    """Set settings of generation aside that transformers reads and does not write, such as a temperature unused.

    Yields:
        Whether they can be written whole; else their end tokens alone are, unless the file that they came from is
        carried over.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or _is_valid(settings):
        yield True
        return
    ends = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ends)
    try:
        yield False
    finally:
        model.generation_config = settings


def _is_valid(settings: Any) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True


def _own_code(file: Path) -> set[str]:
    """Names of the Python files that a JSON file of a model names as its code."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        named = json.loads(file.read_text(encoding="utf-8")).get("auto_map", {}).values()
        flat = [one for value in named for one in (value if isinstance(value, list) else [value]) if one]
        return {f"{str(one).split('--')[-1].split('.')[0]}.py" for one in flat}
    return set()
