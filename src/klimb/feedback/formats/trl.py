"""TRL's rows, which most preference sets of the hub have: chosen and rejected, unpaired, ranked, rated."""

import math
from typing import Any

from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.formats.choices import compared
from klimb.feedback.formats.fields import METADATA, Fields, RefusedError, is_empty
from klimb.feedback.formats.texts import (
    PROMPTS,
    RATERS,
    SYSTEMS,
    answer,
    as_messages,
    completion,
    is_transcript,
    read_prompt,
    read_rater,
    transcript,
    with_system,
)
from klimb.io.show import Message, Text, quote

TEXTS = ("completion", "text", "response", "answer", "output")
SCORES = ("score", "rating", "overall_score", "reward", "helpfulness")
LISTS = ("completions", "responses", "generations", "answers", "candidates")
SCORE_LISTS = ("scores", "ratings", "rewards", *SCORES, "all_rm_scores")
RANK_LISTS = ("ranks", "rankings", "ranking", "rank")
SIDES = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"), ("chosen_completion", "rejected_completion"),
    ("chosen_messages", "rejected_messages"), ("preferred_output", "non_preferred_output"),
    ("preferred_response", "non_preferred_response"), ("preferred_response", "dispreferred_response"),
    ("preferred_response", "rejected_response"), ("accepted", "rejected"), ("better", "worse"),
    ("better_response", "worse_response"), ("response_j", "response_k"),
)  # fmt: skip
"""Columns of the preferred answer and of the other."""
REJECTED = ("rejected_response", "rejected_messages")
"""Beside messages that end with the preferred answer, as ms-swift has them."""
LABELS = ("label", "kto_tag")
_GOOD = frozenset(
    ["true", "1", "1.0", "yes", "good", "up", "thumbs_up", "like", "positive", "desirable", "chosen", "👍"]
)
_BAD = frozenset(
    [
        "false",
        "0",
        "0.0",
        "no",
        "bad",
        "down",
        "thumbs_down",
        "dislike",
        "negative",
        "undesirable",
        "rejected",
        "👎",
    ]
)
_ITEM_SCORES = (*SCORES, "pm_score")  # of the preference model of Stack Exchange's answers
_ITEM_TEXTS = (*TEXTS, "content", "generation", "candidate", "body")
_MESSAGE = frozenset({"role", "from", "type"})  # what one message has and an object with an answer has not
_UNUSED = frozenset({"draft", "discarded", "pending"})
MESSAGES = ("messages", "conversations", "conversation")


def read_preference(fields: Fields) -> list[Comparison]:
    """`chosen` and `rejected`, as texts, answers or whole chats, with or without a prompt."""
    status = fields.get("status") if isinstance(fields.look("status"), str) else None
    if status in _UNUSED:
        fields.uncounted[f"rows of status {status!r}"] += 1
        return []
    if status not in (None, "tie", "unchanged", "swapped", "submitted", "completed"):
        raise RefusedError(f"status: {quote(status)} is unknown; remove the column if it does not matter")
    names = next(pair for pair in SIDES if set(pair) <= set(fields))
    for column in ("labels", "label"):
        if fields.has(column):
            raise RefusedError(
                f"{column}: a preference has the columns {names[0]} and {names[1]}, and {column!r} beside them is not "
                "known"
            )
    chosen, rejected = fields.get(names[0]), fields.get(names[1])
    if is_transcript(chosen) and is_transcript(rejected):
        chosen, rejected = _ended(chosen), _ended(rejected)
    won, lost = _side(fields, names[0], chosen), _side(fields, names[1], rejected)
    before = _shared(won[0][0], lost[0][0])
    _pass_over_copy(fields, chosen, before)
    prompt = read_prompt(fields)
    if before:
        prompt = join(prompt, before)
    elif any(_is_chat(side) for side in (chosen, rejected)):
        prompt = as_messages(prompt)
    if not before and _ends_with(prompt, [text for _, text in won]):
        prompt = prompt[:-1]  # a whole chat, the chosen answer included
    preferred, rater = "tie" if status == "tie" else "left", read_rater(fields)
    return [compared(prompt or "", one[1], other[1], preferred, rater) for one in won for other in lost]


def _side(fields: Fields, name: str, value: Any) -> list[tuple[list[Message], str]]:
    """One answer, or several as texts (RewardBench 2), of which each is meant."""
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return [answer(name, text) for text in value]
    if isinstance(value, dict) and not _MESSAGE & value.keys():
        part = fields.part(name)
        text = part.first(*_ITEM_TEXTS)
        if text is not None:
            return [answer(f"{name}.{text}", part.get(text))]
    return [answer(name, value, fields)]


def _ends_with(prompt: Text, texts: list[str]) -> bool:
    last = prompt[-1] if isinstance(prompt, list) and prompt else {"role": "", "content": ""}
    return last["role"] == "assistant" and last["content"] in texts


