"""How completions are drawn, besides temperature and longest length: options of training, labelling and comparing."""

from dataclasses import dataclass, fields
from typing import Any

from klimb.errors import ConfigError
from klimb.io.show import quote


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Truncation of the sampling distribution, stop strings, and the system prompt."""

    top_p: float = 1.0
    """Sample from the smallest set of most likely tokens that together have this probability. 1: all tokens. In
    training, the policy is this truncated distribution: log-probs, ratios and the KL are computed on the tokens that
    were kept."""

    top_k: int | None = None
    """Sample from this many most likely tokens; applied before top_p. Default: all tokens."""

    min_p: float = 0.0
    """Sample from tokens whose probability is at least this share of the most likely token's; applied after top_p. 0:
    all tokens."""

    min_new_tokens: int = 0
    """Minimum number of tokens of a completion: before it, no end token is sampled and no stop string counts."""

    stop: tuple[str, ...] = ()
    """Stop strings, each of which ends a completion. The text that is rewarded or shown ends before the stop string;
    its tokens count. In bash a line break is $'\\n'."""

    system_prompt: str | None = None
    """System message put before prompts that are chat messages; prompts that begin with a system message keep their
    own."""

    @property
    def decoding(self) -> dict[str, Any]:
        """What differs from the defaults and decides which completions a prompt gets, by name, as JSON types."""
        names = [field.name for field in fields(DecodingOptions) if field.name != "system_prompt"]
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) != _DEFAULTS[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}

    def describe_decoding(self) -> str:
        """Say what differs from the defaults, to follow the temperature; "" where nothing does."""
        return "".join(
            f", {name} {' '.join(map(quote, value)) if isinstance(value, list) else format(value, 'g')}"
            for name, value in self.decoding.items()
        )

    def check_decoding(self, max_new_tokens: int) -> None:
        """Raise unless the options make sense, for completions of a longest length.

        Raises:
            ConfigError: One does not; the message names it.
        """
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: expected a number above 0, up to 1, got {self.top_p}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(
                f"top_k: expected at least 1, got {self.top_k}; leave it out to draw from all tokens"
            )
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p: expected a number from 0 to 1, got {self.min_p}")
        if not 0 <= self.min_new_tokens <= max_new_tokens:
            raise ConfigError(
                f"min_new_tokens: expected a number from 0 to max_new_tokens {max_new_tokens}, got "
                f"{self.min_new_tokens}"
            )
        if not all(self.stop):
            raise ConfigError("stop: expected texts of at least one character, got an empty one")
        if self.system_prompt is not None and not self.system_prompt.strip():
            raise ConfigError("system_prompt: expected a text, got an empty one; leave it out for none")


_DEFAULTS = {field.name: field.default for field in fields(DecodingOptions)}
