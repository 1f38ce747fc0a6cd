"""How a pair is shown to a rater: without its source, and with sides assigned pseudo-randomly."""

from typing import Any, Literal

from klimb.feedback.records import Question
from klimb.feedback.server.markdown import show_markdown
from klimb.feedback.store.queries import digest_of
from klimb.io.show import content_of


def left_of(question: Question, rater: str) -> Literal["first", "second"]:
    """Decide which completion a rater sees on the left: the same one each time, whoever serves the store."""
    digest = digest_of("left", question.pair_id, rater, question.first, question.second)
    return "second" if int(digest[0], 16) % 2 else "first"


def mark_of(question: Question, rater: str) -> str:
    """Stand for what a rater was shown, so that no judgement lands on another pair or on another's sides."""
    return digest_of("shown", question.pair_id, rater, question.prompt, *_sides(question, rater))[:32]


def show_question(question: Question, rater: str) -> dict[str, Any]:
    """Make what the page receives of a question; which completion the store had first stays hidden."""
    prompt = question.prompt
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    left, right = _sides(question, rater)
    return {
        "pair_id": question.pair_id,
        "shown": mark_of(question, rater),
        "prompt": [
            {"role": turn["role"], "html": show_markdown(content_of(turn))}
            for turn in turns
            if content_of(turn).strip()
        ],
        "left": show_markdown(left),
        "right": show_markdown(right),
    }


def _sides(question: Question, rater: str) -> tuple[str, str]:
    if left_of(question, rater) == "first":
        return question.first, question.second
    return question.second, question.first