def _is_chat(value: Any) -> bool:
    one = value[0] if isinstance(value, list) and value else value
    return isinstance(one, dict) and bool(_MESSAGE & one.keys())


def read_rejected(fields: Fields) -> list[Comparison]:
    """ms-swift's preferences: messages that end with the preferred answer, and beside them what was rejected."""
    name = next(name for name in MESSAGES if name in fields)
    before, chosen = answer(name, fields.get(name), fields)
    column = fields.first(*REJECTED) or next(column for column in REJECTED if column in fields)
    lost = _side(fields, column, fields.get(column))
    prompt = with_system(_shared(before, lost[0][0]), fields)
    rater = read_rater(fields)
    return [compared(prompt, chosen, other, "left", rater) for _, other in lost]


def _ended(text: str) -> list[Message]:
    turns = transcript(text)
    if turns[-1]["role"] != "assistant":
        raise RefusedError(
            f"expected a transcript that ends with an answer of the assistant, got {quote(text)}"
        )
    return turns


def _shared(one: list[Message], other: list[Message]) -> list[Message]:
    if one and other and one != other:
        turn = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        raise RefusedError(
            f"chosen and rejected differ before their last answer, in message {turn + 1}; they must share all before it"
        )
    return one or other


def _pass_over_copy(fields: Fields, chosen: Any, before: list[Message]) -> None:
    """Messages that repeat the chosen chat, as in ultrafeedback_binarized, say nothing more."""
    for name in MESSAGES:
        value = fields.look(name)
        if not isinstance(value, list) or not value:
            continue
        ends_so = isinstance(chosen, str) and isinstance(value[-1], dict) and chosen in value[-1].values()
        if (before and value == chosen) or (ends_so and fields.has("prompt")):
            fields.drop(name)


def join(prompt: Text, before: list[Message]) -> list[Message]:
    """The messages before the answer of a whole chat, with which the row's prompt must agree.

    Raises:
        RefusedError: It does not.
    """
    if not prompt or prompt == before:
        return before
    system = [message for message in before if message["role"] == "system"]
    turns = before[len(system) :]
    if isinstance(prompt, str):
        asked = [message["content"].strip() for message in before if message["role"] == "user"]
        if asked and prompt.strip() in (asked[0], asked[-1]):
            return before
        raise RefusedError(
            f"prompt: {quote(prompt)} is not what the user says in chosen and rejected, "
            f"{quote(asked[0] if asked else before)}"
        )
    own = [message for message in prompt if message["role"] == "system"]
    rest = prompt[len(own) :]
    asked = [message for message in before if message["role"] == "user"]
    agrees = rest == turns or (len(rest) == 1 and _same(rest[0], asked))
    if agrees and (not own or not system or own == system):
        return [*(own or system), *turns]
    if before[0]["role"] == "assistant" and prompt[-1]["role"] == "user":
        return [*prompt, *before]
    raise RefusedError("prompt: its messages are not those that chosen and rejected begin with")


def _same(message: Message, asked: list[Message]) -> bool:
    texts = [one["content"].strip() for one in asked]
    return bool(texts) and message["content"].strip() in (texts[0], texts[-1])


def read_unpaired(fields: Fields) -> list[Rating]:
    """TRL's unpaired preferences: a completion and whether it is a good one, as a rating of 1 or 0."""
    name = fields.first(*LABELS) or next(name for name in LABELS if name in fields)
    label = fields.get(name)
    word = str(label).strip().lower() if isinstance(label, bool | int | float | str) else ""
    if word not in _GOOD | _BAD:
        raise RefusedError(f"{name}: expected true or false, got {quote(label)}")
    return [_rated(fields, float(word in _GOOD))]


def read_rating(fields: Fields) -> list[Rating]:
    """A text and its number."""
    name = fields.first(*SCORES)
    if name is None:
        return []
    return [_rated(fields, number(name, fields.get(name)))]


def _rated(fields: Fields, score: float) -> Rating:
    names = (*TEXTS, *MESSAGES)
    name = fields.first(*names) or next(name for name in names if name in fields)
    before, text = answer(name, fields.get(name), fields)
    if name in MESSAGES and not fields.has("prompt"):
        return Rating(with_system(before, fields), text, score, read_rater(fields))
    prompt = read_prompt(fields)
    return Rating(join(prompt, before) if before else prompt, text, score, read_rater(fields))


def number(name: str, value: Any) -> float:
    """A finite number, or text that is one.

    Raises:
        RefusedError: It is none.
    """
    try:
        found = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None:
        raise RefusedError(f"{name}: expected a number, got {quote(value)}")
    if not math.isfinite(found):
        raise RefusedError(f"{name}: expected a finite number, got {found}")
    return found


