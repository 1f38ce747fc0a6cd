"""The store's queries: rows of its tables from and to records.

Each works within a connection's transaction.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from klimb.errors import AlreadyJudgedError, ArgumentError
from klimb.feedback.records import Answer, Candidate, Judgement, Question, as_json
from klimb.feedback.store.schema import assignments, completions, draws, judgements, pairs, prompts
from klimb.io.show import Text

_AT_ONCE = 400  # digests looked up in one query

Pair = tuple[Text, Candidate, Candidate]
"""A prompt and two completions of it."""

STANDS = judgements.c.withdrawn_at.is_(None)
"""That a judgement was not taken back."""

IS_OPINION = STANDS & (judgements.c.preferred != "skip")
"""That it stands, and says something."""


def said_before(connection: Connection, answer: Answer) -> str | None:
    """What a rater has said of a pair; None of whom nothing is known."""
    if not answer.rater:
        return None
    query = select(judgements.c.preferred).where(
        judgements.c.pair_id == answer.pair_id, judgements.c.rater == answer.rater, STANDS
    )
    return connection.scalar(query)


def insert_judgement(
    connection: Connection,
    answer: Answer,
    *,
    judged_at: float | None = None,
    withdrawn_at: float | None = None,
) -> int:
    """Write a judgement, made now unless it says when, and return its number."""
    values = {
        "pair_id": answer.pair_id,
        "rater": answer.rater,
        "preferred": answer.preferred,
        "shown_left": answer.shown_left,
        "seconds": answer.seconds,
        "note": answer.note.replace("\0", ""),
        "judged_at": time.time() if judged_at is None else judged_at,
        "key": answer.key,
        "withdrawn_at": withdrawn_at,
    }
    number = connection.execute(insert(judgements).values(values).returning(judgements.c.id)).scalar_one()
    if withdrawn_at is None:
        count_opinion(connection, answer.pair_id, answer.preferred, 1)
    return number


def newest_of(rater: str) -> Any:
    """A rater's newest judgement that stands."""
    return (
        select(judgements.c.id, judgements.c.pair_id, judgements.c.preferred)
        .where(judgements.c.rater == rater, STANDS)
        .order_by(judgements.c.id.desc())
        .limit(1)
    )


def count_opinion(connection: Connection, pair_id: int, preferred: str, more: int) -> None:
    """Keep count of a pair's opinions: who is asked what next needs it of every pair at once."""
    if preferred != "skip":
        count = pairs.c.num_opinions + more
        connection.execute(update(pairs).where(pairs.c.id == pair_id).values(num_opinions=count))


def judgement_of_key(connection: Connection, answer: Answer) -> int | None:
    """The judgement that was sent under the same key."""
    query = select(judgements.c.id, judgements.c.pair_id, judgements.c.rater)
    found = connection.execute(query.where(judgements.c.key == answer.key)).first()
    if found is None:
        return None
    if (found.pair_id, found.rater) != (answer.pair_id, answer.rater):
        raise AlreadyJudgedError(f"the key {answer.key!r} belongs to another judgement; choose a new one")
    return found.id


def forget_assignment(connection: Connection, pair_id: int, rater: str) -> None:
    """Take note that a rater is no longer asked about a pair."""
    connection.execute(
        delete(assignments).where(assignments.c.pair_id == pair_id, assignments.c.rater == rater)
    )


def pair_ids(
    connection: Connection, rows: Sequence[Pair], *, keep_order: bool = False
) -> list[tuple[int, bool]]:
    """Number of each pair, made where it is new, and whether its completions stand the other way round.

    Args:
        connection: To the store.
        rows: The pairs.
        keep_order: Whether new pairs are numbered in the order given, rather than in that of their completions.
    """
    for number, (_, first, second) in enumerate(rows, start=1):
        if first.text == second.text:
            raise ArgumentError(f"pair {number}: its two completions are the same text, {first.text[:60]!r}")
    known = completion_ids(
        connection, [(prompt, candidate) for prompt, *candidates in rows for candidate in candidates]
    )
    ends = list(zip(known[::2], known[1::2], strict=True))
    ordered = [(min(pair), max(pair)) for pair in ends]
    unique = list(dict.fromkeys(ordered))
    numbers = _number_pairs(connection, unique if keep_order else sorted(unique))
    return [(numbers[pair], pair != end) for pair, end in zip(ordered, ends, strict=True)]


