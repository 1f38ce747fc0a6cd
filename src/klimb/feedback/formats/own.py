"""klimb's own exports: whole stores, and comparisons with all that is known of them, which may stand in tables."""

import math
from typing import Any, Literal

from klimb.data.lines import parse_json
from klimb.data.messages import MessageError, unfold
from klimb.feedback.comparison import Comparison, Preferred
from klimb.feedback.formats.fields import Fields, RefusedError
from klimb.feedback.formats.texts import checked_rater
from klimb.feedback.records import Candidate, JudgementRecord, PairRecord
from klimb.io.show import Text, quote, surrogate_in

VERSION = 1
"""Of the form `store`; a change of what its rows mean needs a new one."""
MARK = "klimb_store"
"""The column that says which version of the form `store` a row is of."""
COMPARISON = {"left", "right", "preferred", "judged_at"}
"""Columns by which a row of the form `comparisons` is known."""

_SIDES = {"left": "first", "right": "second"}
_CHOICES = ("first", "second", "tie", "both_bad", "skip")
_LONGEST_KEY = 64  # characters, as a store keeps them


def read_own(fields: Fields) -> list[PairRecord]:
    """A row of the form `store` or `comparisons`."""
    return [_store_row(fields) if MARK in fields else _comparison_row(fields)]


def _store_row(fields: Fields) -> PairRecord:
    """A pair of a store with all its judgements."""
    version = fields.get(MARK)
    if version != VERSION:
        raise RefusedError(
            f"{MARK}: this klimb reads version {VERSION}, got {quote(version)}; install the newer: pip install -U klimb"
        )
    judgements = tuple(_judgement(item) for item in _objects(fields, "judgements"))
    assigned = tuple(
        (checked_rater(item.get("rater")), _number(item, "assigned_at"))
        for item in _objects(fields, "assigned")
    )
    (first, first_number), (second, second_number) = (
        _completion(fields, "first"),
        _completion(fields, "second"),
    )
    prompt = _prompt(fields.get("prompt"))
    numbers = first_number, second_number
    return _pair(prompt, first, second, judgements, _number(fields, "priority", 0.0), assigned, numbers)


def _comparison_row(fields: Fields) -> PairRecord:
    """A judgement of the form `comparisons`."""
    preferred, shown_left = fields.get("preferred"), fields.get("shown_left")
    judgement = JudgementRecord(
        rater=checked_rater(fields.get("rater")),
        preferred=_one_of("preferred", _SIDES.get(preferred, preferred), _CHOICES),
        key=_key(fields.get("key")),
        shown_left=_one_of("shown_left", _SIDES.get(shown_left, shown_left) or "", ("first", "second", "")),
        seconds=_number(fields, "seconds", None),
        note=_text("note", fields.get("note") or ""),
        judged_at=_number(fields, "judged_at", None),
    )
    first, second = (
        Candidate(_text(side, fields.get(side)), _source(f"{side}_source", fields.get(f"{side}_source")))
        for side in _SIDES
    )
    try:
        prompt = unfold(fields.get("prompt"))
    except MessageError as error:
        raise RefusedError(f"prompt: {error}") from error
    return _pair(_prompt("" if prompt is None else prompt), first, second, (judgement,))


def comparisons_of(record: PairRecord) -> list[Comparison]:
    """What stands of a pair, as comparisons to learn from; skips and pairs of two bad ones say nothing."""
    words: dict[str, Preferred] = {"first": "left", "second": "right", "tie": "tie"}
    sides: dict[str, Literal["left", "right", ""]] = {"first": "left", "second": "right", "": ""}
    return [
        Comparison(
            record.prompt,
            record.first.text,
            record.second.text,
            words[said.preferred],
            said.rater,
            record.place,
            sides[said.shown_left],
            said.seconds,
        )
        for said in sorted(record.judgements, key=lambda judgement: judgement.number)
        if said.withdrawn_at is None and said.preferred in words
    ]


def _pair(prompt: Text, first: Candidate, second: Candidate, *more: Any) -> PairRecord:
    if first.text == second.text:
        raise RefusedError(f"the two completions are the same: {quote(first.text)}")
    return PairRecord(prompt, first, second, *more)


def _judgement(item: Fields) -> JudgementRecord:
    key = _key(item.get("key"))
    if not key:
        raise RefusedError("key: expected the text under which the judgement was sent, got none")
    return JudgementRecord(
        rater=checked_rater(item.get("rater")),
        preferred=_one_of("preferred", item.get("preferred"), _CHOICES),
        key=key,
        shown_left=_one_of("shown_left", item.get("shown_left"), ("first", "second", "")),
        seconds=_number(item, "seconds", None),
        note=_text("note", item.get("note")),
        judged_at=_number(item, "judged_at"),
        withdrawn_at=_number(item, "withdrawn_at", None),
        number=int(_number(item, "number", 0)),
    )


def _completion(fields: Fields, name: str) -> tuple[Candidate, int]:
    part = fields.part(name)
    candidate = Candidate(
        _text(f"{name}.text", part.get("text")), _source(f"{name}.source", part.get("source"))
    )
    return candidate, int(_number(part, "number", 0))


def _objects(fields: Fields, name: str) -> list[Fields]:
    items = fields.get(name)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RefusedError(f"{name}: expected a list of objects, got {quote(items)}")
    return [fields.item(name, item) for item in items]


def _one_of(name: str, value: Any, words: tuple[str, ...]) -> Any:
    if value not in words:
        raise RefusedError(f"{name}: expected one of {', '.join(map(quote, words))}, got {quote(value)}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RefusedError(f"{name}: expected text, got {quote(value)}")
    if problem := surrogate_in(value):
        raise RefusedError(f"{name}: {problem}")
    return value


def _prompt(value: Any) -> Text:
    """A prompt as the store had it: nothing is renamed or left out, so that it is the same prompt there."""
    if isinstance(value, str):
        return _text("prompt", value)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RefusedError(f"prompt: expected text or a list of messages, got {quote(value)}")
    messages = [{key: item for key, item in message.items() if item is not None} for message in value]
    for message in messages:
        _text("prompt", message.get("role"))
        _text("prompt", message.get("content"))
    return messages


def _source(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = parse_json(value) if value else {}
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"{name}: not JSON: {error}") from error
    if not isinstance(value, dict | None):
        raise RefusedError(f"{name}: expected an object, got {quote(value)}")
    return value or {}


def _key(value: Any) -> str:
    key = _text("key", "" if value is None else value)
    if len(key) > _LONGEST_KEY or "\0" in key:
        raise RefusedError(f"key: expected text of at most {_LONGEST_KEY} characters, got {quote(key)}")
    return key


def _number(fields: Fields, name: str, missing: Any = ...) -> Any:
    """A finite number; `missing` where there is none.

    Raises:
        RefusedError: It is none, or is missing and must not be.
    """
    value = fields.get(name)
    if value in (None, "") and missing is not ...:
        return missing
    try:
        found = (
            float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        )
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise RefusedError(f"{name}: expected a finite number, got {quote(value)}")
    return found