def read_list(fields: Fields) -> list[Comparison] | list[Rating]:
    """Several completions of a prompt: with scores, with ranks, or best first."""
    name = next((name for name in LISTS if fields.look(name) is not None), LISTS[0])
    values = fields.get(name)
    if not isinstance(values, list) or len(values) < 2:
        raise RefusedError(f"{name}: expected a list of at least 2, best first, got {quote(values)}")
    for column in ("labels", "label"):
        if fields.has(column):
            raise RefusedError(
                f"{column}: marks steps of one answer (TRL's stepwise supervision) rather than answers that are "
                "compared; klimb learns from whole answers"
            )
    if is_order_alone(fields):
        _require_no_verdict(fields, name)
    found = [listed(fields, name, value) for value in values]
    texts = [text for text, _, _ in found]
    scores = _numbers(fields, SCORE_LISTS, [score for _, score, _ in found])
    ranks = _numbers(fields, RANK_LISTS, [rank for _, _, rank in found])
    if len(set(texts)) != len(texts):
        raise RefusedError(f"{name}: the same text occurs twice")
    prompt, rater = read_prompt(fields), read_rater(fields)
    if scores is not None:
        pairs = zip(texts, scores, strict=True)
        return [Rating(prompt, text, score, rater) for text, score in pairs if score is not None]
    if ranks is None and name != "completions":
        raise RefusedError(
            f"{name}: nothing says which is better; expected a column of scores or ranks; if nobody has judged, add "
            "--unjudged"
        )
    order = list(range(len(texts))) if ranks is None else ranks
    if any(rank is None for rank in order):
        raise RefusedError(f"{name}: not every one has a rank")
    return [
        compared(prompt, texts[i], texts[j], "tie" if order[i] == order[j] else "left", rater)
        for i in sorted(range(len(texts)), key=order.__getitem__)
        for j in sorted(range(len(texts)), key=order.__getitem__)
        if (order[i], i) < (order[j], j)
    ]


def is_order_alone(fields: Fields) -> bool:
    """Whether nothing but the order of the completions of a row says which is better."""
    values = fields.look(LISTS[0])
    has_numbers = any(isinstance(fields.look(name), list) for name in (*SCORE_LISTS, *RANK_LISTS))
    return isinstance(values, list) and not has_numbers and not any(_has_number(value) for value in values)


def _has_number(value: Any) -> bool:
    return isinstance(value, dict) and any(value.get(name) is not None for name in (*_ITEM_SCORES, "rank"))


def _require_no_verdict(fields: Fields, name: str) -> None:
    """Refuse to take an order for a ranking where something else of the row may say which is better.

    Numbers and lists may; a text does where it is one of the completions.
    """
    values = fields.look(name)
    known = {name, *LISTS, *PROMPTS, *SYSTEMS, *RATERS}
    others = {other: fields.look(other) for other in fields if other not in known and not _is_about(other)}
    for value in values:
        if isinstance(value, dict) and not _MESSAGE & value.keys():
            inner = {
                key: item for key, item in value.items() if key not in _ITEM_TEXTS and not _is_about(key)
            }
            others |= {f"{name}[].{key}": item for key, item in inner.items()}
    for other, said in others.items():
        if is_empty(said) or (isinstance(said, str) and said not in values and not _is_written_number(said)):
            continue
        raise RefusedError(
            f"{other}: may say which of {name} is better, {quote(said)}, and so may their order: move scores or ranks "
            "into a column of that name, or remove it if they are ordered best first; if nobody has judged, "
            "add --unjudged"
        )


def _is_about(name: Any) -> bool:
    return str(name).lower() in METADATA


def _is_written_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def listed(fields: Fields, name: str, value: Any) -> tuple[str, float | None, float | None]:
    """One of several completions: text, a message, or an object with the text and its score or rank.

    Raises:
        RefusedError: It is something else.
    """
    if not isinstance(value, dict) or "role" in value or "from" in value:
        return completion(name, value), None, None
    part = fields.item(name, value)
    text = part.first(*_ITEM_TEXTS)
    if text is None:
        raise RefusedError(f"{name}: expected texts, or objects with an answer, got {quote(value)}")
    score, rank = part.first(*_ITEM_SCORES), part.first("rank")
    return (
        completion(name, part.get(text)),
        None if score is None else number(score, part.get(score)),
        None if rank is None else number("rank", part.get("rank")),
    )


def _is_of_row(fields: Fields, name: str) -> bool:
    """Whether a number stands for a row as a whole, such as its reward, and not for each completion."""
    return name in SCORES and not isinstance(fields.look(name), list)


def _numbers(fields: Fields, names: tuple[str, ...], own: list[float | None]) -> list[Any] | None:
    """The numbers of a column beside the list, one for each completion, or those that stand in it."""
    name = next((name for name in names if fields.has(name) and not _is_of_row(fields, name)), None)
    if name is None:
        return own if any(one is not None for one in own) else None
    values = fields.get(name)
    if not isinstance(values, list) or len(values) != len(own):
        raise RefusedError(
            f"{name}: expected a number for each of {len(own)} completions, got {quote(values)}"
        )
    return [None if value is None else number(name, value) for value in values]
