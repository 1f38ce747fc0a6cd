"""A text scorer: a sequence-classification model with one output, its tokenizer, and what its head sees.

Axes: n texts, D numbers that the head sees of a text, K members of an ensemble.
"""

import copy
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tokenizers.processors import Sequence as Processors
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from klimb.errors import ConfigError, ModelNotFoundError, RewardError
from klimb.policy.allocation import keep_memory_flat
from klimb.policy.clock import fix_clock, template_at_clock
from klimb.policy.layers import use_fast_layers
from klimb.policy.load import resolve, without_progress_bars
from klimb.policy.trunk import decoder_layers
from klimb.policy.trust import explain, without_pickle
from klimb.text import Text

ENSEMBLE = "ensemble.safetensors"
"""Beside a model: the heads of an ensemble's members, `heads` (K, D)."""

_BATCH_TOKENS = 2048  # that go through the model at once, with padding
_HEADS = ("score", "classifier")  # what transformers calls a classification model's last layer


class Scorer:
    """A model that gives a prompt and its completion one number, on its raw output.

    Attributes:
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        name: Where it came from, for messages.
        members: Heads of an ensemble's members, (K, D), where there is one.
        moment: What its base's chat template reads as the present time from now on, where that writes the time.
    """

    members: Float[np.ndarray, "K D"] | None = None
    moment: datetime | None = None

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        use_fast_layers(model)
        self._longest = getattr(model.config, "max_position_embeddings", None)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.padding_side = "right"

    @classmethod
    def load(
        cls, source: str | Path, *, device: str | None = None, trust_remote_code: bool = False
    ) -> "Scorer":
        """Load a finished reward model.

        Raises:
            ModelNotFoundError: Nothing loadable at `source`.
            RewardError: The model has another number of outputs than one.
        """
        model, tokenizer = _load(source, trust_remote_code)
        if model.config.num_labels != 1:
            raise RewardError(
                f"reward {source}: expected a model with 1 output, a score, got {model.config.num_labels} labels"
            )
        scorer = cls(model.to(_device(device)), tokenizer, str(source))
        if (beside := Path(source) / ENSEMBLE).is_file():
            scorer.members = load_file(beside)["heads"]
        return scorer

    @classmethod
    def from_base(
        cls, base: str | Path, *, num_layers: int | None = None, question: str = "", device: str | None = None
    ) -> "Scorer":
        """Give a language model (or any other backbone) a new head whose weights are 0.

        Args:
            base: A Hugging Face folder, a GGUF file, or a name on the hub.
            num_layers: Keep the first so many decoder layers; all where None.
            question: Text that the tokenizer appends to whatever it reads: a decoder's head sees its last
                token, and sees more where that follows a question about the text.
            device: Where the model goes; the first GPU if there is one, else the CPU, where None.

        Raises:
            ModelNotFoundError: Nothing loadable at `base`.
            ConfigError: There are not so many layers, or the tokenizer cannot append.
        """
        # Layers that the base lacks, such as a pooler, are drawn from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, tokenizer = _load(base, False, num_labels=1)
        if num_layers is not None:
            _keep_layers(model, num_layers)
        if question:
            _append(tokenizer, question)
        moment = fix_clock(tokenizer)  # a text has one score, today and tomorrow
        scorer = cls(model.to(_device(device)), tokenizer, str(base))
        scorer.moment = moment
        with torch.no_grad():
            scorer.head.weight.zero_()
            if getattr(scorer.head, "bias", None) is not None:
                scorer.head.bias.zero_()
        return scorer

    @property
    def head(self) -> Any:
        """The last layer, which makes the score."""
        for name in _HEADS:
            head = getattr(self.model, name, None)
            head = getattr(head, "out_proj", head)
            if head is not None:
                return head
        raise ConfigError(f"{self.name}: found no classification head in {type(self.model).__name__}")

    @torch.no_grad()
    def set_head(self, weights: Float[np.ndarray, " D"]) -> None:
        """Give the head weights that were learned on features."""
        self.head.weight.copy_(torch.from_numpy(weights)[None])

    def encode(self, prompt: Text, completion: str) -> list[int]:
        """Tokenise a prompt and its completion together.

        Raises:
            RewardError: They are longer than the model can read, or the prompt has messages while
                the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt + completion).input_ids
        elif self.tokenizer.chat_template is None:
            raise RewardError(
                f"reward {self.name}: the prompts are chat messages but its tokenizer has no chat template"
            )
        else:
            messages = [*prompt, {"role": "assistant", "content": completion}]
            chat = self.tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=template_at_clock(self.tokenizer)
            )
            # The template has put special tokens in; a question that was appended is the tokenizer's own.
            ids = self.tokenizer(chat, add_special_tokens=_has_question(self.tokenizer)).input_ids
        if self._longest is not None and len(ids) > self._longest:
            raise RewardError(
                f"reward {self.name}: prompt and completion have {len(ids)} tokens and it reads at most "
                f"{self._longest}: shorten the prompts, or lower --max-new-tokens"
            )
        return ids

    @torch.no_grad()
    def scores(self, texts: list[list[int]]) -> Float[np.ndarray, " n"]:
        """Score encoded texts."""
        found = np.zeros(len(texts), dtype=np.float32)
        for rows, inputs in self.batches(texts):
            found[rows] = self.model(**inputs).logits[:, 0].float().cpu().numpy()
        return found

    @torch.no_grad()
    def features(self, texts: list[list[int]]) -> Float[np.ndarray, "n D"]:
        """Find what the head sees of encoded texts."""
        found: np.ndarray | None = None
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            for rows, inputs in self.batches(texts):
                seen.clear()
                self.model(**inputs)
                states = seen[0]
                if states.ndim == 3:  # a decoder's: of every token, and the last one counts
                    last = inputs["attention_mask"].sum(dim=1) - 1
                    states = states[torch.arange(len(rows), device=states.device), last]
                if found is None:
                    found = np.zeros((len(texts), states.shape[1]), dtype=np.float32)
                found[rows] = states.float().cpu().numpy()
        finally:
            handle.remove()
        return found if found is not None else np.zeros((0, self.head.weight.shape[1]), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write what `AutoModelForSequenceClassification` and `AutoTokenizer` load."""
        with without_progress_bars():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.members is not None:
            save_file({"heads": self.members.astype(np.float32)}, folder / ENSEMBLE)

    def batches(self, texts: list[list[int]], most: int | None = None) -> Iterator[tuple[list[int], Any]]:
        """Put texts of like length together, which leaves little padding.

        Args:
            texts: Encoded.
            most: How many of them at once; as many as a batch of padded tokens holds where None.

        Returns:
            Indices of some of the texts, and the model's inputs for these, until each was there once.
        """
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        while order:
            count = max(1, _BATCH_TOKENS // len(texts[order[0]])) if texts[order[0]] else len(order)
            count = count if most is None else min(count, most)
            rows, order = order[:count], order[count:]
            inputs = self.tokenizer.pad({"input_ids": [texts[row] for row in rows]}, return_tensors="pt")
            yield rows, inputs.to(self.model.device)


def _device(device: str | None) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _load(source: str | Path, trust_remote_code: bool, **options: Any) -> tuple[Any, Any]:
    place = str(source)
    with without_progress_bars(), without_pickle():
        try:
            place = resolve(source)
            tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                place, use_safetensors=True, trust_remote_code=trust_remote_code, **options
            )
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"reward {error}") from error
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelNotFoundError(
                f"reward {source}: cannot load a classification model: {explain(place, error)}"
            ) from error
    keep_memory_flat()
    return model, tokenizer


def _keep_layers(model: Any, num_layers: int) -> None:
    layers = decoder_layers(model)
    if layers is None or not 1 <= num_layers <= len(layers):
        known = "none were found" if layers is None else f"this model has {len(layers)}"
        raise ConfigError(f"num_layers: expected some of the model's first layers, got {num_layers}; {known}")
    del layers[num_layers:]
    model.config.num_hidden_layers = num_layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:num_layers]


def _append(tokenizer: Any, question: str) -> None:
    """Let the tokenizer itself append a text, so that whatever loads it reads texts in the same way."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"question: {type(tokenizer).__name__} cannot append a text; leave the question out"
        )
    tokens = backend.encode(question, add_special_tokens=False)
    special = {"id": "<question>", "ids": tokens.ids, "tokens": tokens.tokens}
    template = TemplateProcessing(single="$A <question>", special_tokens=[special])
    usual = copy.deepcopy(backend.post_processor)
    backend.post_processor = template if usual is None else Processors([usual, template])
    tokenizer.init_kwargs["klimb_question"] = question


def _has_question(tokenizer: Any) -> bool:
    return bool(tokenizer.init_kwargs.get("klimb_question"))
