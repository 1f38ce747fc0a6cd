"""Scores for a file of texts: `klimb reward score`."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klimb.data.messages import MessageError, read_messages, unfold
from klimb.data.rows import RESERVED, Row, read_rows
from klimb.errors import DataError, RewardError
from klimb.io.atomic import write_file
from klimb.io.progress import Progress, Say, ignore
from klimb.io.show import Message, Text, content_of, plain, problem_with, safe
from klimb.model.clock import clock_at, current_moment
from klimb.reward.load import load_rewards
from klimb.reward.reward import Batch, Rewards, WeightedSum

_AT_ONCE = 256  # texts handed to the rewards together
_TEXTS = ("completion", "messages", "text")  # columns in which a text may stand
_KNOWN = {"prompt", "completion", "opening", *RESERVED}


@dataclass(frozen=True)
class _Scored:
    """A row that is to be scored.

    Attributes:
        values: Its columns.
        prompt: What the completion answers; "" where it stands alone.
        text: The completion's text.
        turns: The completion as messages where it is more than one text.
        place: File and line, for messages.
    """

    values: dict[str, Any]
    prompt: Text
    text: str
    turns: list[Message] | None
    place: str


@dataclass(frozen=True)
class _Refused:
    """A row without anything to score, and why.

    Attributes:
        values: Its columns, as far as they could be read.
        place: File and line, for messages.
        reason: Why it cannot be scored.
    """

    values: dict[str, Any]
    place: str
    reason: str


def score_file(file: Path, rewards: tuple[str, ...], output: Path, say: Say = ignore) -> str:
    """Score each row of a file and write it, with the column `score`, as JSONL.

    A completion is a text, or the list of messages that TRL has for it, and its score is the same in either form. A row
    that cannot be read, or that a reward cannot score, has no score, and the column `failure` says why.

    Args:
        file: Rows with `completion` (or `text`, or a whole chat as `messages`) and perhaps `prompt`; their other
            columns go to the rewards too.
        rewards: As for `load_rewards`.
        output: Where to; replaced if it exists.
        say: Receives progress lines.

    Returns:
        What was done, in a line.

    Raises:
        DataError: There are no rows, or none of them has a text.
        RewardError: A reward cannot be loaded, or failed for every row.
    """
    rows = [_read(row) for row in read_rows(file)]
    if not rows:
        raise DataError(f"{file}: has no rows")
    if isinstance(first_row := rows[0], _Refused) and all(isinstance(row, _Refused) for row in rows):
        raise DataError(f"{first_row.place}: {first_row.reason}")
    judge = load_rewards(rewards)
    names = sorted({name for row in rows if isinstance(row, _Scored) for name in row.values} - _KNOWN)
    lines: list[str] = []
    scores: list[float] = []
    reasons: list[str] = []
    moment = current_moment()  # one for all rows, where a reward's chat template writes the time
    progress = Progress("scoring", len(rows), "texts", say)
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        with clock_at(moment):
            added = _score(judge, part, names)
        for row, found in zip(part, added, strict=True):
            score, reason = found["score"], found.get("failure")
            scores += [] if score is None else [score]
            reasons += [] if reason is None else [f"{row.place}: {reason}"]
            lines.append(json.dumps(plain(row.values | found), ensure_ascii=False) + "\n")
        progress.advance(len(part))
    if not scores:
        raise RewardError(f"no row could be scored: {reasons[0]}")
    write_file(output, "".join(lines))
    done = (
        f"{output}: {len(scores):,} texts, mean score {statistics.fmean(scores):.3f}, from {min(scores):.3f} to "
        f"{max(scores):.3f}"
    )
    return f"{done}; {len(reasons):,} rows have no score: {safe(reasons[0])}" if reasons else done


def _score(
    judge: WeightedSum, rows: Sequence[_Scored | _Refused], names: Sequence[str]
) -> list[dict[str, Any]]:
    """What each row gets: `score`, `failure` where it has none, and `extra` where a reward logged something."""
    readable = [row for row in rows if isinstance(row, _Scored)]
    scored = iter(_found(_judge(judge, readable, names), len(readable)) if readable else [])
    return [
        {"score": None, "failure": row.reason} if isinstance(row, _Refused) else next(scored) for row in rows
    ]


def _found(given: Rewards, num_rows: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index in range(num_rows):
        reason = given.reasons.get(index)
        extra = {name: values[index] for name, values in given.extra.items()}
        line: dict[str, Any] = {"score": given.total[index]}
        found.append(line | ({"failure": reason} if reason else {}) | ({"extra": extra} if extra else {}))
    return found


def _judge(judge: WeightedSum, rows: Sequence[_Scored], names: Sequence[str]) -> Rewards:
    columns = {name: [row.values.get(name) for row in rows] for name in names}
    openings = [str(row.values.get("opening") or "") for row in rows]
    turns = [row.turns for row in rows]
    return judge(
        Batch(
            [row.prompt for row in rows],
            [row.text for row in rows],
            columns,
            openings=openings if any(openings) else None,
            turns=turns if any(turns) else None,
        )
    )


def _read(row: Row) -> _Scored | _Refused:
    try:
        return _scored(row)
    except DataError as error:
        return _Refused(row.values, row.place, str(error).removeprefix(f"{row.place}: "))


def _scored(row: Row) -> _Scored:
    if row.problem:
        raise DataError(f"{row.place}: {row.problem}")
    values = row.values
    name = next((name for name in _TEXTS if values.get(name) is not None), None)
    if name is None:
        columns = ", ".join(map(repr, values)) or "none"
        raise DataError(
            f"{row.place}: no text: expected a column completion, text or messages, got {columns}"
        )
    is_nothing = values[name] == "" and bool(values.get("prompt"))  # the model ended at once
    said = "" if is_nothing else _text_of(values[name], f"{row.place}: {name}")
    prompt: Text = _text_of(values["prompt"], f"{row.place}: prompt") if values.get("prompt") else ""
    values = (
        values | {"completion" if name == "text" else name: said} | ({"prompt": prompt} if prompt else {})
    )
    if isinstance(said, str):
        return _Scored(values, prompt, said, None, row.place)
    prompt, answer = _take_apart(prompt, said)
    if not answer:
        raise DataError(f"{row.place}: {name}: expected a message of the assistant's, got {said[-1]['role']}")
    is_one = len(answer) == 1 and not answer[0].get("tool_calls")
    return _Scored(
        values,
        prompt,
        "\n".join(filter(None, map(content_of, answer))),
        None if is_one else answer,
        row.place,
    )


def _text_of(value: Any, where: str) -> Text:
    """A text, or messages in one form, which may stand as JSON in a table's field."""
    try:
        value = unfold(value)
        if isinstance(value, list) and value:
            return [plain(message) for message in read_messages(value)]
    except MessageError as error:
        raise DataError(f"{where}: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where}: a message is nested too deeply to be read; flatten it") from error
    if problem := problem_with(value):
        raise DataError(f"{where}: {problem}")
    return value


def _take_apart(prompt: Text, messages: list[Message]) -> tuple[Text, list[Message]]:
    """Split messages into what is answered and the answer: those of the assistant, and tools, at the end.

    A prompt that is text is what a user says. Where the messages are a whole chat they repeat the prompt.
    """
    start = len(messages)
    while start and messages[start - 1]["role"] in ("assistant", "tool"):
        start -= 1
    before, answer = messages[:start], messages[start:]
    if isinstance(prompt, str):
        asked: list[Message] = [{"role": "user", "content": prompt}] if prompt else []
    else:
        asked = prompt
    says = [(message["role"], content_of(message)) for message in asked]
    repeated = [(message["role"], content_of(message)) for message in before[-len(says) :]] if says else []
    if before and repeated == says:
        return before, answer
    return [*asked, *before] or "", answer