def completion_ids(connection: Connection, rows: Sequence[tuple[Text, Candidate]]) -> list[int]:
    """Number of each completion of a prompt, made in this order where it is new."""
    prompt_digests = [digest_of(prompt) for prompt, _ in rows]
    known_prompts = _ids_of(
        connection,
        prompts,
        {digest: {"text": as_json(row[0])} for digest, row in zip(prompt_digests, rows, strict=True)},
    )
    new: dict[str, dict[str, Any]] = {}
    digests: list[str] = []
    for prompt_digest, (_, candidate) in zip(prompt_digests, rows, strict=True):
        digests.append(digest_of(prompt_digest, candidate.text, candidate.source))
        new[digests[-1]] = {
            "prompt_id": known_prompts[prompt_digest],
            "text": as_json(candidate.text),
            "source": as_json(candidate.source),
        }
    known = _ids_of(connection, completions, new)
    return [known[digest] for digest in digests]


def _number_pairs(connection: Connection, ends: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    if not ends:
        return {}
    rows = [
        {"first_id": first, "second_id": second, "priority": 0.0, "num_opinions": 0} for first, second in ends
    ]
    connection.execute(_insert_new(connection, pairs), rows)
    found: dict[tuple[int, int], int] = {}
    for start in range(0, len(ends), _AT_ONCE):
        firsts = [first for first, _ in ends[start : start + _AT_ONCE]]
        query = select(pairs.c.first_id, pairs.c.second_id, pairs.c.id).where(pairs.c.first_id.in_(firsts))
        found |= {(first, second): number for first, second, number in connection.execute(query)}
    return found


def _ids_of(connection: Connection, table: Any, rows: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Number of each row by its digest, made where it is new."""
    if not rows:
        return {}
    connection.execute(
        _insert_new(connection, table), [{"digest": digest} | values for digest, values in rows.items()]
    )
    digests, found = list(rows), {}
    for start in range(0, len(digests), _AT_ONCE):
        some = digests[start : start + _AT_ONCE]
        query = select(table.c.digest, table.c.id).where(table.c.digest.in_(some))
        found |= {row.digest: row.id for row in connection.execute(query)}
    return found


def _insert_new(connection: Connection, table: Any) -> Any:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing()


def note_draw(connection: Connection, digest: str, num_pairs: int, num_same: int) -> None:
    """Take note that a part of a draw is done; once is enough."""
    row = {"digest": digest, "num_pairs": num_pairs, "num_same": num_same}
    connection.execute(_insert_new(connection, draws), [row])


def select_questions(*more: Any, completions_too: bool = False) -> Any:
    """Pairs with their prompts and completions, and more columns."""
    first, second = completions.alias("first"), completions.alias("second")
    columns = [pairs.c.id.label("pair_id"), prompts.c.text.label("prompt")]
    columns += [first.c.text.label("first_text"), second.c.text.label("second_text")]
    if completions_too:
        columns += [first.c.source.label("first_source"), second.c.source.label("second_source")]
    return (
        select(*columns, *more)
        .select_from(pairs)
        .join(first, first.c.id == pairs.c.first_id)
        .join(second, second.c.id == pairs.c.second_id)
        .join(prompts, prompts.c.id == first.c.prompt_id)
    )


def find_question(connection: Connection, pair_id: int) -> Question | None:
    """A pair by its number."""
    row = connection.execute(select_questions().where(pairs.c.id == pair_id)).first()
    return None if row is None else as_question(row)


def as_question(row: Any) -> Question:
    """A row of `select_questions`."""
    return Question(
        row.pair_id, json.loads(row.prompt), json.loads(row.first_text), json.loads(row.second_text)
    )


def as_judgement(row: Any) -> Judgement:
    """A row of `select_questions` with a judgement."""
    return Judgement(
        id=row.id,
        pair_id=row.pair_id,
        prompt=json.loads(row.prompt),
        first=Candidate(json.loads(row.first_text), json.loads(row.first_source)),
        second=Candidate(json.loads(row.second_text), json.loads(row.second_source)),
        preferred=row.preferred,
        rater=row.rater,
        shown_left=row.shown_left,
        seconds=row.seconds,
        note=row.note,
        judged_at=row.judged_at,
        key=row.key,
    )


def count_rows(connection: Connection, query: Any) -> int:
    """How many rows a query has."""
    return connection.scalar(select(func.count()).select_from(query.subquery())) or 0


def median_of(values: Sequence[float | None]) -> float | None:
    """Median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def digest_of(*parts: Any) -> str:
    """What stands for some values."""
    return hashlib.sha256(as_json(parts).encode()).hexdigest()
