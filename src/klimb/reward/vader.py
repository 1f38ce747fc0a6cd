"""The built-in reward `vader`: sentiment of a text by VADER's lexicon of rated words."""

from functools import cache
from typing import Any

from klimb.io.show import Text, content_of


def vader(completions: list[Text], **_: Any) -> list[float]:
    """Score the sentiment of completions.

    The compound score: the summed valences of a text's words, adjusted for negation, emphasis
    and contrast, squashed to (−1, 1) by s / √(s² + 15).

    Args:
        completions: Texts, or lists of messages whose contents are taken, (N,).

    Returns:
        Scores from −1, most negative, to 1, most positive, (N,).

    Reference:
        Hutto & Gilbert (2014), "VADER: a parsimonious rule-based model for sentiment analysis
        of social media text".
    """
    analyser = _analyser()
    return [analyser.polarity_scores(_content(completion))["compound"] for completion in completions]


@cache
def _analyser() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _content(completion: Text) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(content_of(message) for message in completion)
