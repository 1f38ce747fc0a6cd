"""Feedback from wherever it is: files of many formats, and stores; and its import into a store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from klimb.errors import DataError
from klimb.feedback.formats import Feedback, read_feedback
from klimb.feedback.pairs import compare_ratings
from klimb.text import printable, redact

if TYPE_CHECKING:
    from klimb.feedback.store import Store

_SQLITE = b"SQLite format 3\0"
NEEDED = (
    "a reward is learned from pairs of which one answer is preferred, of two prompts or more: judge some (klimb label; "
    "about sixty are a start)"
)
"""What a reward needs, for messages."""

_SHOWN = 20  # refused rows that are told of one by one


@dataclass(frozen=True)
class ImportReport:
    """What became of the rows of some files.

    Attributes:
        num_rows: Rows that were read.
        num_skipped: Rows in which nobody had said anything.
        num_comparisons: Comparisons that they made; a ranking or ratings make several.
        num_new: Of them, those that the store did not have.
        refused: Place and reason of each that could not be used.
        notes: What the rows have that was not used: columns, and answers that do not count.
    """

    num_rows: int
    num_skipped: int
    num_comparisons: int
    num_new: int
    refused: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a person."""
        lines = [
            f"{self.num_rows:,} rows read, {self.num_skipped:,} without a judgement, {len(self.refused):,} refused",
            f"{self.num_comparisons:,} comparisons, {self.num_new:,} of them new",
        ]
        lines += self.notes
        lines += [printable(f"  refused {place}: {reason}") for place, reason in self.refused[:_SHOWN]]
        if len(self.refused) > _SHOWN:
            lines.append(f"  … and {len(self.refused) - _SHOWN:,} more")
        return lines


def read_sources(sources: Sequence[str | Path]) -> Feedback:
    """Read files and stores of feedback, in the order given.

    Args:
        sources: Files in any format of `read_feedback`, SQLite stores, or URLs of PostgreSQL stores.

    Raises:
        DataError: A file cannot be read, or none of them has a judgement.
        StoreError: A store cannot be opened.
    """
    found = Feedback()
    for source in sources:
        if is_store(source):
            from klimb.feedback.store import Store  # files need no database

            with Store.open(source, must_exist=True) as store:
                part = store.feedback()
        else:
            part = read_feedback(Path(source))
        found.add(part)
    if not found.comparisons and not found.ratings:
        raise DataError(f"{redact(', '.join(map(str, sources)))}: {_why_nothing(found)}; {NEEDED}")
    return found


def import_files(
    store: "Store", files: Iterable[Path], *, min_gap: float = 0.0, pairs_per_text: int = 10, seed: int = 0
) -> ImportReport:
    """Bring files of feedback into a store, all in one go or, where something fails, nothing.

    Args:
        store: Where to.
        files: In any format of `read_feedback`.
        min_gap: Least difference of two mean ratings that counts as a preference.
        pairs_per_text: How many others a rated text without a prompt is paired with.
        seed: Decides which.

    Raises:
        DataError: A file cannot be read, or none of its rows can be used.
        StoreError: The store cannot be written.
    """
    feedback = read_feedback(*files)
    comparisons = [*feedback.comparisons, *compare_ratings(feedback.ratings, min_gap, pairs_per_text, seed)]
    num_new, contradictions = store.add_comparisons(comparisons)
    refused = [*feedback.refused, *contradictions]
    return ImportReport(
        feedback.num_rows, feedback.num_skipped, len(comparisons), num_new, refused, feedback.notes
    )


def _why_nothing(found: Feedback) -> str:
    """What was read, where nothing can be learned from it."""
    if not found.num_rows:
        return "nothing has been judged there yet"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.uncounted.items()) if count)
    return f"{found.num_rows:,} judgements, none of which prefers an answer" + (
        f" ({kinds})" if kinds else ""
    )


def is_store(source: str | Path) -> bool:
    """Whether this is a store rather than a file of rows: a URL, or a SQLite file by its first bytes."""
    if isinstance(source, str) and "://" in source:
        return True
    path = Path(source)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_SQLITE)) == _SQLITE
