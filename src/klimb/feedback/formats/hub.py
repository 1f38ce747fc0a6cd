"""Pairs as the data sets of the hub have them: two answers under similar names, and the verdict."""

import re
from typing import Any

from klimb.data.lines import parse_json
from klimb.feedback.comparison import Comparison, Preferred, Rating
from klimb.feedback.formats.choices import VERDICTS, Candidate, Candidates, find_candidates
from klimb.feedback.formats.fields import Fields, RefusedError
from klimb.feedback.formats.texts import checked_prompt, completion, read_prompt, read_rater
from klimb.feedback.formats.trl import join, number
from klimb.io.show import Text, quote

STRENGTHS = ("preference_strength", "overall_preference")  # HelpSteer2 and 3: below 0 is the first, −3 to 3
_WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
VERDICT_COLUMNS = (*VERDICTS, *STRENGTHS, _WINNERS[0], "score_0", "labels")
_NUMBERS = r"(score|rating|reward)s?"


def read_pair(fields: Fields) -> list[Comparison]:
    """Two or more answers and a verdict: PKU-SafeRLHF, HelpSteer, Chatbot Arena, WebGPT, SHP, AlpacaFarm and such."""
    verdict = fields.first(*VERDICTS)
    if all(name in fields for name in _WINNERS):
        return _arena(fields)
    candidates = _candidates(fields)
    prompt = _prompt(fields, candidates)
    rater = read_rater(fields)
    if verdict is not None:
        said = fields.get(verdict)
        if candidates.choose(said) == "skip":
            fields.uncounted[f"rows with {verdict} {said!r}"] += said not in ("skip",)
            return []
        return candidates.compare(said, prompt, rater, verdict)
    side = _side_of_number(fields)
    return [] if side is None else [candidates.pair(0, 1, side, prompt, rater)]


def read_numbered(fields: Fields) -> list[Comparison] | None:
    """Answers with a number for each, such as `score_a` and `score_b`, or a label that names one.

    None where there is neither. A label that is a number says nothing of two texts: it may be that they mean the same.
    """
    if not any(re.search(rf"label|{_NUMBERS}", str(name), re.IGNORECASE) for name in fields):
        return None
    candidates = find_candidates(fields)
    if candidates is None:
        return None
    label = fields.look("label")
    if isinstance(label, str) and not label.strip().isdigit() and candidates.choose(label) is not None:
        prompt = _prompt(fields, candidates)
        return candidates.compare(fields.get("label"), prompt, read_rater(fields), "label")
    columns = [_number_of(fields, one) for one in candidates.texts]
    if not all(columns):
        return None
    prompt = _prompt(fields, candidates)
    values = [number(str(name), fields.get(str(name))) for name in columns]
    return candidates.rank(
        [(place, -value) for place, value in enumerate(values)], prompt, read_rater(fields)
    )


def _number_of(fields: Fields, one: Candidate) -> str | None:
    """The column that has a candidate's number."""
    forms = f"{_NUMBERS}[ _.-]?{re.escape(one.suffix)}|{re.escape(one.name)}[ _.-]{_NUMBERS}"
    names = [name for name in fields if re.fullmatch(forms, str(name), re.IGNORECASE) and fields.has(name)]
    return names[0] if len(names) == 1 else None


def read_summaries(fields: Fields) -> list[Comparison] | list[Rating]:
    """OpenAI's summaries of posts: two of them and the number of the better one, or one with its ratings."""
    info = fields.part("info")
    name = info.first("post", "article")
    prompt: Text = "" if name is None else checked_prompt(f"info.{name}", info.get(name))
    rater = read_rater(fields)
    if not fields.has("summaries"):
        summary = fields.part("summary")
        text, axes = completion("summary.text", summary.get("text")), summary.part("axes")
        return [Rating(prompt, text, number("summary.axes.overall", axes.get("overall")), rater)]
    texts: list[Candidate] = []
    for place, item in enumerate(fields.get("summaries")):
        part = fields.item("summaries", item)
        texts.append(Candidate(f"summaries[{place}]", str(place), completion("summaries", part.get("text"))))
        for about in ("policy", "note"):
            part.get(about)
    fields.get("extra")
    return Candidates(texts, []).compare(fields.get("choice"), prompt, rater, "choice")


def _side_of_number(fields: Fields) -> Preferred | None:
    """What a number says of two answers; None where there is none."""
    strength = fields.first(*STRENGTHS)
    if strength is not None:
        value = number(strength, fields.get(strength))
        if not -3 <= value <= 3:
            raise RefusedError(f"{strength}: expected a number from −3 to 3, got {value:g}")
        return _side(-value)
    if "human_ref_A" in fields and "labels" in fields:
        label = fields.get("labels")
        if label not in (0, 1):
            raise RefusedError(
                f"labels: expected 1 where human_ref_A is preferred, 0 otherwise, got {quote(label)}"
            )
        return "left" if label else "right"
    if fields.has("score_0") and fields.has("score_1"):
        return _side(number("score_0", fields.get("score_0")) - number("score_1", fields.get("score_1")))
    return None


def _candidates(fields: Fields) -> Candidates:
    candidates = find_candidates(fields)
    if candidates is None:
        raise RefusedError(f"no two columns hold the answers; it has {', '.join(map(quote, fields))}")
    return candidates


def _side(gap: float) -> Preferred:
    return "left" if gap > 0 else "right" if gap < 0 else "tie"


def _prompt(fields: Fields, candidates: Candidates) -> Text:
    prompt = read_prompt(fields)
    return join(prompt, candidates.before) if candidates.before else prompt


def _arena(fields: Fields) -> list[Comparison]:
    """Chatbot Arena as on Kaggle: lists of turns written as JSON, and a column for each outcome."""
    said = [fields.get(name) for name in _WINNERS]
    won = [place for place, value in enumerate(said) if value in (1, True, "1", "1.0", "true", "True")]
    if len(won) != 1:
        raise RefusedError(f"{', '.join(_WINNERS)}: expected one of them to be 1, got {quote(said)}")
    turns = [_turns(name, fields.get(name)) for name in ("prompt", "response_a", "response_b")]
    if len({len(part) for part in turns}) != 1:
        raise RefusedError("prompt, response_a and response_b: expected as many turns in each")
    if len(turns[0]) != 1:
        raise RefusedError(
            f"prompt: has {len(turns[0])} turns, in which the answers before the last differ; one turn can be compared"
        )
    (prompt,), (left,), (right,) = turns
    pair = find_candidates(Fields({"response_a": left, "response_b": right}))
    if pair is None:
        raise RefusedError("response_a and response_b: expected texts")
    outcome: Preferred = ("left", "right", "tie")[won[0]]  # pyright: ignore[reportAssignmentType]
    return [pair.pair(0, 1, outcome, checked_prompt("prompt", prompt), read_rater(fields))]


def _turns(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            parsed = parse_json(value)
        except (ValueError, RecursionError):
            return [value]
        return parsed if isinstance(parsed, list) and parsed else [value]
    if not isinstance(value, list) or not value:
        raise RefusedError(f"{name}: expected a list of turns, got {quote(value)}")
    return value
