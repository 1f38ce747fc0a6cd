"""The options of labelling and comparing, checked before anything is loaded."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from klimb.config.criterion import Criterion
from klimb.config.decoding import DecodingOptions
from klimb.config.serving import ServeOptions
from klimb.errors import ConfigError
from klimb.io.show import redacted

PEOPLE = "people"
"""The judge that is not a reward."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(DecodingOptions):
    """How completions are sampled, and how the comparison page shows them."""

    prompt_column: str = "prompt"
    """Column of the prompts, plain text or chat messages."""

    max_new_tokens: int = 64
    """Maximum number of tokens of a completion, its end token included."""

    skip_special_tokens: Literal["chat", "all"] = "chat"
    """Special tokens that are removed from the texts of completions. chat: end, begin and padding tokens and chat-turn
    markers are removed; others, such as <think>, stay. all: every special token is removed, as in TRL."""

    temperature: float = 1.0
    """Sampling temperature. 1: the model's own distribution."""

    seed: int = 0
    """Random seed."""

    device: str | None = None
    """Where a model runs, such as cpu or cuda:1. Default: the first GPU if there is one, else the CPU."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models whose makers you trust."""

    host: str = "127.0.0.1"
    """Address that serves the page. 127.0.0.1 can be reached only from this computer."""

    port: int = 8321
    """Port that serves the page."""

    rater: str | None = None
    """Rater's name, if only one person judges, on this machine. Default: the page asks for a name."""

    per_pair: int = 1
    """Number of different people who judge each pair."""

    guidelines: Path | None = None
    """Markdown file that says what raters should look for; shown at the start, and again with the key g."""

    rater_token: str | None = None
    """Token at the end of the raters' link, at least 16 letters and digits; set it if links should stay valid after a
    restart. Default: a new token, if one is needed. The environment variable KLIMB_RATER_TOKEN does the same, hidden
    from other users of this machine."""

    browser: bool = True
    """Open the page in a browser."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"temperature: expected a finite number above 0, got {self.temperature}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed: expected a number from 0 up to below 2^64, got {self.seed}")
        self.check_decoding(self.max_new_tokens)
        self.serve_options()
        self.read_guidelines()

    def serve_options(self) -> ServeOptions:
        """How the page is served.

        Raises:
            ConfigError: One of them makes no sense.
        """
        return ServeOptions(
            host=self.host,
            port=self.port,
            rater=self.rater,
            per_pair=self.per_pair,
            rater_token=self.rater_token,
        ).with_environment()

    def read_guidelines(self) -> str:
        """The guidelines for raters, in Markdown; "" if there are none.

        Raises:
            ConfigError: The file cannot be read.
        """
        if self.guidelines is None:
            return ""
        try:
            return self.guidelines.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"guidelines: {self.guidelines}: {reason}") from error


@dataclass(frozen=True, kw_only=True)
class LabelConfig(JudgeConfig):
    """Which pairs people are asked about."""

    model: tuple[str, ...] = ()
    """One model, whose completions of a prompt are compared with each other, or two models, whose completions are
    compared across models: a Hugging Face folder, a .gguf file, a name on the hub, or the folder of a run. Default:
    nothing is sampled, and raters see the pairs that are in the store."""

    prompts: Path | None = None
    """Prompts to sample completions of: a .jsonl, .csv or .parquet file, or a folder."""

    store: str | None = None
    """Store for pairs and judgements: a SQLite file or a postgresql:// URL. Default: feedback.db, in the first model's
    folder if that is a run, else in the current folder."""

    num_pairs_per_prompt: int = 1
    """Pairs sampled for each prompt."""

    criterion: str | None = None
    """What raters look for, as words for good and bad answers, as in `klimb reward train --criterion`: shown on the
    page, and the starting point of the reward that is learned during labelling."""

    learn_along: bool = True
    """Learn a reward during labelling, and show its accuracy on the page. The first model reads the texts, so this
    needs --model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.model) > 2:
            raise ConfigError(f"model: expected one model or two, got {len(self.model)}")
        if self.model and self.prompts is None:
            raise ConfigError("prompts: expected a file of prompts that the models are to answer")
        if self.prompts is not None and not self.model:
            raise ConfigError(
                "model: expected one or two models to answer the prompts; or leave --prompts out"
            )
        if self.criterion is not None:
            Criterion.parse(self.criterion)
        if self.num_pairs_per_prompt < 1:
            raise ConfigError(f"num_pairs_per_prompt: expected at least 1, got {self.num_pairs_per_prompt}")

    def read_guidelines(self) -> str:
        """The guidelines, followed by the words of the criterion."""
        written = super().read_guidelines()
        if self.criterion is None:
            return written
        words = Criterion.parse(self.criterion)
        return f"Better: {', '.join(words.liked)}. Worse: {', '.join(words.disliked)}.\n\n{written}".rstrip()


@dataclass(frozen=True, kw_only=True)
class CompareConfig(JudgeConfig):
    """Which models are compared, on what, and by whom."""

    model_a: str
    """One model: a Hugging Face folder, a .gguf file, a name on the hub, or the folder of a run."""

    model_b: str
    """The other model, in the same forms."""

    prompts: Path
    """Prompts that both models answer: a .jsonl, .csv or .parquet file, or a folder."""

    by: tuple[str, ...] = (PEOPLE,)
    """Who judges: people, on a page in the browser, or rewards, given in the same form as in `klimb train --reward`.
    Several judge independently."""

    completions_per_prompt: int = 4
    """Completions of each model for each prompt. The first of A is compared with the first of B, and so on."""

    tie_margin: float = 0.0
    """Largest difference of two rewards that counts as a tie, in units of the reward."""

    store: str | None = None
    """Store for people's judgements: a SQLite file or a postgresql:// URL. Default: a .db file beside --out."""

    out: Path = Path("compare.html")
    """HTML page to write; a .json file with the numbers is written beside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.completions_per_prompt < 1:
            raise ConfigError(
                f"completions_per_prompt: expected at least 1, got {self.completions_per_prompt}"
            )
        if not (math.isfinite(self.tie_margin) and self.tie_margin >= 0):
            raise ConfigError(f"tie_margin: expected a finite number of at least 0, got {self.tie_margin}")
        if not self.by:
            raise ConfigError(f"by: expected {PEOPLE}, or a reward, or several")
        if len(set(self.by)) < len(self.by):
            raise ConfigError(f"by: each judge may be named once, got {', '.join(self.by)}")
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"out: expected a name that ends in .html, got {self.out}")

    @property
    def rewards(self) -> tuple[str, ...]:
        """The judges that are rewards."""
        return tuple(judge for judge in self.by if judge != PEOPLE)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types, without the secrets of URLs and links."""
        options = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
            if name != "rater_token"
        }
        return redacted(options)
