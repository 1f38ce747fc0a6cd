"""Feedback from files of many formats and from stores, and its import into a store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from klimb.errors import DataError
from klimb.feedback.formats import Feedback, read_feedback
from klimb.feedback.pairs import compare_ratings
from klimb.feedback.records import Added
from klimb.io.show import printable, redact

if TYPE_CHECKING:
    from klimb.feedback.store.store import Store

_SQLITE = b"SQLite format 3\0"
NEEDED = (
    "a reward is learned from pairs with a preferred answer, from two prompts or more: judge some (klimb label; "
    "about sixty are a start)"
)
"""What a reward needs, for messages."""

_SHOWN = 20  # refused rows that are told of one by one


@dataclass(frozen=True)
class ImportReport:
    """What became of the rows of some files.

    Attributes:
        feedback: What was read.
        num_comparisons: Comparisons that it makes; a ranking or ratings make several.
        added: What the store did not have.
        where: The store.
    """

    feedback: Feedback
    num_comparisons: int
    added: Added
    where: str = "feedback.db"

    @property
    def num_new(self) -> int:
        """Comparisons and judgements that the store did not have."""
        return self.added.num_comparisons + self.added.num_judgements

    @property
    def refused(self) -> list[tuple[str, str]]:
        """Place and reason of each that could not be used."""
        return [*self.feedback.refused, *self.added.refused]

    def lines(self) -> list[str]:
        """For a person."""
        read, added, refused = self.feedback, self.added, self.refused
        lines = [
            f"{read.num_rows:,} rows read, {read.num_skipped:,} without a judgement, {len(refused):,} refused"
        ]
        if self.num_comparisons or not read.pairs:
            lines.append(f"{self.num_comparisons:,} comparisons, {added.num_comparisons:,} of them new")
        if read.pairs:
            lines += self._lines_of_pairs()
        if not any((self.num_new, added.num_pairs, added.num_withdrawn)):
            lines.append("nothing was added: the store has all of it already")
        if read.num_ranked:
            lines.append(
                f"{read.num_ranked:,} rows were read as rankings, best first; if their order means nothing, "
                "import them with --unjudged"
            )
        lines += read.notes
        lines += [printable(f"  refused {place}: {reason}") for place, reason in refused[:_SHOWN]]
        if len(refused) > _SHOWN:
            lines.append(f"  … and {len(refused) - _SHOWN:,} more")
        return lines

    def _lines_of_pairs(self) -> list[str]:
        records, added = self.feedback.pairs, self.added
        num_judgements = sum(len(record.judgements) for record in records)
        lines = [f"{len(records):,} pairs, {added.num_pairs:,} of them new"] if num_judgements == 0 else []
        if num_judgements:
            taken_back = f", {added.num_withdrawn:,} taken back since" if added.num_withdrawn else ""
            lines.append(
                f"klimb's own: {num_judgements:,} judgements, {added.num_judgements:,} of them new{taken_back}; "
                f"{added.num_pairs:,} new pairs"
            )
        num_unjudged = sum(not record.judgements for record in records)
        if num_unjudged:
            lines.append(
                f"{num_unjudged:,} pairs have no judgement here: klimb label --store {self.where} asks about them"
            )
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
            from klimb.feedback.store.store import Store  # files need no database

            with Store.open(source, must_exist=True) as store:
                part = store.feedback()
        else:
            part = read_feedback(Path(source))
        found.add(part)
    if not found.comparisons and not found.ratings:
        raise DataError(f"{redact(', '.join(map(str, sources)))}: {_why_nothing(found)}; {NEEDED}")
    return found


def import_files(
    store: "Store",
    files: Iterable[Path],
    *,
    min_gap: float = 0.0,
    pairs_per_text: int = 20,
    seed: int = 0,
    unjudged: bool = False,
) -> ImportReport:
    """Bring files of feedback into a store, all in one go or, where something fails, nothing.

    Args:
        store: Where to.
        files: In any format of `read_feedback`.
        min_gap: Least difference of two mean ratings that counts as a preference.
        pairs_per_text: How many others a rated text without a prompt is paired with.
        seed: Decides which.
        unjudged: Whether the files hold completions that nobody has judged, every two of a row a pair to ask about.

    Raises:
        DataError: A file cannot be read, or none of its rows can be used.
        StoreError: The store cannot be written.
    """
    feedback = read_feedback(*files, keep_pairs=True, unjudged=unjudged)
    comparisons = [*feedback.comparisons, *compare_ratings(feedback.ratings, min_gap, pairs_per_text, seed)]
    added = store.add_feedback(comparisons, feedback.pairs)
    return ImportReport(feedback, len(comparisons), added, store.where)


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
