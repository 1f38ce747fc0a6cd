"""A text scorer: a sequence-classification model with one output, its tokenizer, and what its head sees.

Axes: n texts, D numbers that the head sees of a text, K members of an ensemble.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from klimb.config.criterion import QUESTION
from klimb.errors import ConfigError, DataError, ModelNotFoundError, RewardError, TooLongError
from klimb.io.show import Message, Text
from klimb.model import chat
from klimb.model.clock import fix_clock
from klimb.model.layers import use_fast_layers
from klimb.model.load import SCORER, Loaded, load
from klimb.model.progress_bars import without_progress_bars
from klimb.model.saving import companions, save_whole
from klimb.model.tokens import separates_pairs
from klimb.model.trunk import decoder_layers
from klimb.reward.padding import (
    batch_key,
    can_score,
    choose_padding,
    known_padding,
    longest_text,
    pad,
    set_padding,
    spare_token,
)
from klimb.reward.question import append_question

ENSEMBLE = "ensemble.safetensors"
"""Beside a model: the heads of an ensemble's members, `heads` (K, D)."""

RECORD = "reward.json"
"""Beside a model that klimb learned: how it was learned."""

_PAIRS = (
    "prompt and completion are read as one text; if the model was trained on the two as a pair, with a mark between "
    "them, call it from a function (docs/rewards.md)"
)
_BATCH_TOKENS = 2048  # that go through the model at once, with padding
# What transformers calls a classification model's last layer, or what that stands in.
_DECODERS_HEAD = "score"
_HEADS = (_DECODERS_HEAD, "classifier", "classification_head", "logits_proj")
_INNER = ("out_proj", "linear_out")
_CUT = "klimb_truncates"  # stands in tokenizer_config.json

Side = Literal["left", "right"]


