"""Loads a model and its tokenizer from a folder, a hub name or a GGUF file, and checks them."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from klimb.errors import ConfigError, DataError, KlimbError, ModelNotFoundError
from klimb.model.allocation import keep_memory_flat, use_allowed_threads
from klimb.model.complete import check_complete, require_finite, require_room
from klimb.model.gguf import convert_gguf
from klimb.model.headers import stored_weights
from klimb.model.merge import AdapterFiles, find_adapter, head_outputs, merge_adapter
from klimb.model.place import fetch, find, has_tokenizer, require_sound, require_weights, without_adapter
from klimb.model.progress_bars import without_progress_bars
from klimb.model.safe_loading import OWN_CODE, explain, without_pickle
from klimb.model.saving import companions
from klimb.model.tokens import readable

_SEES_AHEAD = {
    True: 1e-3,
    False: 0.05,
}  # of the logits' spread, in float32 and in half types: above their rounding


@dataclass(frozen=True)
class Kind:
    """What a model is for.

    Attributes:
        loader: transformers' class that loads it.
        words: What a message calls it.
        task: What peft calls its task.
    """

    loader: Any
    words: str
    task: str


WRITER = Kind(AutoModelForCausalLM, "a causal language model", "CAUSAL_LM")
SCORER = Kind(AutoModelForSequenceClassification, "a classification model", "SEQ_CLS")


@dataclass(frozen=True)
class Loaded:
    """A model as it is in its files.

    Attributes:
        model: The transformers model, in evaluation mode: dropout is off.
        tokenizer: Its tokenizer.
        folder: Where its files are; of an adapter alone, where the adapter is.
        notes: What a user should know of how it was loaded.
        companions: Files that belong to it and that neither model nor tokenizer writes when saved, by their names.
    """

    model: Any
    tokenizer: Any
    folder: Path
    notes: list[str] = field(default_factory=list)
    companions: dict[str, Path] = field(default_factory=dict)


def load(
    kind: Kind,
    source: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | None = "cpu",
    trust_remote_code: bool = False,
    has_new_head: bool = False,
    **options: Any,
) -> Loaded:
    """Load a model of any kind; whatever it lacks, or has beyond what is read, is refused or told of.

    An adapter beside the model, or one that refers to its model, is merged into the weights.

    Args:
        kind: What it is for.
        source: A folder in Hugging Face's layout, an adapter's folder, a GGUF file (converted once, then taken from
            the cache), or a name on the Hugging Face hub.
        dtype: What the weights are converted to; as they are stored where None.
        device: Where the model goes; the first GPU if there is one, else the CPU, where None.
        trust_remote_code: Whether Python code that comes with the model may run.
        has_new_head: Whether all that is above the backbone may be new.
        options: More for `from_pretrained`.

    Raises:
        ModelNotFoundError: Nothing loadable at `source`, or not all of it.
        ConfigError: There is no such device.
    """
    place = resolve(source)
    with _explained(source, kind, place), without_progress_bars(), without_pickle():
        folder = Path(place) if Path(place).is_dir() else fetch(place)
        adapter = find_adapter(folder)
        base = _base_of(folder, adapter)
        config = require_sound(base)
        _require_kind(kind, config)
        if not trust_remote_code:
            _refuse_own_code(kind, config)
        if kind is SCORER and not has_new_head:
            _require_scorer(config)
        if Path(place).is_dir() or adapter is not None:
            require_weights(base)
        _read_config(base, trust_remote_code)
        tokenizer = _load_tokenizer(folder if has_tokenizer(folder) else base, trust_remote_code)
        if kind is SCORER and adapter is not None and (outputs := head_outputs(adapter)):
            options.setdefault("num_labels", outputs)
        # On the hub a pickle may have a twin in safetensors, which transformers alone knows to find.
        is_here = Path(place).is_dir() or bool(stored_weights(base))
        with without_adapter(base) as clean:
            model, info = kind.loader.from_pretrained(
                clean if is_here else place,
                dtype=dtype or "auto",
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **options,
            )
        notes: list[str] = []
        info = {key: set(names) for key, names in info.items()}
        if adapter is not None:
            model = _merged(model, adapter, kind, info)
            notes.append(f"the adapter in {adapter.folder} ({adapter.kind}) is merged into its weights")
        notes += check_complete(model, info, stored_weights(base), has_new_head=has_new_head)
        require_finite(model)
        require_room(model, tokenizer, pads=kind is SCORER)
        model = _moved(model, device)
        _untie(model, notes)
        _require_computing(kind, model, tokenizer)
    keep_memory_flat()
    use_allowed_threads()
    return Loaded(model, tokenizer, folder, notes, companions(folder, base))


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, as `load` does.

    Returns:
        The model, in evaluation mode, and the tokenizer.
    """
    loaded = load(WRITER, source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    return loaded.model, loaded.tokenizer


def resolve(source: str | Path) -> str:
    """Find the folder, or the hub's name, of what the user named; a GGUF file is converted.

    Raises:
        ModelNotFoundError: There is nothing of that name here, and it is no name of the hub.
    """
    found = find(source)
    return str(convert_gguf(found)) if isinstance(found, Path) and found.is_file() else str(found)


def config_place(source: str | Path) -> str:
    """Find where the config.json is of what the user named: of an adapter, its model's.

    Raises:
        ModelNotFoundError: There is none.
    """
    place = Path(resolve(source))
    if not place.is_dir() or (place / "config.json").is_file():
        return str(place)
    adapter = find_adapter(place)
    return resolve(adapter.find_base()) if adapter is not None else str(place)


@contextlib.contextmanager
def _explained(source: str | Path, kind: Kind, place: str) -> Iterator[None]:
    """Let whatever a library raises while a model is loaded be klimb's error, which says what it was about."""
    said = f"{source}: cannot load {kind.words} from it"
    try:
        yield
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{said}: {error}") from error
    except KlimbError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ConfigError(f"{said}: there is not enough memory for it: {error}") from error
    except Exception as error:  # libraries, and a model's own code, raise whatever its files lead to
        # What the hub's client raises is hundreds of lines of traceback in a notebook, and says no more.
        cause = error if Path(place).exists() else None
        raise ModelNotFoundError(f"{said}: {explain(place, error)}") from cause
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what tokenizers' and safetensors' Rust raises
            raise
        raise ModelNotFoundError(f"{said}: its files are damaged: {error}") from error


def _base_of(folder: Path, adapter: AdapterFiles | None) -> Path:
    """Find the folder of the whole model; of an adapter alone that is the model that it refers to."""
    if adapter is None:
        return folder
    if stored_weights(folder) and (folder / "config.json").is_file():
        if not adapter.is_of(folder):
            raise ModelNotFoundError(
                f"it holds a whole model and an adapter, which was trained on another ({adapter.base}), so klimb "
                "cannot know whether the adapter is already merged: remove adapter_config.json if it has, else "
                "move the adapter's files to a folder of their own"
            )
        return folder
    place = resolve(adapter.find_base())
    base = Path(place) if Path(place).is_dir() else fetch(place)
    if not (base / "config.json").is_file():
        raise ModelNotFoundError(
            f"it is an adapter of {base}, which is itself an adapter, not a whole model: merge that one first"
        )
    return base


def _require_kind(kind: Kind, config: dict[str, Any]) -> None:
    """Raise where config.json says that a model is for something else."""
    name, architectures = config.get("model_type"), " ".join(map(str, config.get("architectures") or []))
    if not config.get("auto_map"):
        if not name:
            raise ModelNotFoundError(
                "its config.json has no model_type: it is not the config.json of a model"
            )
        if name not in CONFIG_MAPPING:
            raise ModelNotFoundError(
                f"its model_type {name!r} is unknown to transformers {transformers.__version__}: upgrade "
                "transformers, if it is a newer model"
            )
    pad, rows = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:
        raise ModelNotFoundError(
            f"config.json: pad_token_id {pad} is not below its vocab_size {rows}: set it to null, or to an existing "
            "token"
        )
    if kind is not WRITER:
        return
    if re.search(r"SequenceClassification|TokenClassification|QuestionAnswering|RewardModel", architectures):
        raise ModelNotFoundError(
            f"it is {architectures}, which scores or labels text and does not generate it: start from a language model"
        )
    if config.get("is_encoder_decoder"):
        raise ModelNotFoundError(
            f"it is an encoder-decoder ({name}), which generates from an encoded text: klimb trains only decoders"
        )


def _refuse_own_code(kind: Kind, config: dict[str, Any]) -> None:
    """Raise where a model is of a class that only its own code has: one of transformers' would compute another score.

    Raises:
        ModelNotFoundError: It is, and its code was not allowed to run.
    """
    name = next(iter(config.get("architectures") or []), None)
    has_code = kind.loader.__name__ in (config.get("auto_map") or {})
    if has_code and name is not None and not hasattr(transformers, str(name)):
        raise ModelNotFoundError(f"it is a {name}, which transformers does not have: {OWN_CODE}")


def _require_scorer(config: dict[str, Any]) -> None:
    """Raise where config.json says that a model gives each token a label, or marks an answer in a text.

    Raises:
        ModelNotFoundError: It does.
    """
    architectures = " ".join(map(str, config.get("architectures") or []))
    if re.search(r"TokenClassification|QuestionAnswering|ProcessRewardModel", architectures):
        raise ModelNotFoundError(
            f"it is {architectures}, which labels tokens and not a text as a whole, as process reward models do: take "
            "a model for sequence classification with one output, or call it from a reward function"
        )


def _read_config(folder: Path, trust_remote_code: bool) -> None:
    """Let transformers look at config.json by itself, so that what it says of it is not taken for something else."""
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # it checks each field in its own way
        if "trust_remote_code" in str(error):
            raise
        said = " ".join(str(error).split())
        raise ModelNotFoundError(
            f"config.json is not what transformers {transformers.__version__} reads ({type(error).__name__}: {said}): "
            "take the one that the model was saved with"
        ) from error


def _load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    if not has_tokenizer(folder):
        raise ModelNotFoundError(
            "it has no tokenizer: put the one that it was trained with beside it (tokenizer.json, "
            "tokenizer_config.json), with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except KlimbError:
        raise
    except Exception as error:  # tokenizers' readers raise whatever the bytes lead to
        if "trust_remote_code" in str(error):
            raise
        has_older = not (folder / "tokenizer.json").is_file()
        if has_older and ("sentencepiece" in str(error) or "tiktoken" in str(error)):
            raise ModelNotFoundError(
                "its tokenizer is only there in an older format, without tokenizer.json, and cannot be read without "
                "more packages: pip install sentencepiece tiktoken protobuf"
            ) from error
        raise ModelNotFoundError(
            f"its tokenizer cannot be read ({type(error).__name__}: {error}): fetch the files of the tokenizer again"
        ) from error
    if not len(tokenizer):
        raise ModelNotFoundError("its tokenizer has no tokens: fetch tokenizer.json again")
    return tokenizer


def _merged(model: Any, adapter: AdapterFiles, kind: Kind, info: dict[str, set[Any]]) -> Any:
    """Merge an adapter, and count what it brought whole, such as a head, as found."""
    rows = model.get_input_embeddings().weight.shape[0]
    drawn = {name: model.state_dict()[name].clone() for name in info["missing_keys"]}
    merged = merge_adapter(model, adapter, kind.task)
    whole = {name for name, before in drawn.items() if not torch.equal(before, merged.state_dict()[name])}
    info["missing_keys"] -= whole
    if merged.get_input_embeddings().weight.shape[0] != rows:
        merged.config.get_text_config().vocab_size = merged.get_input_embeddings().weight.shape[0]
    return merged


def _untie(model: Any, notes: list[str]) -> None:
    """Let a configuration that ties the embeddings to the last layer say so no more where the file has two of them."""
    embeddings, last = model.get_input_embeddings(), model.get_output_embeddings()
    config = model.config.get_text_config()
    if (
        last is not None
        and getattr(config, "tie_word_embeddings", False)
        and last.weight is not embeddings.weight
    ):
        model.config.tie_word_embeddings = config.tie_word_embeddings = False
        notes.append(
            "config.json ties the last layer to the embeddings, and the file has another: that one is used"
        )


def _moved(model: Any, device: str | None) -> Any:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without that device
        raise ConfigError(f"device: cannot use {device!r}: {error}") from error


@torch.no_grad()
def _require_computing(kind: Kind, model: Any, tokenizer: Any) -> None:
    """Let a model read a few tokens: it must do so, and a writer must not see those that come later."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[3, 1, 4, 1, 5], [3, 1, 4, 9, 2]], device=model.device) % rows
    if kind is SCORER:
        with contextlib.suppress(DataError), readable("a text"):  # some models ask for their end token
            ids = torch.tensor([tokenizer("Good.").input_ids], device=model.device)
        end = model.config.eos_token_id
        if isinstance(end, int) and 0 <= end < rows:  # a tokenizer may not write it by itself
            ids = torch.cat([ids, torch.full_like(ids[:, :1], end)], dim=1) if end not in ids else ids
        if ids.shape[1]:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :3].float()
    gap, spread = float((logits[0] - logits[1]).abs().max()), float(logits.std())
    if gap > _SEES_AHEAD[model.dtype == torch.float32] * spread:
        raise ModelNotFoundError(
            f"{type(model).__name__} reads later tokens before it writes earlier ones, as an encoder does: it cannot "
            "write a text from left to right; start from a decoder"
        )
