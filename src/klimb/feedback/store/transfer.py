"""What a store holds as records, and records and comparisons from elsewhere brought into a store.

Each works within a connection's transaction. What is brought in twice counts once: a judgement is known by its key.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from klimb.feedback.comparison import Comparison, Preferred
from klimb.feedback.records import (
    Added,
    Answer,
    Candidate,
    Choice,
    JudgementRecord,
    PairRecord,
    Side,
)
from klimb.feedback.store.queries import (
    STANDS,
    completion_ids,
    count_opinion,
    count_rows,
    digest_of,
    forget_assignment,
    insert_judgement,
    judgement_of_key,
    pair_ids,
    said_before,
    select_questions,
)
from klimb.feedback.store.schema import assignments, judgements, pairs

_SWAPPED: dict[str, Any] = {"first": "second", "second": "first"}


def read_records(connection: Connection) -> list[PairRecord]:
    """All pairs of a store, the oldest first, each with all its judgements."""
    said: dict[int, list[JudgementRecord]] = defaultdict(list)
    for row in connection.execute(select(judgements).order_by(judgements.c.id)):
        said[row.pair_id].append(
            JudgementRecord(
                rater=row.rater,
                preferred=row.preferred,
                key=row.key,
                shown_left=row.shown_left,
                seconds=row.seconds,
                note=row.note,
                judged_at=row.judged_at,
                withdrawn_at=row.withdrawn_at,
                number=row.id,
            )
        )
    assigned: dict[int, list[tuple[str, float]]] = defaultdict(list)
    order = assignments.c.pair_id, assignments.c.rater
    for row in connection.execute(select(assignments).order_by(*order)):
        assigned[row.pair_id].append((row.rater, row.assigned_at))
    columns = pairs.c.first_id, pairs.c.second_id, pairs.c.priority
    query = select_questions(*columns, completions_too=True).order_by(pairs.c.id)
    return [
        PairRecord(
            prompt=json.loads(row.prompt),
            first=Candidate(json.loads(row.first_text), json.loads(row.first_source)),
            second=Candidate(json.loads(row.second_text), json.loads(row.second_source)),
            judgements=tuple(said[row.pair_id]),
            priority=row.priority,
            assigned=tuple(assigned[row.pair_id]),
            numbers=(row.first_id, row.second_id),
        )
        for row in connection.execute(query)
    ]


def add_records(connection: Connection, records: Sequence[PairRecord]) -> Added:
    """Add pairs of klimb's own and their judgements; into an empty store in their own store's order."""
    num_before = count_rows(connection, select(pairs.c.id))
    numbered = [
        (number, record.prompt, candidate)
        for record in records
        for number, candidate in zip(record.numbers, (record.first, record.second), strict=True)
    ]
    numbered.sort(key=lambda row: row[0])
    completion_ids(connection, [(prompt, candidate) for _, prompt, candidate in numbered])
    known = {row.id for row in connection.execute(select(pairs.c.id))}
    found = pair_ids(connection, [(one.prompt, one.first, one.second) for one in records], keep_order=True)
    for record, (pair_id, _) in zip(records, found, strict=True):
        if pair_id not in known and record.priority:
            connection.execute(update(pairs).where(pairs.c.id == pair_id).values(priority=record.priority))
    num_pairs = count_rows(connection, select(pairs.c.id)) - num_before
    said = [
        (record, pair_id, is_swapped, judgement)
        for record, (pair_id, is_swapped) in zip(records, found, strict=True)
        for judgement in record.judgements
    ]
    num_new, num_withdrawn, refused = 0, 0, []
    for record, pair_id, is_swapped, judgement in sorted(said, key=lambda row: row[-1].number):
        key = _key_of(record, judgement)
        turned = _turned(judgement, is_swapped=is_swapped)
        outcome = _add_judgement(connection, pair_id, turned, key)
        num_new += outcome == "new"
        num_withdrawn += outcome == "withdrawn"
        if outcome == "contradicts":
            refused.append((record.place, _contradicts(judgement.rater)))
    for record, (pair_id, _) in zip(records, found, strict=True):
        _add_assignments(connection, record, pair_id)
    return Added(
        num_pairs=num_pairs, num_judgements=num_new, num_withdrawn=num_withdrawn, refused=tuple(refused)
    )


def add_comparisons(
    connection: Connection, comparisons: Sequence[Comparison]
) -> tuple[int, list[tuple[str, str]]]:
    """Add comparisons that were made elsewhere; how many are new, and what goes against the same rater's word."""
    refused: list[tuple[str, str]] = []
    num_new = 0
    rows = [(item.prompt, Candidate(item.left), Candidate(item.right)) for item in comparisons]
    times: dict[str, int] = defaultdict(int)
    for item, (pair_id, is_swapped) in zip(comparisons, pair_ids(connection, rows), strict=True):
        answer, older_key = _imported(item, pair_id, is_swapped=is_swapped, times=times)
        keys = (answer.key, older_key)
        if any(judgement_of_key(connection, replace(answer, key=key)) is not None for key in keys):
            continue
        if said := said_before(connection, answer):
            if said != answer.preferred:
                refused.append((item.place, _contradicts(item.rater)))
            continue
        insert_judgement(connection, answer)
        num_new += 1
    return num_new, refused


