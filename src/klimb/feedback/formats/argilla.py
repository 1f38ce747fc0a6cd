"""Argilla's exports, of its first and second version: records with fields and responses, nested or in flat columns."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from klimb.data.lines import parse_json
from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.formats.choices import VERDICTS, Candidates, find_candidates
from klimb.feedback.formats.fields import Fields, RefusedError, is_empty
from klimb.feedback.formats.texts import checked_rater, completion, read_prompt
from klimb.feedback.formats.trl import TEXTS, join
from klimb.feedback.formats.unjudged import pairs_of
from klimb.feedback.records import PairRecord
from klimb.io.show import Text, quote

_COUNTED = (None, "", "submitted", "completed")
_FLAT = ".responses"

Judgements = list[Comparison | Rating | PairRecord]


@dataclass(frozen=True)
class _Answer:
    """What someone answered to a question of a record."""

    question: str
    value: Any
    rater: str
    status: Any


def is_flat(fields: Fields) -> bool:
    """Whether a row is a record in flat columns: `preference.responses`, or lists of answers with a `user_id`."""
    return any(str(name).endswith(_FLAT) for name in fields) or any(
        _is_answers(fields.look(name)) for name in fields
    )


def _is_answers(value: Any) -> bool:
    keys = value if isinstance(value, dict) else value[0] if isinstance(value, list) and value else ()
    return isinstance(keys, dict) and {"user_id", "value"} <= keys.keys()


def read_argilla(fields: Fields) -> Judgements:
    """A record whose fields and responses are objects."""
    responses = fields.get("responses")
    if responses is None:
        responses = {}
    answers = _of_list(responses) if isinstance(responses, list) else _of_questions(responses)
    suggestions = fields.get("suggestions")
    fields.uncounted["suggestions of models"] += (
        len(suggestions) if isinstance(suggestions, dict | list) else 0
    )
    if not isinstance(fields.look("fields"), dict):
        raise RefusedError("fields: expected response1 and response2")
    return _judgements(fields, fields.part("fields"), list(answers))


def read_flat(fields: Fields) -> Judgements:
    """A record in flat columns."""
    answers: list[_Answer] = []
    for name in [name for name in fields if str(name).endswith(_FLAT) or _is_answers(fields.look(name))]:
        values = fields.get(name)
        if name.endswith(_FLAT):
            question = name[: -len(_FLAT)]
            users, statuses = fields.get(f"{name}.users"), fields.get(f"{name}.status")
            values = values or []
            rows = zip(values, users or [""] * len(values), statuses or [None] * len(values), strict=True)
            answers += [_Answer(question, value, checked_rater(user), status) for value, user, status in rows]
        else:
            answers += _of_questions({name: _rows(values)})
    for name in list(fields):
        question, mark, _ = name.rpartition(".suggestion" if ".suggestion" in name else "-suggestion")
        if mark and question:
            fields.uncounted["suggestions of models"] += not is_empty(fields.get(name)) and name.endswith(
                mark
            )
    return _judgements(fields, fields, answers)


def _rows(values: Any) -> list[dict[str, Any]]:
    """Objects, which `datasets` turns into an object of lists."""
    if isinstance(values, list):
        return values
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _of_questions(responses: Any) -> Iterator[_Answer]:
    if not isinstance(responses, dict):
        raise RefusedError(f"responses: expected an object or a list, got {quote(responses)}")
    for question, answers in responses.items():
        for answer in answers or []:
            if not isinstance(answer, dict):
                raise RefusedError(f"malformed: expected responses that are objects, got {quote(answer)}")
            yield _Answer(
                question, answer.get("value"), checked_rater(answer.get("user_id")), answer.get("status")
            )


def _of_list(responses: list[Any]) -> Iterator[_Answer]:
    for response in responses:
        if not isinstance(response, dict):
            raise RefusedError(f"malformed: expected responses that are objects, got {quote(response)}")
        values = response.get("values") or {}
        rater, status = checked_rater(response.get("user_id")), response.get("status")
        for question, answer in values.items():
            yield _Answer(
                question, answer.get("value") if isinstance(answer, dict) else answer, rater, status
            )


def _judgements(record: Fields, texts: Fields, answers: list[_Answer]) -> Judgements:
    if record.get("status") == "discarded":
        record.uncounted["discarded records"] += 1
        return []
    candidates = find_candidates(texts, any_stem=texts is not record)
    single = None if candidates else texts.first(*TEXTS)
    if candidates is None and single is None:
        raise RefusedError(
            f"fields: expected response1 and response2, got {', '.join(map(quote, texts)) or 'none'}"
        )
    prompt = read_prompt(texts)
    text = "" if single is None else completion(single, texts.get(single))
    if candidates is not None and candidates.before:
        prompt = join(prompt, candidates.before)
    if not answers and candidates is not None:
        return [*pairs_of(candidates, prompt)]
    names = _names(record.look("metadata"))
    answers = [replace(answer, rater=names.get(answer.rater, answer.rater)) for answer in answers]
    return _counted(record, answers, candidates or Rating(prompt, text, 0.0), prompt)


def _counted(record: Fields, answers: list[_Answer], asked: Candidates | Rating, prompt: Text) -> Judgements:
    """What answers say of candidates, or of a single text that is rated."""
    found: Judgements = []
    questions = {answer.question for answer in answers}
    understood: set[str] = set()
    for answer in answers:
        if answer.status not in _COUNTED:
            record.uncounted[f"{answer.status} responses"] += 1
            understood.add(answer.question)
        elif is_empty(answer.value):
            understood.add(answer.question)
        elif isinstance(asked, Rating):
            if not isinstance(answer.value, int | float) or isinstance(answer.value, bool):
                continue
            found.append(replace(asked, score=float(answer.value), rater=answer.rater))
            understood.add(answer.question)
        else:
            said = _said(answer, asked, prompt, is_sure=answer.question in VERDICTS or len(questions) == 1)
            found += said or []
            if said is not None:
                understood.add(answer.question)
    return _named(record, found, answers, questions - understood)


def _names(metadata: Any) -> dict[str, str]:
    """Names of raters by the numbers that klimb's export gives them."""
    raters = metadata.get("raters") if isinstance(metadata, dict) else None
    try:
        names = parse_json(raters) if isinstance(raters, str) else None
    except (ValueError, RecursionError):
        names = None
    return {user: checked_rater(name) for user, name in names.items()} if isinstance(names, dict) else {}


