"""A store of comparisons: pairs that are asked about, and what people said of them.

A judgement is on the disk before it is acknowledged. Nothing is deleted: one that is taken back is marked so.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from klimb.core.agreement import krippendorff_alpha, observed_agreement
from klimb.errors import AlreadyJudgedError, StoreError
from klimb.feedback.comparison import Comparison, Preferred
from klimb.feedback.formats import Feedback
from klimb.feedback.records import (
    Added,
    Agreement,
    Answer,
    Choice,
    Judgement,
    PairRecord,
    Progress,
    Question,
    RaterSummary,
    Side,
)
from klimb.feedback.store.database import Database
from klimb.feedback.store.queries import (
    IS_OPINION,
    STANDS,
    Pair,
    as_judgement,
    as_question,
    count_opinion,
    count_rows,
    digest_of,
    find_question,
    forget_assignment,
    insert_judgement,
    judgement_of_key,
    median_of,
    newest_of,
    note_draw,
    pair_ids,
    select_questions,
)
from klimb.feedback.store.schema import assignments, draws, judgements, pairs
from klimb.feedback.store.transfer import add_comparisons, add_records, read_records

_ASSIGNED_FOR = 900.0  # seconds for which nobody else is asked what one rater is being asked
_LAST = 50  # judgements of a rater that its pace is taken from
_SHOWN: dict[Side, Literal["left", "right", ""]] = {"first": "left", "second": "right", "": ""}
_OPINIONS: tuple[Choice, ...] = ("first", "second", "tie", "both_bad")


class Store:
    """Comparisons in a SQLite file or a PostgreSQL database; may be used by many threads and programs at once.

    Attributes:
        where: The file, or the URL without its password.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.where = database.where

    @classmethod
    def open(cls, where: str | Path, *, must_exist: bool = False) -> "Store":
        """Open a store, and make it, or bring it to this version's form, where needed.

        Args:
            where: A file, or a URL that begins with `postgresql://`.
            must_exist: Whether a missing file is an error.

        Raises:
            StoreError: It cannot be opened, is of a newer klimb, or belongs to another program.
        """
        return cls(Database(where, must_exist=must_exist))

    @property
    def mark(self) -> str:
        """Stands for this store: the same at each start, whatever folder it is opened from; tells no path."""
        url = self._database.engine.url
        is_file = url.drivername == "sqlite"
        return digest_of(str(Path(url.database or "").resolve()) if is_file else url.render_as_string())[:16]

    def close(self) -> None:
        """Close all connections."""
        self._database.engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_pairs(self, new: Iterable[Pair]) -> int:
        """Add pairs to be asked about, all or none; the ones that are there already are left as they are.

        Returns:
            How many are new.

        Raises:
            ArgumentError: The two completions of a pair are the same text.
        """
        rows = list(new)
        with self._database.writing() as connection:
            before = count_rows(connection, select(pairs.c.id))
            pair_ids(connection, rows)
            return count_rows(connection, select(pairs.c.id)) - before

    def add_drawn(self, digest: str, new: Iterable[Pair], num_same: int) -> int:
        """Add pairs as `add_pairs` does, and note in the same moment that this part of a draw is done.

        Args:
            digest: Stands for all that decides which pairs the part has.
            new: Its pairs.
            num_same: How many more were dropped, because both completions were the same text.

        Returns:
            How many pairs are new.
        """
        rows = list(new)
        with self._database.writing() as connection:
            before = count_rows(connection, select(pairs.c.id))
            pair_ids(connection, rows)
            note_draw(connection, digest, len(rows), num_same)
            return count_rows(connection, select(pairs.c.id)) - before

    def drawn(self, digest: str) -> tuple[int, int] | None:
        """Return how many pairs a part of a draw has, and how many were dropped; None where it is not drawn yet."""
        query = select(draws.c.num_pairs, draws.c.num_same).where(draws.c.digest == digest)
        with self._database.reading() as connection:
            found = connection.execute(query).first()
        return None if found is None else (found.num_pairs, found.num_same)

    def set_priorities(self, priorities: Mapping[int, float]) -> None:
        """Say which pairs are asked about first: those of the highest priority, by pair; 0 at first."""
        with self._database.writing() as connection:
            for pair_id, priority in priorities.items():
                connection.execute(update(pairs).where(pairs.c.id == pair_id).values(priority=priority))

    def open_questions(self) -> list[Question]:
        """Pairs that nobody has judged yet, skips apart."""
        with self._database.reading() as connection:
            rows = connection.execute(select_questions().where(pairs.c.num_opinions == 0))
            return [as_question(row) for row in rows]

    def question(self, pair_id: int) -> Question | None:
        """Find a pair by its number."""
        with self._database.reading() as connection:
            return find_question(connection, pair_id)

    def next_question(self, rater: str, *, per_pair: int = 1) -> Question | None:
        """Choose what a rater is asked next: what it was asked already and has not answered, or else a new pair.

        Args:
            rater: Who is asked; nobody is asked about a pair twice.
            per_pair: Judgements that are wanted of a pair; what others are being asked counts as judged.

        Returns:
            The pair; None where nothing is left for this rater.
        """
        now = time.time()
        own = judgements.alias()
        theirs = assignments.alias()
        num_asked = (
            select(func.count())
            .where(
                theirs.c.pair_id == pairs.c.id,
                theirs.c.rater != rater,
                theirs.c.assigned_at > now - _ASSIGNED_FOR,
            )
            .correlate(pairs)
            .scalar_subquery()
        )
        was_asked = (
            select(own.c.id)
            .where(own.c.pair_id == pairs.c.id, own.c.rater == rater, own.c.withdrawn_at.is_(None))
            .exists()
        )
        fresh = (
            select(pairs.c.id)
            .where(pairs.c.num_opinions < per_pair, pairs.c.num_opinions + num_asked < per_pair, ~was_asked)
            .order_by(pairs.c.priority.desc(), pairs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has one writer at a time anyway
        )
        with self._database.writing() as connection:
            asked = select(assignments.c.pair_id).where(assignments.c.rater == rater).limit(1)
            pair_id = connection.scalar(asked)
            if pair_id is None and (pair_id := connection.scalar(fresh)) is not None:
                connection.execute(insert(assignments).values(pair_id=pair_id, rater=rater, assigned_at=now))
            return None if pair_id is None else find_question(connection, pair_id)

    def judge(self, answer: Answer) -> int:
        """Write a judgement; it is on the disk when this returns.

        Returns:
            Its number; that of the first where the key was sent before.

        Raises:
            AlreadyJudgedError: The rater judged this pair before, under another key.
            StoreError: There is no such pair, or it cannot be written.
        """
        try:
            with self._database.writing() as connection:
                if (known := judgement_of_key(connection, answer)) is not None:
                    return known
                if connection.scalar(select(pairs.c.id).where(pairs.c.id == answer.pair_id)) is None:
                    raise StoreError(f"{self.where}: there is no pair {answer.pair_id}")
                forget_assignment(connection, answer.pair_id, answer.rater)
                return insert_judgement(connection, answer)
        except IntegrityError as error:
            with self._database.reading() as connection:  # the same key may have come twice at once
                if (known := judgement_of_key(connection, answer)) is not None:
                    return known
            raise AlreadyJudgedError(
                f"{answer.rater} has judged pair {answer.pair_id} before; undo that judgement to change it"
            ) from error

    def undo(self, rater: str) -> Question | None:
        """Take a rater's newest judgement back, and ask about its pair again.

        Returns:
            The pair; None where there is nothing to take back.
        """
        now = time.time()
        with self._database.writing() as connection:
            found = connection.execute(newest_of(rater)).first()
            if found is None:
                return None
            connection.execute(update(judgements).where(judgements.c.id == found.id).values(withdrawn_at=now))
            count_opinion(connection, found.pair_id, found.preferred, -1)
            connection.execute(delete(assignments).where(assignments.c.rater == rater))
            connection.execute(
                insert(assignments).values(pair_id=found.pair_id, rater=rater, assigned_at=now)
            )
            return find_question(connection, found.pair_id)

    def newest_pair(self, rater: str) -> int | None:
        """Find the pair of the judgement that `undo` would take back; None where there is nothing to take back."""
        with self._database.reading() as connection:
            found = connection.execute(newest_of(rater)).first()
            return None if found is None else found.pair_id

    def ask(self, new: Iterable[Pair]) -> list[tuple[int, bool]]:
        """Add pairs as `add_pairs` does, and return how to ask for what is said of them.

        Returns:
            Of each pair its number, and whether the store has its completions the other way round.
        """
        with self._database.writing() as connection:
            return pair_ids(connection, list(new))

    def choices(self, numbers: Sequence[tuple[int, bool]]) -> list[list[Choice]]:
        """Return pairs with all judgements of each that stand, in their order in time.

        Args:
            numbers: What `ask` returned of them.
        """
        swapped: dict[Choice, Choice] = {"first": "second", "second": "first"}
        query = select(judgements.c.pair_id, judgements.c.preferred).where(
            judgements.c.pair_id.in_([number for number, _ in numbers]), STANDS
        )
        said: dict[int, list[Choice]] = {}
        with self._database.reading() as connection:
            for pair_id, preferred in connection.execute(query.order_by(judgements.c.id)):
                said.setdefault(pair_id, []).append(preferred)
        return [
            [swapped.get(choice, choice) if is_swapped else choice for choice in said.get(number, [])]
            for number, is_swapped in numbers
        ]

    def progress(self, rater: str, *, per_pair: int = 1) -> Progress:
        """Tell how far the judging is."""
        done = select(pairs.c.id).where(pairs.c.num_opinions >= per_pair)
        own = select(judgements.c.seconds).where(judgements.c.rater == rater, STANDS)
        with self._database.reading() as connection:
            last = connection.scalars(own.order_by(judgements.c.id.desc()).limit(_LAST)).all()
            return Progress(
                num_pairs=count_rows(connection, select(pairs.c.id)),
                num_done=count_rows(connection, done),
                num_own=count_rows(connection, own),
                median_seconds=median_of(last),
            )

    def count_judgements(self) -> int:
        """Count the judgements that stand, skips included."""
        with self._database.reading() as connection:
            return count_rows(connection, select(judgements.c.id).where(STANDS))

    def judgements(self) -> list[Judgement]:
        """Return the judgements that stand, oldest first."""
        query = (
            select_questions(judgements, completions_too=True)
            .join(judgements, judgements.c.pair_id == pairs.c.id)
            .where(STANDS)
            .order_by(judgements.c.id)
        )
        with self._database.reading() as connection:
            return [as_judgement(row) for row in connection.execute(query)]

    def raters(self) -> list[RaterSummary]:
        """Return each rater's work, the most judgements first."""
        query = select(judgements.c.rater, judgements.c.preferred, judgements.c.seconds).where(STANDS)
        by_rater: dict[str, list[tuple[str, float | None]]] = {}
        with self._database.reading() as connection:
            for rater, preferred, seconds in connection.execute(query):
                by_rater.setdefault(rater, []).append((preferred, seconds))
        found = [
            RaterSummary(
                rater,
                len(said),
                sum(preferred == "skip" for preferred, _ in said),
                median_of([seconds for _, seconds in said]),
            )
            for rater, said in by_rater.items()
        ]
        return sorted(found, key=lambda summary: (-summary.num_judgements, summary.rater))

    def agreement(self) -> Agreement | None:
        """Measure how much raters agree; None where no pair was judged by two."""
        query = (
            select(judgements.c.pair_id, judgements.c.preferred, func.count())
            .where(IS_OPINION)
            .group_by(judgements.c.pair_id, judgements.c.preferred)
        )
        by_pair: dict[int, list[int]] = {}
        with self._database.reading() as connection:
            for pair_id, preferred, count in connection.execute(query):
                by_pair.setdefault(pair_id, [0] * len(_OPINIONS))[_OPINIONS.index(preferred)] = count
        counts = np.array([row for row in by_pair.values() if sum(row) > 1], dtype=np.float64)
        if len(counts) == 0:
            return None
        return Agreement(len(counts), float(observed_agreement(counts)), float(krippendorff_alpha(counts)))

    def feedback(self) -> Feedback:
        """Return the judgements as comparisons to learn from; skips and pairs of two bad ones say nothing."""
        sides: dict[str, Preferred] = {"first": "left", "second": "right", "tie": "tie"}
        found = Feedback()
        for said in self.judgements():
            found.num_rows += 1
            if said.preferred not in sides:
                found.num_skipped += 1
                found.uncounted["skipped" if said.preferred == "skip" else "both bad"] += 1
                continue
            found.comparisons.append(
                Comparison(
                    said.prompt,
                    said.first.text,
                    said.second.text,
                    sides[said.preferred],
                    said.rater,
                    shown_left=_SHOWN[said.shown_left],
                    seconds=said.seconds,
                )
            )
        return found

    def records(self) -> list[PairRecord]:
        """Return all that the store holds, pair by pair, for `add_feedback` of another store."""
        with self._database.reading() as connection:
            return read_records(connection)

    def add_feedback(self, comparisons: Sequence[Comparison], records: Sequence[PairRecord] = ()) -> Added:
        """Add judgements from elsewhere, in one transaction.

        What the store has already is left as it is. The same comparison twice counts once, except where nobody knows
        whose they are.

        Args:
            comparisons: Judgements from other tools.
            records: Pairs of klimb's own, with their judgements, if any.
        """
        with self._database.writing() as connection:
            added = add_records(connection, records)
            num_new, refused = add_comparisons(connection, comparisons)
        return replace(added, num_comparisons=num_new, refused=(*added.refused, *refused))

    def add_comparisons(self, comparisons: Sequence[Comparison]) -> tuple[int, list[tuple[str, str]]]:
        """Add comparisons as `add_feedback` does.

        Returns:
            How many are new, and place and reason of those that go against what the same rater said before.
        """
        added = self.add_feedback(comparisons)
        return added.num_comparisons, list(added.refused)
