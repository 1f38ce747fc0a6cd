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


def score_file(file: Path, rewards: tuple[str, ...], output: Path, say: Say = ignore) -> str:
    """Score each row of a file and write it, with the column `score`, as JSONL.

    A completion is a text, or the list of messages that TRL has for it, and its score is the same in either form. A row
    that a reward cannot score has no score, and the column `failure` says why.

    Args:
        file: Rows with `completion` (or `text`, or a whole chat as `messages`) and perhaps `prompt`; their other
            columns go to the rewards too.
        rewards: As for `load_rewards`.
        output: Where to; replaced if it exists.
        say: Receives progress lines.

    Returns:
        What was done, in a line.

    Raises:
        DataError: A row cannot be read or has no text.
        RewardError: A reward cannot be loaded, or failed for every row.
    """
    rows = [_scored(row) for row in read_rows(file)]
    if not rows:
        raise DataError(f"{file}: has no rows")
    judge = load_rewards(rewards)
    names = sorted({name for row in rows for name in row.values} - _KNOWN)
    lines: list[str] = []
    scores: list[float] = []
    reasons: list[str] = []
    moment = current_moment()  # one for all rows, where a reward's chat template writes the time
    progress = Progress("scoring", len(rows), "texts", say)
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        with clock_at(moment):
            given = _judge(judge, part, names)
        for index, row in enumerate(part):
            score, reason = given.total[index], given.reasons.get(index)
            scores += [] if score is None else [score]
            reasons += [] if reason is None else [f"{row.place}: {reason}"]
            extra = {name: values[index] for name, values in given.extra.items()}
            line = row.values | {"score": score} | ({"failure": reason} if reason else {})
            line |= {"extra": extra} if extra else {}
            lines.append(json.dumps(plain(line), ensure_ascii=False) + "\n")
        progress.advance(len(part))
    if not scores:
        raise RewardError(f"no row could be scored: {reasons[0]}")
    write_file(output, "".join(lines))
    done = (
        f"{output}: {len(scores):,} texts, mean score {statistics.fmean(scores):.3f}, from {min(scores):.3f} to "
        f"{max(scores):.3f}"
    )
    return f"{done}; {len(reasons):,} rows have no score: {safe(reasons[0])}" if reasons else done


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
    said = _text_of(values[name], f"{row.place}: {name}")
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
        raise DataError(f"{where}: a message is nested too deep to be read") from error
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
