"""Where a model is that a person names, and whether what lies there can be one, in words."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from klimb.errors import ModelNotFoundError
from klimb.model.headers import read_json, refuse_pointer, stored_weights
from klimb.model.merge import CONFIG as ADAPTER_CONFIG
from klimb.model.safe_loading import PICKLE_REMEDY, PICKLED

_SMALL = [
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "*.py",
]  # what a model is read from beside weights
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OF_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "tokenizer_config.json", "*.tiktoken", "source.spm",
)  # fmt: skip
_READ_AT_ONCE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "chat_template.json", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
_OF_TRAINING = (
    "optimizer",
    "scheduler",
    "rng_state",
    "scaler",
    "training_args",
    "trainer_state",
    "random_states",
)
_OF_KLIMB = ("reward.json", "metrics.jsonl")  # what a reward's folder or a run's has
_POINTED = ("*.model", "*.jinja", "merges.txt", "vocab.txt", "*.safetensors")
_DEQUANTISE = {
    "mxfp4": "load it with AutoModelForCausalLM.from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True))",
    "fp8": "load it with AutoModelForCausalLM.from_pretrained(..., "
    "quantization_config=FineGrainedFP8Config(dequantize=True))",
    "bitsandbytes": "install bitsandbytes, load it and call model.dequantize()",
}


def find(source: str | Path) -> Path | str:
    """Find the folder, the GGUF file or the hub's name that a person means.

    Raises:
        ModelNotFoundError: There is nothing of that name here, and it is no name of the hub.
    """
    if not str(source).strip():
        raise ModelNotFoundError(
            "model: expected a model folder, a .gguf file or a hub name, got an empty name"
        )
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelNotFoundError(
                f"{source}: expected a model folder, a .gguf file or a hub name, got another kind of file"
            )
        return path
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise ModelNotFoundError(f"{source}: no permission to read the folder")
        if not (path / "config.json").exists() and not (path / ADAPTER_CONFIG).exists():
            raise ModelNotFoundError(f"{source}: the folder has no config.json; {_what_else(path)}")
        return path
    text = str(source)
    if text.startswith((".", "/", "~")) or text.count("/") != 1 or path.suffix.lower() == ".gguf":
        raise ModelNotFoundError(
            f"{source}: no such folder or file; give a model folder, a .gguf file, or a hub name (owner/model)"
        )
    owner = Path(text.split("/", maxsplit=1)[0])
    # Beside rewards or runs a path is meant; beside downloaded models it may be a name on the hub.
    if owner.is_dir() and _is_klimbs(owner):
        raise ModelNotFoundError(f"{source}: no such folder; {owner} has {_names_in(owner)}")
    return text


def _is_klimbs(folder: Path) -> bool:
    """Whether a folder holds rewards or runs, or nothing."""
    entries = [entry for entry in folder.iterdir() if entry.is_dir()]
    return not entries or any((entry / name).is_file() for entry in entries for name in _OF_KLIMB)


def _names_in(folder: Path, most: int = 8) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not names:
        return "no folders"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fetch(name: str) -> Path:
    """Fetch a model of the hub into the hub's cache, safetensors alone of its weights; what is there stays.

    Raises:
        OSError, ValueError: As the hub's library says that it cannot.
    """
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=_SMALL, ignore_patterns=["*/*"]))
    wanted = [_SINGLE, "adapter_model.safetensors", "additional_chat_templates/*.jinja"]
    folder = Path(snapshot_download(name, allow_patterns=wanted))
    if not (folder / _SINGLE).is_file() and (folder / _INDEX).is_file():
        files = set(map(str, dict(read_json(folder / _INDEX).get("weight_map") or {}).values()))
        folder = Path(snapshot_download(name, allow_patterns=sorted(files)))
    return folder


def require_sound(folder: Path) -> dict[str, Any]:
    """Raise where a folder with a config.json is no model that klimb can read, before anything is loaded from it.

    Returns:
        What its config.json says.

    Raises:
        ModelNotFoundError: What is wrong, and what to do.
    """
    config = read_json(folder / "config.json")
    if (folder / "metrics.jsonl").is_file() or (folder / "fingerprints.json").is_file():
        remedy = f"name its model, {folder / 'model'}"
        if not (folder / "model").is_dir():
            remedy = "it was stopped before its end and has no model yet: resume it with klimb train --resume"
        raise ModelNotFoundError(f"it is the folder of a klimb run: {remedy}")
    _refuse_quantised(config)
    for name in _READ_AT_ONCE:
        if (folder / name).exists():
            read_json(folder / name)
    for pattern in _POINTED:
        for file in folder.glob(pattern):
            refuse_pointer(file)
    stored = stored_weights(folder)
    if narrow := [name for name, weight in stored.items() if weight.is_quantised]:
        raise ModelNotFoundError(
            f"{len(narrow)} of its weights are stored in {stored[narrow[0]].dtype} ({narrow[0]}): they are quantised, "
            "and klimb trains weights of 16 bits or more: take the original model"
        )
    return config


def require_weights(folder: Path) -> None:
    """Raise where a folder has no weights that are safetensors in transformers' layout.

    Raises:
        ModelNotFoundError: What is there in their place, and what to do.
    """
    if not (folder / _SINGLE).is_file() and not (folder / _INDEX).is_file():
        raise ModelNotFoundError(_without_weights(folder))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has any file of a tokenizer."""
    return any(next(folder.glob(pattern), None) is not None for pattern in _OF_TOKENIZERS)