class Scorer:
    """A model that gives a prompt and its completion one number, on its raw output.

    s(x) = w · h(x) + b, in float32, where h is what the model's own forward hands to its head: at the token that it
    chooses. So a text has one score: here for learning, testing and serving, alone and in a batch, and in transformers.

    Attributes:
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        name: Where it came from, for messages.
        longest: Most tokens that it reads; None where nothing limits them.
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
        self.longest = longest_text(model)
        if self.cuts:
            self.longest = tokenizer.model_max_length
        self._padding = known_padding(model)
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
                f"reward {source}: expected a model with 1 output, a score, got {model.config.num_labels} labels: "
                "write a function that takes the score of one of them, as docs/rewards.md shows"
            )
        scorer = cls(model.to(_device(device)), loaded.tokenizer, str(source))
        scorer.notes, scorer.folder = loaded.notes, loaded.folder
        if separates_pairs(loaded.tokenizer) and not (loaded.folder / RECORD).is_file():
            scorer.notes = [*loaded.notes, _PAIRS]
        if (beside := loaded.folder / ENSEMBLE).is_file():
            scorer.members = load_file(beside)["heads"]
        return scorer

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        *,
        num_layers: int | None = None,
        question: str | None = "",
        device: str | None = None,
    ) -> "Scorer":
        """Give a language model (or any other backbone) a new head whose weights are 0.

        Args:
            base: A Hugging Face folder, a GGUF file, or a name on the hub.
            num_layers: Keep the first so many decoder layers; all where None.
            question: Text that the tokenizer appends to whatever it reads: a decoder's head sees its last
                token, and sees more where that follows a question about the text. None: klimb's own question,
                where the base is a decoder whose tokenizer can append it.
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
            tokenizer = append_question(tokenizer, question)
        elif question is None and hasattr(model, _DECODERS_HEAD):
            with contextlib.suppress(ConfigError):
                tokenizer = append_question(tokenizer, QUESTION)
        moment = fix_clock(tokenizer)  # a text has one score, today and tomorrow
        scorer = cls(model.to(_device(device)), tokenizer, str(base))
        scorer.notes, scorer.folder = loaded.notes, loaded.folder
        scorer.moment = moment
        scorer.settle_padding()
        with torch.no_grad():
            scorer.head.weight.zero_()
            if getattr(scorer.head, "bias", None) is not None:
                scorer.head.bias.zero_()
        return scorer

    @property
    def head(self) -> Any:
        """The last layer, which makes the score."""
        found = self._find_head()
        if found is None:
            raise ConfigError(f"{self.name}: found no classification head in {type(self.model).__name__}")
        return found

    def _find_head(self) -> Any:
        for name in _HEADS:
            head = getattr(self.model, name, None)
            for inner in _INNER:
                head = getattr(head, inner, head)
            if head is not None:
                return head
        return None

    def settle_padding(self, texts: Iterable[list[int]] = ()) -> None:
        """Choose the token that a new reward takes for padding, and write it into model and tokenizer.

        Args:
            texts: Encoded: the last token of these is scored wherever a special token is left that none ends in.
        """
        token = choose_padding(self.model, self.tokenizer, texts)
        self._padding = token
        set_padding(self.model, token)
        if token is not None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(token)

    @torch.no_grad()
    def set_head(self, weights: Float[np.ndarray, " D"]) -> None:
        """Give the head weights that were learned on features."""
        self.head.weight.copy_(torch.from_numpy(weights)[None])

    @torch.no_grad()
    def divide(self, unit: float) -> None:
        """Count scores in another unit from now on: the head's weights, its bias and the members are divided by it."""
        self.head.weight.div_(unit)
        if getattr(self.head, "bias", None) is not None:
            self.head.bias.div_(unit)
        if self.members is not None:
            self.members = self.members / unit

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
            TooLongError: They are longer than the model can read.
            RewardError: They have no tokens, or none that the model scores, or there are messages while the tokenizer
                has no chat template, or one that refuses them.
        """
        ids = self.tokenise(prompt, completion, columns, opened)
        if not ids:
            raise RewardError(
                f"reward {self.name}: prompt and completion have no tokens, so nothing can be scored"
            )
        if self.longest is not None and len(ids) > self.longest:
            raise TooLongError(
                f"reward {self.name}: prompt and completion have {len(ids):,} tokens and it reads at most "
                f"{self.longest:,}"
            )
        if not can_score(self.model, ids):
            raise RewardError(
                f"reward {self.name}: it scores a text at its end token, and the tokenizer adds none after this text"
            )
        return ids

    def tokenise(
        self,
        prompt: Text,
        completion: Text,
        columns: Mapping[str, Any] = chat.NO_COLUMNS,
        opened: str = "",
    ) -> list[int]:
        """Tokenise as `encode` does, however long the text is.

        Raises:
            RewardError: There are messages while the tokenizer has no chat template, or one that refuses them.
        """
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._tokenise(prompt + completion, add_special_tokens=True)
        text = self.render(chat.conversation(prompt, completion, opened), columns)
        return self._tokenise(text, add_special_tokens=False)  # the template has put them in

    def cut_longer(self, side: Side, most: int | None = None) -> None:
        """Cut longer texts from now on, wherever this tokenizer is used, also by transformers with `truncation=True`.

        Args:
            side: Which end of the text is cut off; special tokens that the tokenizer adds, and a question, stay.
            most: Tokens that are left, at most as many as the model reads; that many where None.

        Raises:
            ConfigError: The model sets no limit, and none is given.
        """
        limit = min(filter(None, (most, self.longest)), default=None)
        if limit is None:
            raise ConfigError(f"truncate: {self.name} sets no limit on its texts; give one by --max-length")
        self.longest = limit
        self.tokenizer.truncation_side, self.tokenizer.model_max_length = side, limit
        self.tokenizer.init_kwargs[_CUT] = True

    def _tokenise(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if not self.cuts:
            return chat.tokenize(self.tokenizer, text, add_special_tokens=add_special_tokens)
        cut = {"truncation": True, "max_length": self.longest}
        return self.tokenizer(text, add_special_tokens=add_special_tokens, **cut).input_ids

    @property
    def cuts(self) -> bool:
        """Whether longer texts are cut, as this reward's tokenizer says."""
        return bool(self.tokenizer.init_kwargs.get(_CUT))

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

    def scores(self, texts: list[list[int]]) -> Float[np.ndarray, " n"]:
        """Score encoded texts."""
        if self.has_plain_head:
            return self.apply_head(self.features(texts))
        found = np.zeros(len(texts), dtype=np.float32)
        for rows, logits in self._read(texts):
            found[rows] = logits[:, 0]
        return found

    def features(self, texts: list[list[int]]) -> Float[np.ndarray, "n D"]:
        """Find what the head sees of encoded texts, each at the token that the model's own forward chooses."""
        found = np.zeros((len(texts), self.head.weight.shape[1]), dtype=np.float32)
        # In the head's place stands what it is given, so that the model's choice of a token applies to that.
        handle = self.head.register_forward_hook(lambda _module, inputs, _output: inputs[0])
        try:
            for rows, seen in self._read(texts):
                found[rows] = seen
        finally:
            handle.remove()
        return found

    def apply_head(self, features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
        """Score texts by what the head sees of them."""
        weights = self.head.weight.detach()[0].double().cpu()
        bias = getattr(self.head, "bias", None)
        scores = torch.from_numpy(features).double() @ weights
        return (scores if bias is None else scores + bias.detach().double().cpu()).float().numpy()

    @property
    def has_plain_head(self) -> bool:
        """Whether nothing follows the head; code that came with a model may do anything."""
        return self._find_head() is not None and type(self.model).__module__.startswith(
            "transformers.models."
        )

    def _read(self, texts: list[list[int]]) -> Iterator[tuple[list[int], Float[np.ndarray, "n C"]]]:
        for rows, inputs in self.batches(texts):
            with torch.no_grad():
                logits = self.model(**inputs).logits
            yield rows, logits.float().cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write what `AutoModelForSequenceClassification` and `AutoTokenizer` load."""
        beside = {} if self.folder is None else companions(self.folder, has_same_tokenizer=False)
        set_padding(self.model, self._padding)
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
        padding = spare_token(self.model, texts) if self._padding is None else self._padding
        set_padding(self.model, padding)
        most = 1 if padding is None else most
        keys = [batch_key(self.model, text) for text in texts]
        order = sorted(range(len(texts)), key=lambda index: (keys[index], -len(texts[index])))
        while order:
            count = max(1, _BATCH_TOKENS // len(texts[order[0]]))
            count = count if most is None else min(count, most)
            rows = [row for row in order[:count] if keys[row] == keys[order[0]]]
            order = order[len(rows) :]
            inputs = pad([texts[row] for row in rows], padding or 0)
            yield rows, {name: values.to(self.model.device) for name, values in inputs.items()}


def _device(device: str | None) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _load(source: str | Path, trust_remote_code: bool = False, **options: Any) -> Loaded:
    """Load a classification model with `klimb.model.load.load`, in float32, whose messages then name the reward."""
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
