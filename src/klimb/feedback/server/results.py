"""The owner's page: judgements, by rater, how far raters agree, and whose completions won."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from klimb.core.binomial import exact_interval
from klimb.feedback.annotation_tools import plain_prompt
from klimb.feedback.console import wins_by_model
from klimb.feedback.export import FORMS
from klimb.feedback.raters import account_for, opinions_of
from klimb.feedback.records import Choice, Judgement
from klimb.feedback.server.pages import fill_page
from klimb.feedback.store.store import Store

_PER_PAGE = 50
_SAYS: dict[Choice, str] = {"tie": "tie", "both_bad": "both bad", "skip": "skipped"}


@dataclass(frozen=True)
class Score:
    """How one model's completions did against those of other models.

    Attributes:
        model: Its name; "" where that is not known.
        num_won: Judgements that preferred it.
        num_lost: That preferred the other.
        num_tied: A tie, or both bad.
    """

    model: str
    num_won: int
    num_lost: int
    num_tied: int

    @property
    def share(self) -> float:
        """Share of judgements won, where a tie is half of one."""
        return (self.num_won + self.num_tied / 2) / (self.num_won + self.num_lost + self.num_tied)


@dataclass(frozen=True)
class LeftShare:
    """How often answer 1, on the left, was preferred. Sides are random, so half is expected, whichever is better.

    Attributes:
        num_left: Judgements that preferred it.
        num_decided: That preferred one of the two.
    """

    num_left: int
    num_decided: int

    @property
    def share(self) -> float:
        """Share of those judgements; of none, one half."""
        return self.num_left / self.num_decided if self.num_decided else 0.5

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share; of none, everything."""
        return exact_interval(self.num_left, self.num_decided) if self.num_decided else (0.0, 1.0)

    @property
    def is_by_place(self) -> bool:
        """Whether people choose by place: whether the interval excludes one half."""
        low, high = self.interval
        return low > 0.5 or high < 0.5


@dataclass(frozen=True)
class Said:
    """A judgement as a row of the page.

    Attributes:
        number: The store's number of it.
        judged_at: When, UTC.
        rater: Who.
        prompt: The prompt as text.
        sides: Of each completion: text, model, whether it was preferred, whether it was shown left.
        neither: The judgement, where it is neither of the two.
        seconds: How long it took.
        note: What the rater added.
    """

    number: int
    judged_at: str
    rater: str
    prompt: str
    sides: list[tuple[str, str, bool, bool]]
    neither: str
    seconds: float | None
    note: str


def show_results(store: Store, per_pair: int, page: int) -> str:
    """Fill in the page.

    Args:
        store: Where the judgements are.
        per_pair: Judgements that are wanted of a pair.
        page: Which part of the judgements is shown, from 1, newest first; one that is too large shows the last.
    """
    judgements = store.judgements()
    num_pages = max(1, -(-len(judgements) // _PER_PAGE))
    page = min(page, num_pages)
    newest = judgements[::-1][(page - 1) * _PER_PAGE : page * _PER_PAGE]
    return fill_page(
        "results.html.jinja",
        where=store.where,
        per_pair=per_pair,
        progress=store.progress("", per_pair=per_pair),
        num_judgements=len(judgements),
        raters=account_for(opinions_of(judgements)),
        agreement=store.agreement(),
        scores=[
            Score(model, counts["won"], counts["lost"], counts["tied"])
            for model, counts in wins_by_model(judgements).items()
        ],
        left=_count_left(judgements),
        said=[_as_row(judgement) for judgement in newest],
        page=page,
        num_pages=num_pages,
        exports=FORMS,
    )


def _count_left(judgements: Iterable[Judgement]) -> LeftShare:
    decided = [
        said.preferred == said.shown_left
        for said in judgements
        if said.shown_left and said.preferred in ("first", "second")
    ]
    return LeftShare(sum(decided), len(decided))


def _as_row(said: Judgement) -> Said:
    sides = [
        (side.text, str(side.source.get("model", "")), said.preferred == name, said.shown_left == name)
        for name, side in (("first", said.first), ("second", said.second))
    ]
    return Said(
        number=said.id,
        judged_at=datetime.fromtimestamp(said.judged_at, UTC).strftime("%Y-%m-%d %H:%M"),
        rater=said.rater,
        prompt=plain_prompt(said.prompt),
        sides=sides,
        neither=_SAYS.get(said.preferred, ""),
        seconds=said.seconds,
        note=said.note,
    )