def _contradicts(rater: str) -> str:
    return f"{rater} has said otherwise of these two before"


def _imported(
    item: Comparison, pair_id: int, *, is_swapped: bool, times: dict[str, int]
) -> tuple[Answer, str]:
    """A comparison made elsewhere as an answer, and the key that klimb 0.1 gave it.

    Its key is the same whenever and into whichever store it is imported.
    """
    sides: tuple[Side, Side] = ("second", "first") if is_swapped else ("first", "second")
    choices: dict[Preferred, Choice] = {"left": sides[0], "right": sides[1], "tie": "tie"}
    preferred = choices[item.preferred]
    older = f"{pair_id} {preferred} {item.rater}"
    times[older] += 1  # several unknown raters may say the same
    number = times[older] if not item.rater else 1
    best = {"left": item.left, "right": item.right, "tie": None}[item.preferred]
    said = digest_of(item.prompt, sorted([item.left, item.right]), best, item.rater, number)
    shown: dict[str, Side] = {"left": sides[0], "right": sides[1], "": ""}
    key = f"import:{said[:48]}"
    answer = Answer(pair_id, item.rater, preferred, key, shown[item.shown_left], item.seconds)
    return answer, f"import:{digest_of(older, number)[:48]}"


def _turned(judgement: JudgementRecord, *, is_swapped: bool) -> JudgementRecord:
    """A judgement of a pair whose completions the store may have the other way round."""
    if not is_swapped:
        return judgement
    preferred: Choice = _SWAPPED.get(judgement.preferred, judgement.preferred)
    shown_left: Side = _SWAPPED.get(judgement.shown_left, "")
    return replace(judgement, preferred=preferred, shown_left=shown_left)


def _add_judgement(
    connection: Connection, pair_id: int, judgement: JudgementRecord, own_key: str
) -> Literal["new", "known", "withdrawn", "contradicts"]:
    answer = Answer(
        pair_id,
        judgement.rater,
        judgement.preferred,
        judgement.key or own_key,
        judgement.shown_left,
        judgement.seconds,
        judgement.note,
    )
    known = _judgement_under(connection, answer.key)
    if known is not None and (known.pair_id, known.rater) != (pair_id, judgement.rater):
        # Two stores have given one key to different judgements: this one gets a key of its own.
        answer = replace(answer, key=own_key)
        known = _judgement_under(connection, answer.key)
    if known is not None:
        if judgement.withdrawn_at is None or known.withdrawn_at is not None:
            return "known"
        values = {"withdrawn_at": judgement.withdrawn_at}
        connection.execute(update(judgements).where(judgements.c.id == known.id).values(values))
        count_opinion(connection, pair_id, known.preferred, -1)
        return "withdrawn"
    if judgement.withdrawn_at is None:
        if said := said_before(connection, answer):
            return "known" if said == answer.preferred else "contradicts"
        forget_assignment(connection, pair_id, answer.rater)
    insert_judgement(connection, answer, judged_at=judgement.judged_at, withdrawn_at=judgement.withdrawn_at)
    return "new"


def _judgement_under(connection: Connection, key: str) -> Any:
    return connection.execute(select(judgements).where(judgements.c.key == key)).first()


def _key_of(record: PairRecord, judgement: JudgementRecord) -> str:
    """A key that is the same whenever and into whichever store this is imported, and no other judgement's."""
    texts = sorted([record.first.text, record.second.text])
    best = {"first": record.first.text, "second": record.second.text}.get(judgement.preferred)
    said = digest_of(
        record.prompt,
        texts,
        best,
        judgement.preferred in _SWAPPED,
        judgement.key,
        judgement.rater,
        judgement.judged_at,
    )
    return f"record:{said[:48]}"


def _add_assignments(connection: Connection, record: PairRecord, pair_id: int) -> None:
    """Keep who is being asked, except about what that rater has judged."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    for rater, assigned_at in record.assigned:
        query = select(judgements.c.id).where(
            judgements.c.pair_id == pair_id, judgements.c.rater == rater, STANDS
        )
        if connection.execute(query).first() is None:
            values = {"pair_id": pair_id, "rater": rater, "assigned_at": assigned_at}
            connection.execute(dialect.insert(assignments).values(values).on_conflict_do_nothing())