def _named(record: Fields, found: Judgements, answers: list[_Answer], left: set[str]) -> Judgements:
    """Name questions that were not understood; refuse a record of which nothing was."""
    if left and not found:
        values = ", ".join(f"{one.question!r}: {quote(one.value)}" for one in answers if one.question in left)
        raise RefusedError(f"responses: no answer says which candidate is better: {values}")
    for question in sorted(left):
        record.leave(f"responses.{question}")
    return found


def _said(answer: _Answer, candidates: Candidates, prompt: Text, *, is_sure: bool) -> Judgements | None:
    """What an answer says of the candidates; None where its question is about something else."""
    value, name = answer.value, answer.question
    if isinstance(value, dict) and {"rank", "value"} <= value.keys():
        value = _rows(value)
    if isinstance(value, list):
        if len(value) == 1 and not isinstance(value[0], dict):
            value = value[0]
        else:
            return [*_ranking(name, value, candidates, prompt, answer.rater)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _rating(name, value, candidates, prompt, answer.rater)
    if not is_sure and candidates.choose(value) is None:
        return None
    return [*candidates.compare(value, prompt, answer.rater, name)]


def _rating(name: str, value: float, candidates: Candidates, prompt: Text, rater: str) -> Judgements | None:
    """A rating of the candidate by whose name the question ends, such as `rating-2` or `score_response1`."""
    plain = name.lower().replace("-", "").replace("_", "").replace(".", "").replace(" ", "")
    matches = [
        one
        for one in candidates.texts
        if plain.endswith((one.name.lower().replace("-", "").replace("_", ""), one.suffix))
    ]
    return [Rating(prompt, matches[0].text, float(value), rater)] if len(matches) == 1 else None


def _ranking(
    name: str, value: list[Any], candidates: Candidates, prompt: Text, rater: str
) -> list[Comparison]:
    ranks: list[tuple[int, float]] = []
    for place, item in enumerate(value):
        said, rank = (item.get("value"), item.get("rank")) if isinstance(item, dict) else (item, place)
        chosen = candidates.choose(said)
        if not isinstance(chosen, int) or not isinstance(rank, int | float):
            names = ", ".join(one.name for one in candidates.texts)
            raise RefusedError(f"{name}: expected a ranking of {names}, got {quote(value)}")
        ranks.append((chosen, rank))
    if len({chosen for chosen, _ in ranks}) != len(ranks):
        raise RefusedError(f"{name}: ranks a candidate twice: {quote(value)}")
    return candidates.rank(ranks, prompt, rater)
