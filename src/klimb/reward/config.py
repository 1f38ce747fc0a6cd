"""The options of learning a reward, checked before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path

from klimb.errors import ConfigError


@dataclass(frozen=True)
class RewardConfig:
    """How a reward model is learned from feedback."""

    feedback: tuple[Path, ...]
    """Files of feedback: .jsonl, .csv, .parquet or .json, in any of the formats of docs/feedback.md."""

    base: str
    """The model that reads the texts: a Hugging Face folder, a GGUF file or a hub name."""

    out: Path
    """The folder to write: a model that AutoModelForSequenceClassification opens, and a report."""

    num_layers: int | None = None
    """Keep the first so many decoder layers of the base; all by default."""

    question: str = ""
    """Text that is appended to whatever is read; a decoder's head sees its last token."""

    min_gap: float = 0.0
    """Least difference of two ratings that counts as a preference, in the ratings' unit."""

    pairs_per_text: int = 20
    """How many others a rated text without a prompt is paired with."""

    held_out: float = 0.2
    """Share of the prompts (of the texts, where they have none) that the model is tested on."""

    num_members: int = 1
    """Members of an ensemble, each learned from prompts drawn anew; 1 for none."""

    seed: int = 0
    """Decides the split, the pairs, the folds and the ensemble."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out: expected a share between 0 and 1, got {self.held_out:g}")
        if self.num_members < 1:
            raise ConfigError(f"num_members: expected at least 1, got {self.num_members}")
        if self.pairs_per_text < 1:
            raise ConfigError(f"pairs_per_text: expected at least 1, got {self.pairs_per_text}")
        if self.min_gap < 0:
            raise ConfigError(f"min_gap: expected at least 0, got {self.min_gap:g}")
        if not self.feedback:
            raise ConfigError("feedback: expected at least one file")
