"""The result of reading feedback files: what was read and what was refused."""

from collections import Counter
from dataclasses import dataclass, field

from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.records import PairRecord
from klimb.io.show import printable


@dataclass
class Feedback:
    """What was read from files of feedback.

    Attributes:
        comparisons: Judgements of pairs.
        ratings: Numbers given to single texts.
        pairs: Pairs for a store: klimb's own, and those that nobody has judged.
        num_rows: Rows that were read.
        num_skipped: Rows in which nobody had said anything yet, or nothing that helps.
        num_ranked: Rows of completions that were read as a ranking for their order alone.
        refused: Place and reason of each row that could not be used.
        unread: Columns with values that no reader knows, and in how many rows.
        uncounted: Judgements that do not count, such as cancelled annotations, and how often.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    ratings: list[Rating] = field(default_factory=list)
    pairs: list[PairRecord] = field(default_factory=list)
    num_rows: int = 0
    num_skipped: int = 0
    num_ranked: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    uncounted: Counter[str] = field(default_factory=Counter)

    @property
    def summary(self) -> str:
        """What was read, in a line."""
        kept = [f"{len(self.comparisons):,} comparisons"] if self.comparisons or not self.ratings else []
        kept += [f"{len(self.ratings):,} ratings"] if self.ratings else []
        said = f"{self.num_rows:,} rows read: {' and '.join(kept)}"
        said += f", {self.num_skipped:,} without a judgement" if self.num_skipped else ""
        return "; ".join([said + f", {len(self.refused):,} refused", *self.notes])

    @property
    def notes(self) -> list[str]:
        """What the rows have that was not used, a line for each kind."""
        uncounted = ", ".join(f"{count:,} {what}" for what, count in sorted(self.uncounted.items()) if count)
        unread = ", ".join(f"{name} ({count:,})" for name, count in sorted(self.unread.items()))
        lines = [f"not counted: {uncounted}"] if uncounted else []
        lines += [f"columns not used, with the rows that have them: {unread}"] if unread else []
        return [printable(line) for line in lines]

    def add(self, other: "Feedback") -> None:
        """Put what was read elsewhere behind this."""
        self.comparisons += other.comparisons
        self.ratings += other.ratings
        self.pairs += other.pairs
        self.num_rows += other.num_rows
        self.num_skipped += other.num_skipped
        self.num_ranked += other.num_ranked
        self.refused += other.refused
        self.unread += other.unread
        self.uncounted += other.uncounted
