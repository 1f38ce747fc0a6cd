"""The result of reward learning."""

from dataclasses import dataclass, field
from pathlib import Path

from klimb.feedback.rater_report import RaterReport
from klimb.reward.learn.evaluation import Evaluation
from klimb.reward.learn.tuning import Tuning
from klimb.reward.learn.verdict import verdict


@dataclass(frozen=True)
class RewardResult:
    """A learned reward.

    Attributes:
        folder: Where it is.
        report: Its page.
        held_out: What it is worth on prompts it did not learn from.
        train: The same on those it did.
        curve: Prompts learned from, and held-out accuracy with its interval; with method head only.
        ridge: The ridge that was chosen for the linear head.
        tie: ν, how readily people call a tie.
        has_prompts: Whether texts answer prompts; where they stand alone, the split is by text.
        facts: What was read and done, for people.
        tuning: How weights were moved, with methods lora and full.
        before: What the linear head that they started with is worth on prompts held out.
        unit: What scores were divided by, so that they count standard deviations; 1 where they were not.
        is_crossed: Whether all pairs were learned from, and each part tested on what the others teach.
        has_criterion: Whether learning started from words for what people look for.
        raters: What each rater's answers say about the rater.
    """

    folder: Path
    report: Path
    held_out: Evaluation
    train: Evaluation
    curve: list[tuple[int, float, float, float]]
    ridge: float
    tie: float
    has_prompts: bool
    facts: dict[str, str]
    tuning: Tuning | None = None
    before: Evaluation | None = None
    unit: float = 1.0
    is_crossed: bool = False
    has_criterion: bool = False
    raters: RaterReport = field(default_factory=RaterReport)

    @property
    def verdict(self) -> str:
        """Whether it beats chance, in a sentence."""
        return verdict(self.held_out, is_crossed=self.is_crossed, has_criterion=self.has_criterion)
