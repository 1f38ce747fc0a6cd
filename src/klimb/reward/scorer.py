"""A text scorer: a sequence-classification model with one output, its tokenizer, and what its head sees.

Axes: n texts, D numbers that the head sees of a text, K members of an ensemble.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from tokenizers.processors import Sequence as Processors
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from klimb.errors import ConfigError, DataError, ModelNotFoundError, RewardError
from klimb.policy import chat
from klimb.policy.clock import fix_clock
from klimb.policy.layers import use_fast_layers
from klimb.policy.load import SCORER, Loaded, load, without_progress_bars
from klimb.policy.saving import companions, save_whole
from klimb.policy.trunk import decoder_layers
from klimb.text import Message, Text

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
        notes: What a user should know of how it was loaded.
        folder: Where its files are; None where it came from none.
        moment: What its base's chat template reads as the present time from now on, where that writes the time.
    """

    members: Float[np.ndarray, "K D"] | None = None
    notes: Sequence[str] = ()
    folder: Path | None = None
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
        loaded = _load(source, trust_remote_code)
        model = loaded.model
        if model.config.num_labels != 1:
            raise RewardError(
                f"reward {source}: expected a model with 1 output, a score, got {model.config.num_labels} labels"
            )
        scorer = cls(model.to(_device(device)), loaded.tokenizer, str(source))
        scorer.notes, scorer.folder = loaded.notes, loaded.folder
        if (beside := loaded.folder / ENSEMBLE).is_file():
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
            loaded = _load(base, has_new_head=True, num_labels=1)
        model, tokenizer = loaded.model, loaded.tokenizer
        if num_layers is not None:
            _keep_layers(model, num_layers)
        if question:
            _append(tokenizer, question)
        moment = fix_clock(tokenizer)  # a text has one score, today and tomorrow
        scorer = cls(model.to(_device(device)), tokenizer, str(base))
        scorer.notes, scorer.folder = loaded.notes, loaded.folder
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

    def encode(
        self,
        prompt: Text,
        completion: Text,
        columns: Mapping[str, Any] = chat.NO_COLUMNS,
        opened: str = "",
    ) -> list[int]:
        """Tokenise a prompt and its completion together.

        Args:
            prompt: Text, or messages; where the last is the assistant's the completion continues it.
            completion: The completion's text, or its messages.
            columns: The row's other columns, of which the chat template is given `tools` and `chat_template_kwargs`.
            opened: What the policy's prompt opened of the assistant's turn, such as `<think>`.

        Raises:
            RewardError: They are longer than the model can read, or there are messages while the tokenizer has no chat
                template, or one that refuses them.
        """
        if isinstance(prompt, str) and isinstance(completion, str):
            ids = chat.tokenize(self.tokenizer, prompt + completion)
        else:
            text = self.render(chat.conversation(prompt, completion, opened), columns)
            # The template has put special tokens in; a question that was appended is the tokenizer's own.
            ids = chat.tokenize(self.tokenizer, text, add_special_tokens=_has_question(self.tokenizer))
        if self._longest is not None and len(ids) > self._longest:
            raise RewardError(
                f"reward {self.name}: prompt and completion have {len(ids)} tokens and it reads at most "
                f"{self._longest}: shorten the prompts, or lower --max-new-tokens"
            )
        return ids

    def render(self, messages: list[Message], columns: Mapping[str, Any] = chat.NO_COLUMNS) -> str:
        """Write a whole conversation as the model reads it.

        Raises:
            RewardError: The tokenizer has no chat template, or it refuses the messages.
        """
        if self.tokenizer.chat_template is None:
            raise RewardError(
                f"reward {self.name}: the prompts are chat messages but its tokenizer has no chat template"
            )
        try:
            return chat.render_whole(self.tokenizer, messages, columns)
        except DataError as error:
            raise RewardError(f"reward {self.name}: {error}") from error

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
        beside = {} if self.folder is None else companions(self.folder, has_same_tokenizer=False)
        with without_progress_bars():
            save_whole(self.model, self.tokenizer, folder, beside)
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


def _load(source: str | Path, trust_remote_code: bool = False, **options: Any) -> Loaded:
    """Load a classification model with `klimb.policy.load.load`, in float32, whose messages then name the reward."""
    try:
        return load(SCORER, source, trust_remote_code=trust_remote_code, **options)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"reward {error}") from error


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
