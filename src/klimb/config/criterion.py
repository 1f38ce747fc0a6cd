"""The option `criterion`: words that describe good and bad answers."""

from dataclasses import dataclass

from klimb.errors import ConfigError

QUESTION = "\n\nAll in all, the mood of this is"
"""What a decoder's head reads at the end of, with few judgements or a criterion, unless another is given."""

_FORM = "words for it and against it, such as 'cheerful, happy / gloomy, sad'"


@dataclass(frozen=True)
class Criterion:
    """Words that describe good texts, and words that describe bad ones.

    Attributes:
        liked: Words that stand for what is liked.
        disliked: Words that stand for the opposite.
    """

    liked: tuple[str, ...]
    disliked: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Criterion":
        """Read `liked, … / disliked, …`.

        Raises:
            ConfigError: The text has another form, or a word on both sides.
        """
        sides = [tuple(word.strip() for word in side.split(",") if word.strip()) for side in text.split("/")]
        if len(sides) != 2 or not all(sides):
            raise ConfigError(f"criterion: expected {_FORM}, got {text!r}")
        if both := sorted(set(sides[0]) & set(sides[1])):
            raise ConfigError(f"criterion: {both[0]!r} is on both sides of the /")
        return cls(*sides)
