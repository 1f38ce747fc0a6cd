"""An adapter that lies beside a model or refers to one: found, checked, and merged into the model's weights."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from klimb.errors import ModelNotFoundError
from klimb.model.headers import StoredWeight, read_header, read_json

CONFIG = "adapter_config.json"
_WEIGHTS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_PROMPTS = {
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
}  # fmt: skip  what adds tokens or states and changes no weight
_ROUTED = {"ARROW", "POLY", "SHADOW", "XLORA"}  # what chooses anew for each text
_KEEPS_BASE = {"gaussian", "eva", "orthogonal"}  # ways to begin an adapter that leave the base as it was
_TOLERANCE = 1e-3  # of the logits' spread, between the adapter beside the weights and merged into them


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter in a folder.

    Attributes:
        folder: The folder.
        config: What `adapter_config.json` says.
    """

    folder: Path
    config: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Its type, in capitals, as peft names it."""
        return str(self.config.get("peft_type", "")).upper()

    @property
    def base(self) -> str:
        """The model that it was trained on, as `adapter_config.json` names it; empty where it names none."""
        return str(self.config.get("base_model_name_or_path") or "")

    def find_base(self) -> str:
        """Find the model that it was trained on: a path as it stands, or beside the adapter, else a hub name.

        Raises:
            ModelNotFoundError: It names none, or a path where nothing is.
        """
        remedy = (
            f"name the model that it was trained on as base_model_name_or_path in {self.folder / CONFIG}, or put the "
            "adapter's files into that model's folder"
        )
        if not self.base:
            raise ModelNotFoundError(f"it is an adapter that does not name its base model; {remedy}")
        named = Path(self.base).expanduser()
        for place in (named, self.folder / named, self.folder.parent / named):
            if place.is_dir() or place.is_file():
                return str(place)
        if self.base.startswith((".", "/", "~")) or self.base.count("/") != 1:
            raise ModelNotFoundError(
                f"it is an adapter of {self.base}, and there is no such folder; {remedy}"
            )
        return self.base

    def is_of(self, folder: Path) -> bool:
        """Whether it was trained on the model in this folder, as far as it says."""
        if not self.base:
            return True
        named = Path(self.base).expanduser()
        return any(place.resolve() == folder.resolve() for place in (named, self.folder / named))


def find_adapter(folder: Path) -> AdapterFiles | None:
    """Find an adapter in a folder, and check that it is one that can be merged.

    Raises:
        ModelNotFoundError: It is of a kind that cannot be, or its files are damaged or pickled.
    """
    if not (folder / CONFIG).is_file():
        return None
    found = AdapterFiles(folder, read_json(folder / CONFIG))
    _require_mergeable(found)
    if not (folder / _WEIGHTS).is_file():
        if (folder / _PICKLED).is_file():
            raise ModelNotFoundError(
                f"its adapter's weights are pickled ({_PICKLED}), and reading a pickle can run any code: if you "
                "trust its source, load it with peft and save it again with save_pretrained, which writes safetensors"
            )
        raise ModelNotFoundError(f"it has {CONFIG} and no {_WEIGHTS}: fetch the adapter's weights")
    return found


def merge_adapter(model: Any, files: AdapterFiles, task: str) -> Any:
    """Add an adapter to the weights of its model, where it gives what it gave beside them.

    Args:
        model: The transformers model that it was trained on; it is changed.
        files: The adapter.
        task: What the model is for, as peft names it: CAUSAL_LM or SEQ_CLS.

    Returns:
        The model, of the same class as before.

    Raises:
        ModelNotFoundError: It does not fit the model, or merged it would give other logits.
    """
    from peft import PeftModel, get_peft_model_state_dict  # takes a second to import

    of_adapter = str(files.config.get("task_type") or task).upper()
    if task == "CAUSAL_LM" and of_adapter != task:
        raise ModelNotFoundError(
            f"its adapter was trained for {of_adapter}, such as a reward, and not to write (task_type in {CONFIG})"
        )
    stored = read_header(files.folder / _WEIGHTS)
    _make_room(model, stored)
    _untie(model, stored)
    # peft draws first values from torch's global generator before it reads the stored ones.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is checked here
        adapted = PeftModel(model, _read_config(files))
        try:
            found = adapted.load_adapter(str(files.folder), "default", is_trainable=False, torch_device="cpu")
        except (
            RuntimeError,
            KeyError,
        ) as error:  # weights of other shapes, or none of a module that was saved whole
            said = " ".join(str(error).split())[:300]
            raise ModelNotFoundError(f"its adapter does not fit: {said}: {_is_it_that(files)}") from error
        unread = [name for name in found.unexpected_keys if task == "CAUSAL_LM" or ".lm_head." not in name]
        unread = [name for name in unread if not _is_copy(name, stored)]
        lacking = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) - stored.keys()
        _require_fit(files, sorted(found.missing_keys) or sorted(lacking), sorted(unread))
        adapted.eval()
        before = _logits(adapted)
        merged: Any = adapted.merge_and_unload()  # pyright: ignore[reportCallIssue]  peft hands it on to its tuner
        after = _logits(merged)
    gap, spread = float((after - before).abs().max()), float(before.abs().max())
    half = 1 if model.dtype == torch.float32 else 50
    if not gap <= half * _TOLERANCE * max(spread, 1e-6):
        raise ModelNotFoundError(
            f"its adapter ({files.kind}) cannot be merged: the logits would differ by {gap:.2g} from those with the "
            "adapter beside the weights; merge it with what it was trained with"
        )
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged.requires_grad_(True)  # peft froze what it did not train


def _require_mergeable(files: AdapterFiles) -> None:
    kind, config = files.kind, files.config
    if kind in ("", "NONE"):
        raise ModelNotFoundError(f"{CONFIG} has no peft_type, so the kind of adapter is unknown")
    if kind in _PROMPTS or kind in _ROUTED:
        what = (
            "adds to what is read, not to the weights"
            if kind in _PROMPTS
            else "works otherwise for each text"
        )
        raise ModelNotFoundError(
            f"its adapter is of the kind {kind}, which {what} and cannot be merged into them"
        )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _KEEPS_BASE:
        raise ModelNotFoundError(
            f"its adapter began with init_lora_weights {start!r}, which changes the base model too, so that it fits "
            "only that changed model: save it with peft's path_initial_model_for_weight_conversion, or merge it "
            "where it was trained"
        )
    if config.get("alora_invocation_tokens"):
        raise ModelNotFoundError(
            "its adapter is an activated LoRA, which works only after certain tokens and cannot be merged"
        )


def _read_config(files: AdapterFiles) -> Any:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
    from peft import __version__ as version

    if files.kind not in list(PeftType):
        raise ModelNotFoundError(
            f"its adapter is of the kind {files.kind}, which peft {version} does not know"
        )
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(files.kind)]
    known = set(kind.__dataclass_fields__) | {"runtime_config"}
    unknown = {key: value for key, value in files.config.items() if key not in known and value}
    if unknown:
        said = ", ".join(f"{key}={value!r}" for key, value in sorted(unknown.items()))
        raise ModelNotFoundError(
            f"{CONFIG} has settings that peft {version} does not know and that may change what the adapter does "
            f"({said[:300]}): install the peft that it was saved with ({files.config.get('peft_version', 'unknown')})"
        )
    config: Any = kind.from_pretrained(str(files.folder))
    # The plain wrapper does for every task: what a task's own adds to modules_to_save, saving has written down.
    config.task_type, config.inference_mode = None, True
    return config


def _make_room(model: Any, stored: Mapping[str, StoredWeight]) -> None:
    """Give the embeddings as many rows as those that were saved with the adapter."""
    table = model.get_input_embeddings().weight
    name = next(key for key, weight in model.named_parameters() if weight is table)
    for key, weight in stored.items():
        is_table = key.endswith((f".{name}", f".{name.removesuffix('.weight')}.base_layer.weight"))
        if is_table and weight.shape[1:] == table.shape[1:] and weight.shape[0] != table.shape[0]:
            model.resize_token_embeddings(weight.shape[0], mean_resizing=False)
            return


def _untie(model: Any, stored: Mapping[str, StoredWeight]) -> None:
    """Give a last layer that shares the embeddings' weights its own, where an adapter adds to one of the two."""
    last, table = model.get_output_embeddings(), model.get_input_embeddings()
    if last is None or last.weight is not table.weight:
        return
    names = [name for name, module in model.named_modules() if module is last or module is table]
    if any(f".{name}.lora_" in key for name in names for key in stored):
        last.weight = torch.nn.Parameter(
            last.weight.detach().clone(), requires_grad=last.weight.requires_grad
        )
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def _is_copy(name: str, stored: Mapping[str, StoredWeight]) -> bool:
    """Whether a weight stands in the file once more, as peft writes embeddings that grew and are trained whole."""
    plain = re.sub(r"\.(modules_to_save|original_module)\.", ".", name)
    return plain != name and plain in stored and stored[plain].shape == stored[name].shape


def _require_fit(files: AdapterFiles, missing: list[str], unread: list[str]) -> None:
    if missing or unread:
        said = [
            f"its file lacks {len(missing)} of the weights that its settings ask for ({missing[0]})"
            if missing
            else "",
            f"the model has no place for {len(unread)} of its weights ({unread[0]})" if unread else "",
        ]
        raise ModelNotFoundError(
            f"its adapter does not fit: {' and '.join(filter(None, said))}: {_is_it_that(files)}"
        )


def _is_it_that(files: AdapterFiles) -> str:
    return f"is {files.base or 'this'} the model that it was trained on?"


def head_outputs(files: AdapterFiles) -> int | None:
    """How many outputs the head has that was saved with an adapter of a classification model; None without one."""
    for name, weight in read_header(files.folder / _WEIGHTS).items():
        if name.endswith((".score.weight", ".classifier.weight", ".classifier.out_proj.weight")):
            return weight.shape[0]
    return None


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]], device=model.device) % rows
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
