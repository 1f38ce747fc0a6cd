"""The result of a comparison: the two sides, each judge's verdicts, and examples."""

from dataclasses import dataclass, field
from pathlib import Path

from klimb.feedback.rater_report import RaterReport
from klimb.pairwise.tally import Tally


@dataclass(frozen=True)
class Side:
    """One of the two models, and what its completions are like.

    Attributes:
        name: What a reader knows it by.
        model: As it was named.
        mean_tokens: Tokens of a completion.
        mean_characters: Characters of one.
        num_empty: Completions without any text.
    """

    name: str
    model: str
    mean_tokens: float
    mean_characters: float
    num_empty: int


@dataclass(frozen=True)
class Example:
    """A comparison, for a reader.

    Attributes:
        prompt: What both answer.
        a: A's completion.
        b: B's.
        said: What each judge said: A, B, tie, or nothing.
    """

    prompt: str
    a: str
    b: str
    said: dict[str, str]


@dataclass(frozen=True)
class ComparisonResult:
    """Which of two models is better, as far as the judges can tell.

    Attributes:
        a: One model.
        b: The other.
        num_prompts: B.
        num_same: Comparisons in which both said the same.
        tallies: What each judge said, in the order in which the judges were named.
        examples: The first comparison of each prompt, some prompts alone where they are many.
        page: The report.
        data: The numbers.
        raters: What each rater's answers say about the rater, where people judged.
    """

    a: Side
    b: Side
    num_prompts: int
    num_same: int
    tallies: list[Tally]
    examples: list[Example]
    page: Path
    data: Path
    raters: RaterReport = field(default_factory=RaterReport)

    @property
    def win_rate(self) -> float:
        """Share of the comparisons that A wins, ties counted half, by the judge that was named first."""
        return self.tallies[0].win_rate

    @property
    def verdicts(self) -> list[str]:
        """What each judge's opinions mean, in words."""
        return [judged.verdict(self.a.name, self.b.name) for judged in self.tallies]