@contextlib.contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """Yield a folder's content without an adapter, which transformers would load by itself, unmerged."""
    if not (folder / ADAPTER_CONFIG).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="klimb-") as scratch:
        for entry in folder.resolve().iterdir():
            if not entry.name.startswith("adapter_"):
                (Path(scratch) / entry.name).symlink_to(entry)
        yield Path(scratch)


def _refuse_quantised(config: dict[str, Any]) -> None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        said: Any = part.get("quantization_config") or part.get("compression_config")
        if not said:
            continue
        method = str(said.get("quant_method", "an unnamed method") if isinstance(said, dict) else said)
        bits = " in 4 bits" if isinstance(said, dict) and said.get("load_in_4bit") else ""
        way = _DEQUANTISE.get(method, "load it with what it was quantised with, dequantise it")
        raise ModelNotFoundError(
            f"its weights are quantised{bits} by {method} (quantization_config in config.json), and klimb trains "
            f"weights of 16 bits or more: take the original model, or {way} and save it with save_pretrained"
        )


def _pickled(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(PICKLED) and not name.startswith(_OF_TRAINING)]


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _what_else(folder: Path) -> str:
    """Say what a folder is that has neither a model's config.json nor an adapter's."""
    names = _names(folder)
    below = [
        name
        for name in names
        if any((folder / name / file).exists() for file in ("config.json", ADAPTER_CONFIG))
    ]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    cached = sorted((folder / "snapshots").glob("*/config.json"))
    weights = [name for name in names if name.endswith(".safetensors")] + _pickled(names)
    shown = [str(folder / name) for name in below[:4]]
    known = {
        "it is empty": not names,
        "it is a pipeline of diffusers, which makes images: klimb trains language models": "model_index.json"
        in names,
        f"it holds GGUF files; name one of them: {folder / (ggufs or [''])[0]}": ggufs,
        "it is a checkpoint of a klimb run, not a model: name the run's model, or use klimb train --resume": (
            {"weights.safetensors", "optimiser.safetensors"} <= {*names}
        ),
        "it is a checkpoint of DeepSpeed: make weights of it by `python zero_to_fp32.py . out --safe_serialization` "
        "and put the model's config.json and tokenizer beside them": (
            any(name == "zero_to_fp32.py" or name.startswith("global_step") for name in names)
        ),
        "it is a sharded checkpoint of FSDP: make weights of it by `accelerate merge-weights`": (
            any(name.endswith(".distcp") or "fsdp" in name for name in names)
        ),
        f"it is a folder of the hub's cache, with the model in {cached[-1].parent if cached else ''}": cached,
        f"its subfolders hold models; name one of them: {', '.join(shown)}": below,
        "it has Meta's or Mistral's own layout (params.json): convert it to Hugging Face's with transformers": (
            "params.json" in names
        ),
        f"it has {', '.join(weights[:4])}: put the model's config.json and tokenizer beside its weights": weights,
        "it has only the state of a training run (an optimiser's and the like), and no weights": (
            any(name.startswith(_OF_TRAINING) for name in names)
        ),
    }
    usual = f"expected a model saved by save_pretrained, found {', '.join(names[:6])}"
    return next((said for said, is_so in known.items() if is_so), usual)


def _without_weights(folder: Path) -> str:
    """Say what a folder has in place of weights that klimb reads."""
    names = _names(folder)
    pickled = _pickled(names)
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    others = [name for name in names if name.endswith(".safetensors")]
    foreign = [name for name in names if name.endswith((".h5", ".msgpack", ".onnx", ".npz"))]
    known = {
        f"its weights are pickled ({', '.join(pickled)}); {PICKLE_REMEDY}": pickled,
        f"its weights are GGUF files; name one of them: {folder / (ggufs or [''])[0]}": ggufs,
        f"its weights are in {len(others)} files and the index {_INDEX} is missing: fetch it": (
            any("-of-" in name for name in others)
        ),
        f"it has no {_SINGLE}, but {', '.join(others[:4])}: is that the model under another name?": others,
        "its weights are DeepSpeed's: run `python zero_to_fp32.py . . --safe_serialization` in it": (
            "zero_to_fp32.py" in names
        ),
        f"its weights are in {', '.join(foreign)}, which klimb does not read: get the model as safetensors": foreign,
    }
    usual = f"it has no weights ({_SINGLE}): fetch the whole model"
    return next((said for said, is_so in known.items() if is_so), usual)
