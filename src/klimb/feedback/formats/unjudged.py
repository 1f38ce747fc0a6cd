"""Rows with completions of a prompt that nobody has judged: pairs to ask people about."""

import contextlib
import itertools
from typing import Any

from klimb.data.lines import parse_json
from klimb.feedback.formats.choices import Candidates, find_candidates
from klimb.feedback.formats.fields import Fields, RefusedError
from klimb.feedback.formats.hub import VERDICT_COLUMNS
from klimb.feedback.formats.texts import read_prompt
from klimb.feedback.formats.trl import LISTS, RANK_LISTS, SCORE_LISTS, SCORES, join, listed
from klimb.feedback.records import Candidate, PairRecord
from klimb.io.show import Message, Text, cut, quote

_JUDGED = ("chosen", "rejected", *VERDICT_COLUMNS, *SCORES, *SCORE_LISTS, *RANK_LISTS)


def read_unjudged(fields: Fields) -> list[PairRecord]:
    """Two or more completions, which the file is said to have no judgement of; every two of them make a pair."""
    judged = fields.first(*_JUDGED)
    if judged is not None:
        raise RefusedError(
            f"{judged}: says which is better, {quote(fields.look(judged))}; import this row without --unjudged"
        )
    name = fields.first(*LISTS)
    if name is None:
        candidates = _filled(fields)
        if candidates is None:
            raise RefusedError(
                f"expected completions, or left and right, got {', '.join(map(quote, fields)) or 'nothing'}"
            )
        return pairs_of(candidates, _prompt(fields, candidates.before))
    texts: list[str] = []
    for value in _values(fields, name):
        text, *numbers = listed(fields, name, value)
        if numbers != [None, None]:
            raise RefusedError(f"{name}: has scores or ranks; import this row without --unjudged")
        texts.append(text)
    return _pairs(texts, read_prompt(fields))


def read_two(fields: Fields) -> list[PairRecord]:
    """Completions under names that are alike, without a word on which is better, and with nothing that might be one."""
    is_empty_verdict = any(name in fields for name in VERDICT_COLUMNS)
    candidates = _filled(fields)
    if candidates is None:
        raise RefusedError(f"no two columns hold the answers; it has {', '.join(map(quote, fields))}")
    found = pairs_of(candidates, _prompt(fields, candidates.before))
    left = sorted(fields.unread())
    if left and not is_empty_verdict:
        raise RefusedError(
            f"no known column says which completion is better, and it has {', '.join(map(quote, left))}; "
            "if nobody has judged, add --unjudged"
        )
    return found


def pairs_of(candidates: Candidates, prompt: Text) -> list[PairRecord]:
    """Each two of a row's candidates."""
    return _pairs([one.text for one in candidates.texts], prompt)


def _filled(fields: Fields) -> Candidates | None:
    """The candidates of a row, some of whose fields may be empty, as in a table of which others have more."""
    for name in [name for name in fields if fields.look(name) == ""]:
        fields.drop(name)
    return find_candidates(fields)


def _prompt(fields: Fields, before: list[Message]) -> Text:
    prompt = read_prompt(fields)
    return join(prompt, before) if before else prompt


def _values(fields: Fields, name: str) -> list[Any]:
    values = fields.get(name)
    if isinstance(values, str):  # a field of a table
        with contextlib.suppress(ValueError, RecursionError):
            values = parse_json(values)
    if not isinstance(values, list) or len(values) < 2:
        raise RefusedError(f"{name}: expected a list of at least 2, got {quote(values)}")
    return values


def _pairs(texts: list[str], prompt: Text) -> list[PairRecord]:
    if len(texts) < 2:
        raise RefusedError(f"expected at least 2 completions, got {len(texts)}")
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise RefusedError(f"the same completion occurs twice: {cut(twice)!r}")
    return [
        PairRecord(prompt, Candidate(one), Candidate(other))
        for one, other in itertools.combinations(texts, 2)
    ]
