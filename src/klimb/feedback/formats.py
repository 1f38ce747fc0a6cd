"""Files of feedback: TRL's preferences, ratings, rankings, Anthropic's transcripts, Label Studio, Argilla.

Which it is shows in the columns of each row; what cannot be read is refused with its place and reason, and
the rest is kept.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from klimb.errors import DataError
from klimb.feedback.comparison import Comparison, Preferred, Rating, ranked
from klimb.lines import parse_json
from klimb.rows import Row, read_rows
from klimb.text import Message, Text, cut, problem_with, quote, surrogate_in

_LONGEST_RATER = 80  # characters, as a store keeps them
_ROLES = {"human": "user", "prompter": "user"}  # other names of a role
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_PREFERRED: dict[str, Preferred] = {
    "left": "left", "right": "right", "tie": "tie", "response1": "left", "response2": "right",
    "response-1": "left", "response-2": "right", "equal": "tie", "draw": "tie", "both": "tie",
}  # fmt: skip


@dataclass
class Feedback:
    """What was read from files of feedback.

    Attributes:
        comparisons: Judgements of pairs.
        ratings: Numbers given to single texts.
        num_rows: Rows that were read.
        num_skipped: Rows in which nobody had said anything yet, or nothing that helps.
        refused: Place and reason of each row that could not be used.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    ratings: list[Rating] = field(default_factory=list)
    num_rows: int = 0
    num_skipped: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What was read, in a line."""
        kept = [f"{len(self.comparisons):,} comparisons"] if self.comparisons or not self.ratings else []
        kept += [f"{len(self.ratings):,} ratings"] if self.ratings else []
        said = f"{self.num_rows:,} rows read: {' and '.join(kept)}"
        said += f", {self.num_skipped:,} without a judgement" if self.num_skipped else ""
        return said + f", {len(self.refused):,} refused"


class _RefusedError(ValueError):
    """A row that cannot be used, and why."""


def read_feedback(*files: Path) -> Feedback:
    """Read files of feedback, each row in whichever format it has.

    Args:
        files: .jsonl, .csv, .parquet, or .json with a list of objects, as Label Studio and Argilla export.

    Raises:
        DataError: A file is missing or as a whole not readable, or no row of them could be used; the
            message has the first reasons.
    """
    feedback = Feedback()
    for file in files:
        for row in _rows_of(Path(file)):
            feedback.num_rows += 1
            _take(row, feedback)
    if not feedback.comparisons and not feedback.ratings:
        reasons = "; ".join(f"{place}: {reason}" for place, reason in feedback.refused[:3])
        names = ", ".join(map(str, files))
        raise DataError(
            f"{names}: no judgement could be read: {feedback.summary}; {reasons or 'nothing in it'}"
        )
    return feedback


def _rows_of(file: Path) -> Iterator[Row]:
    if file.suffix.lower() != ".json":
        yield from read_rows(file)
        return
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    try:
        items = parse_json(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    if not isinstance(items, list):
        raise DataError(f"{file}: expected a list of objects, got {quote(items)}")
    for number, item in enumerate(items, start=1):
        if isinstance(item, dict):
            yield Row(f"{file}, item {number}", item)
        else:
            yield Row(f"{file}, item {number}", {}, f"expected an object, got {quote(item)}")


def _take(row: Row, feedback: Feedback) -> None:
    try:
        if row.problem:
            raise _RefusedError(row.problem)
        found = _reader_of(row.values)(row.values)
    except _RefusedError as refused:
        feedback.refused.append((row.place, str(refused)))
        return
    except (
        AttributeError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:  # deep inside something is of another kind
        feedback.refused.append((row.place, f"malformed: {cut(str(error))}"))
        return
    feedback.num_skipped += not found
    for judgement in found:
        if isinstance(judgement, Rating):
            feedback.ratings.append(judgement)
        else:
            feedback.comparisons.append(replace(judgement, place=row.place))


def _reader_of(values: dict[str, Any]) -> Callable[[dict[str, Any]], list[Comparison] | list[Rating]]:
    for columns, reader in _READERS:
        if columns <= values.keys():
            return reader
    raise _RefusedError(
        f"no known format has the columns {', '.join(map(quote, values)) or 'none'}; expected chosen and rejected, "
        "left, right and preferred, completions best first, completion (or text) and score, or an export of Label "
        "Studio or Argilla"
    )


def _preference(values: dict[str, Any]) -> list[Comparison]:
    chosen, rejected = values["chosen"], values["rejected"]
    prompt = values.get("prompt", values.get("messages"))
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str) and HUMAN in chosen:
        turns, other = _transcript(chosen), _transcript(rejected)
        if turns[:-1] != other[:-1]:
            raise _RefusedError("chosen and rejected are transcripts that differ before their last answer")
        prompt, chosen, rejected = turns[:-1], turns[-1:], other[-1:]
    elif prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    prompt = _prompt(prompt)
    return [
        _compared(prompt, _completion("chosen", chosen), _completion("rejected", rejected), "left", values)
    ]


def _judged_pair(values: dict[str, Any]) -> list[Comparison]:
    said = values["preferred"]
    if said is None or said in ("skip", "both_bad", ""):
        return []
    if said not in _PREFERRED:
        raise _RefusedError(f"preferred: expected left, right or tie, got {quote(said)}")
    left, right = _completion("left", values["left"]), _completion("right", values["right"])
    return [_compared(_prompt(values.get("prompt")), left, right, _PREFERRED[said], values)]


def _ranking(values: dict[str, Any]) -> list[Comparison]:
    completions = values["completions"]
    if not isinstance(completions, list) or len(completions) < 2:
        raise _RefusedError(
            f"completions: expected a list of at least 2, best first, got {quote(completions)}"
        )
    texts = [_completion("completions", completion) for completion in completions]
    if len(set(texts)) != len(texts):
        raise _RefusedError("completions: the same text stands in it twice")
    return ranked(_prompt(values.get("prompt")), texts, _rater(values))


def _rating(values: dict[str, Any]) -> list[Rating]:
    text = values.get("completion", values.get("text"))
    score = values.get("score", values.get("rating"))
    if score is None or score == "":
        return []
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError) as error:
        raise _RefusedError(f"score: expected a number, got {quote(score)}") from error
    if not math.isfinite(number):
        raise _RefusedError(f"score: expected a finite number, got {number}")
    return [Rating(_prompt(values.get("prompt")), _completion("completion", text), number, _rater(values))]


def _label_studio(values: dict[str, Any]) -> list[Comparison]:
    data = values["data"]
    if not isinstance(data, dict):
        raise _RefusedError(f"data: expected an object, got {quote(data)}")
    pair = next(((a, b) for a, b in _PAIRS_OF_LABEL_STUDIO if a in data and b in data), None)
    if pair is None:
        raise _RefusedError(
            f"data: expected answer1 and answer2 (or text1 and text2), got {', '.join(map(quote, data))}"
        )
    left, right = (_completion(name, data[name]) for name in pair)
    prompt = _prompt(data.get("prompt"))
    found: list[Comparison] = []
    for annotation in values["annotations"] or []:
        rater = annotation.get("completed_by", "")
        rater = rater.get("email", rater.get("id", "")) if isinstance(rater, dict) else rater
        for result in annotation.get("result", []):
            selected = result.get("value", {}).get("selected")
            if result.get("type") == "pairwise" and selected in ("left", "right"):
                found.append(_compared(prompt, left, right, selected, {"rater": rater}))
    return found


def _argilla(values: dict[str, Any]) -> list[Comparison]:
    fields, responses = values["fields"], values["responses"]
    if not isinstance(fields, dict) or not {"response1", "response2"} <= fields.keys():
        raise _RefusedError("fields: expected response1 and response2")
    left, right = (_completion(name, fields[name]) for name in ("response1", "response2"))
    prompt = _prompt(fields.get("prompt"))
    answers = responses.get("preference", []) if isinstance(responses, dict) else []
    found: list[Comparison] = []
    for answer in answers:
        said = answer.get("value")
        if said in _PREFERRED:
            rater = {"rater": answer.get("user_id", "")}
            found.append(_compared(prompt, left, right, _PREFERRED[said], rater))
    return found


_PAIRS_OF_LABEL_STUDIO = (
    ("answer1", "answer2"),
    ("text1", "text2"),
    ("left", "right"),
    ("response1", "response2"),
)
_READERS: list[tuple[set[str], Callable[[dict[str, Any]], Any]]] = [
    ({"chosen", "rejected"}, _preference),
    ({"left", "right", "preferred"}, _judged_pair),
    ({"data", "annotations"}, _label_studio),
    ({"fields", "responses"}, _argilla),
    ({"completions"}, _ranking),
    ({"completion", "score"}, _rating),
    ({"completion", "rating"}, _rating),
    ({"text", "score"}, _rating),
    ({"text", "rating"}, _rating),
]


def _compared(
    prompt: Text, left: str, right: str, preferred: Preferred, values: dict[str, Any]
) -> Comparison:
    if left == right:
        raise _RefusedError(f"the two completions are the same: {cut(left)!r}")
    return Comparison(prompt, left, right, preferred, _rater(values))


def _rater(values: dict[str, Any]) -> str:
    rater = str(values.get("rater") or values.get("annotator") or "")
    if surrogate_in(rater) or "\0" in rater or len(rater) > _LONGEST_RATER:
        raise _RefusedError(
            f"rater: expected a name of at most {_LONGEST_RATER} characters, got {quote(rater)}"
        )
    return rater


def _prompt(prompt: Any) -> Text:
    if prompt is None or prompt in ("", []):
        return ""
    if problem := problem_with(prompt):
        raise _RefusedError(f"prompt: {problem}")
    if isinstance(prompt, str):
        return prompt
    return [{"role": _ROLES.get(turn["role"], turn["role"]), "content": turn["content"]} for turn in prompt]


def _completion(name: str, completion: Any) -> str:
    """The text of a completion, which may be one message of the assistant."""
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        completion = completion[0].get("content")
    if not isinstance(completion, str):
        raise _RefusedError(f"{name}: expected text or one message, got {quote(completion)}")
    if problem := problem_with(completion):
        raise _RefusedError(f"{name}: {problem}")
    return completion


def _transcript(text: str) -> list[Message]:
    """Anthropic's transcripts: turns that begin with Human: and Assistant:."""
    turns: list[Message] = []
    for part in text.split(HUMAN)[1:]:
        human, *answers = part.split(ASSISTANT)
        turns.append({"role": "user", "content": human.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    if not turns or turns[-1]["role"] != "assistant":
        raise _RefusedError(
            f"expected a transcript that ends with an answer of the assistant, got {cut(text)}"
        )
    return turns
