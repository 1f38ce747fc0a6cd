"""The options of reward learning, checked before anything is loaded."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from klimb.config.criterion import QUESTION, Criterion
from klimb.config.names import present_value
from klimb.errors import ConfigError

_USUAL_LR = {"lora": 1e-4, "full": 1e-5}
_OF_TUNING = ("num_epochs", "batch_size", "lr", "warmup_share", "max_grad_norm", "micro_batch_size")
_FOREIGN = {"head": (*_OF_TUNING, "lora_rank"), "lora": (), "full": ("lora_rank",)}


@dataclass(frozen=True)
class RewardConfig:
    """How a reward model is learned from feedback."""

    feedback: tuple[str, ...]
    """Feedback: files in any format of docs/feedback-formats.md, stores of klimb label, or postgresql:// URLs."""

    base: str
    """Model that reads the texts: a Hugging Face folder, a GGUF file or a name on the hub."""

    out: Path
    """Folder to write: a model that AutoModelForSequenceClassification opens, and a report."""

    without_raters: tuple[str, ...] = ()
    """Names of raters whose judgements are left out, for example those who answer by position or at random."""

    method: Literal["head", "lora", "full"] = "head"
    """What is trained: head, a linear head on frozen features; lora, a low-rank adapter on every linear layer, and the
    head; full, all weights. lora and full are trained by gradient on pairs."""

    num_layers: int | None = None
    """Number of first layers of the base to use. Default: all."""

    criterion: str | None = None
    """What raters look for, as words for good and bad answers: "cheerful, happy / gloomy, sad". Learning starts from
    the base model's own scores for these words, which saves many judgements. Only with method head and few
    judgements."""

    question: str | None = None
    """Prompt suffix appended to each text before scoring. With --criterion it should be a question that the criterion's
    words can answer. Default: klimb's own question about the text's mood, with few pairs or a criterion. "": none."""

    standardise: bool = True
    """Scale scores to standard deviations between answers to one prompt (between texts, if they have no prompts), so
    that the same beta and lr suit the next reward. Otherwise scores are in nats."""

    max_length: int | None = None
    """Maximum tokens of a prompt with its completion. Default: the longest that the base can read. Longer texts are
    refused."""

    truncate: Literal["left", "right"] | None = None
    """Truncate longer texts on this side, in learning and wherever the reward is used. None: refuse them."""

    min_gap: float = 0.0
    """Smallest difference of two ratings that counts as a preference, in units of the ratings."""

    pairs_per_text: int = 20
    """Number of other texts with which a rated text without a prompt is paired."""

    held_out: float | None = None
    """Share of the prompts (of the texts, if they have none) that is held out for testing. Default: 0.2; with method
    head and at most 500 pairs, klimb learns from all pairs and uses 10-fold cross-validation over prompts for the
    test."""

    num_members: int = 1
    """Members of the ensemble, each learned from resampled prompts. 1: no ensemble. Only with method head."""

    num_epochs: int = 1
    """Passes over the pairs, with lora and full; the weights of the best epoch are kept."""

    batch_size: int = 32
    """Pairs per step, with lora and full."""

    lr: float | None = None
    """Learning rate after warm-up, with lora and full. Default: 1e-4 with lora, 1e-5 with full."""

    warmup_share: float = 0.1
    """Share of the steps over which the learning rate rises to lr, with lora and full; then it falls to 0."""

    max_grad_norm: float | None = 1.0
    """Maximum norm of the gradient over all trained weights, with lora and full; a longer gradient is scaled down to
    it. None: no clipping."""

    lora_rank: int = 16
    """LoRA rank, with lora."""

    micro_batch_size: int | None = None
    """Texts per forward pass, with lora and full. Default: all of a step. Lower values use less memory and take up to a
    third more time; results change only by rounding."""

    seed: int = 0
    """Random seed of the split, the pairs, the folds, the ensemble, the order of pairs and the adapter's initial
    values."""

    def __post_init__(self) -> None:
        if self.criterion is not None:
            Criterion.parse(self.criterion)
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ConfigError(f"held_out: expected a share between 0 and 1, got {self.held_out:g}")
        if self.num_members < 1:
            raise ConfigError(f"num_members: expected at least 1, got {self.num_members}")
        if self.pairs_per_text < 1:
            raise ConfigError(f"pairs_per_text: expected at least 1, got {self.pairs_per_text}")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"max_length: expected at least 1, got {self.max_length}")
        if self.truncate not in (None, "left", "right"):
            raise ConfigError(f"truncate: expected left or right, got {self.truncate!r}")
        if self.min_gap < 0:
            raise ConfigError(f"min_gap: expected at least 0, got {self.min_gap:g}")
        if not self.feedback:
            raise ConfigError("feedback: expected at least one file")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed: expected a number from 0 up to below 2^64, got {self.seed}")
        self._check_method()
        self._check_tuning()

    @property
    def used_lr(self) -> float:
        """The learning rate, as given or as is usual with the method; head has none."""
        return _USUAL_LR[self.method] if self.lr is None else self.lr

    def used_question(self, *, is_few: bool) -> str | None:
        """The question, as given; None for klimb's own where the base can be asked one, "" for none."""
        if self.question is not None:
            return self.question
        if self.criterion is not None:
            return QUESTION
        return None if is_few else ""

    def _check_method(self) -> None:
        object.__setattr__(self, "method", present_value("method", self.method))
        if self.method not in _FOREIGN:
            raise ConfigError(f"method: expected head, lora or full, got {self.method!r}")
        if self.criterion is not None and (self.method != "head" or self.held_out is not None):
            raise ConfigError(
                "criterion: only used with method head and without held_out; leave the criterion out, or change these"
            )
        if self.num_members > 1 and self.method != "head":
            raise ConfigError(
                f"num_members: an ensemble needs method head; with method {self.method} expected 1, "
                f"got {self.num_members}"
            )
        for field in fields(self):
            if field.name in _FOREIGN[self.method] and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"{field.name}: not used with method {self.method}; leave it out, or choose another method"
                )

    def _check_tuning(self) -> None:
        for name in ("num_epochs", "batch_size", "lora_rank", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        for name in ("lr", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a finite number above 0, got {value:g}")
        if not 0 <= self.warmup_share <= 1:
            raise ConfigError(f"warmup_share: expected a share from 0 to 1, got {self.warmup_share:g}")
