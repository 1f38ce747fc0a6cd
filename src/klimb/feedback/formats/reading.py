"""Files of feedback, each row in whichever format its columns show.

What cannot be read is refused with its place and reason, and the rest is kept.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from klimb.data.rows import Row, read_rows
from klimb.errors import DataError
from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.formats import argilla, hub, label_studio, own, trl
from klimb.feedback.formats.choices import find_candidates
from klimb.feedback.formats.feedback import Feedback
from klimb.feedback.formats.fields import Fields, RefusedError, is_empty
from klimb.feedback.formats.openassistant import is_message, is_tree, read_tree
from klimb.feedback.formats.texts import PROMPTS, RATERS, SYSTEMS
from klimb.feedback.formats.unjudged import read_two, read_unjudged
from klimb.feedback.records import PairRecord
from klimb.io.show import cut, quote

Reader = Callable[[Fields], list[Any]]


def read_feedback(*files: Path, keep_pairs: bool = False, unjudged: bool = False) -> Feedback:
    """Read files of feedback, each row in whichever format it has.

    Args:
        files: Of any kind that `klimb.data.rows.read_rows` reads.
        keep_pairs: Whether rows of klimb's own, and rows that nobody has judged, are kept as pairs for a store; what
            stands of them are comparisons otherwise.
        unjudged: Whether the rows are known to hold completions that nobody has judged.

    Raises:
        DataError: A file is missing or as a whole not readable, or no row of them could be used; the
            message has the first reasons.
    """
    feedback = Feedback()
    for file in files:
        for row in read_rows(Path(file), names_of_classes=True):
            feedback.num_rows += 1
            take_row(row, feedback, keep_pairs=keep_pairs, unjudged=unjudged)
    if not feedback.comparisons and not feedback.ratings and not feedback.pairs:
        reasons = "; ".join(f"{place}: {reason}" for place, reason in feedback.refused[:3])
        names = ", ".join(map(str, files))
        raise DataError(
            f"{names}: no judgement could be read: {feedback.summary}; {reasons or 'nothing in it'}"
        )
    return feedback


def take_row(row: Row, feedback: Feedback, *, keep_pairs: bool = False, unjudged: bool = False) -> None:
    """Put what a row says into feedback, as `read_feedback` does, or why it cannot be used."""
    fields = Fields(_with_known_names(row.values))
    try:
        if row.problem:
            raise RefusedError(row.problem)
        reader = _reader_of(fields, unjudged=unjudged)
        found = reader(fields)
    except RefusedError as refused:
        feedback.refused.append((row.place, str(refused)))
        return
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # deep inside something is of another kind
        feedback.refused.append((row.place, f"malformed: {cut(str(error))}"))
        return
    feedback.unread.update(fields.unread())
    feedback.uncounted.update(fields.uncounted)
    found = [replace(one, place=row.place) for one in found]
    if not keep_pairs:
        records = [one for one in found if isinstance(one, PairRecord)]
        found = [one for one in found if not isinstance(one, PairRecord)]
        found += [comparison for record in records for comparison in own.comparisons_of(record)]
    feedback.num_skipped += not any(not isinstance(one, PairRecord) or one.judgements for one in found)
    feedback.num_ranked += reader is trl.read_list and trl.is_order_alone(fields)
    feedback.ratings += [one for one in found if isinstance(one, Rating)]
    feedback.comparisons += [one for one in found if isinstance(one, Comparison)]
    feedback.pairs += [one for one in found if isinstance(one, PairRecord)]


def _reader_of(fields: Fields, *, unjudged: bool) -> Reader:
    """The reader of the first format whose columns are there, and not all empty."""
    names = set(fields)
    if own.MARK in names or own.COMPARISON.issubset(names):
        return own.read_own
    if unjudged:
        return read_unjudged
    there = [(columns, reader) for columns, reader in _READERS if columns <= names]
    if is_tree(fields) or is_message(fields) or argilla.is_flat(fields):
        return argilla.read_flat if argilla.is_flat(fields) else read_tree
    for columns, reader in there:
        if any(fields.look(name) is not None for name in columns):
            return reader
    if there:
        return there[0][1]
    filled = {name: fields.look(name) for name in fields if not is_empty(fields.look(name))}
    if find_candidates(Fields(filled)) is not None:
        return _read_pair
    known = ", ".join(map(quote, (name for name in fields if not is_empty(fields.look(name)))))
    raise RefusedError(
        f"no known format has the columns {known or 'none'}; expected chosen and rejected, "
        "left, right and preferred, two answers and who won, completions best first, completion (or text) and score "
        "(or label), or an export of Label Studio or Argilla; docs/feedback-formats.md lists all of them"
    )


def _with_known_names(values: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns have the names that readers know, where a table has them with capitals or spaces."""
    if all(name in _KNOWN for name in values):
        return values
    names: dict[str, str] = {}
    for name in values:
        plain = str(name).strip().lower().replace(" ", "_")
        is_other = name not in _KNOWN and plain in _KNOWN and plain not in values
        names[name] = plain if is_other and plain not in names.values() else name
    return {names[name]: value for name, value in values.items()}


def _read_pair(fields: Fields) -> list[Comparison] | list[PairRecord]:
    """Two answers and their verdict; without one, a pair to ask about."""
    is_judged = fields.first(*hub.VERDICT_COLUMNS) is not None
    if is_judged:
        return hub.read_pair(fields)
    numbered = hub.read_numbered(fields)
    return read_two(fields) if numbered is None else numbered


_READERS: list[tuple[set[str], Reader]] = [
    *((set(sides), trl.read_preference) for sides in trl.SIDES),
    *(({name, column}, trl.read_rejected) for name in trl.MESSAGES for column in trl.REJECTED),
    ({"info", "summaries", "choice"}, hub.read_summaries),
    ({"info", "summary"}, hub.read_summaries),
    ({"data", "annotations"}, label_studio.read_label_studio),
    ({"fields", "responses"}, argilla.read_argilla),
    *(({verdict}, _read_pair) for verdict in hub.VERDICT_COLUMNS if verdict not in ("labels", "score_0")),
    ({"human_ref_A", "human_ref_B", "labels"}, _read_pair),
    ({"score_0", "score_1"}, _read_pair),
    *(({name}, trl.read_list) for name in trl.LISTS),
    *(({text, score}, trl.read_rating) for text in trl.TEXTS for score in trl.SCORES),
    *(({name, "label"}, trl.read_unpaired) for name in ("completion", *trl.MESSAGES)),
    *(({name, "kto_tag"}, trl.read_unpaired) for name in (*trl.TEXTS, *trl.MESSAGES)),
    *(({name, score}, trl.read_rating) for name in trl.MESSAGES for score in trl.SCORES),
]

_KNOWN = frozenset(
    [
        *(name for columns, _ in _READERS for name in columns),
        *(*PROMPTS, *SYSTEMS, *RATERS, *trl.LISTS, *trl.SCORE_LISTS, *trl.RANK_LISTS, *trl.LABELS, "status"),
    ]
)
