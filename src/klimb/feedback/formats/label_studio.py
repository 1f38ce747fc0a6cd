"""Label Studio's exports: tasks with annotations, of pairwise comparisons, choices, rankings and ratings."""

from typing import Any

from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.formats.choices import Candidate, Candidates, find_candidates
from klimb.feedback.formats.fields import Fields, RefusedError, is_empty
from klimb.feedback.formats.texts import checked_rater, completion, read_prompt
from klimb.feedback.formats.trl import TEXTS, join, number
from klimb.feedback.formats.unjudged import pairs_of
from klimb.feedback.records import PairRecord
from klimb.io.show import Text, quote

_ABOUT_TASKS = (
    "total_annotations cancelled_annotations total_predictions comment_count unresolved_comment_count "
    "updated_by last_comment_updated_at comment_authors is_labeled overlap allow_skip agreement "
    "annotators"
)

Judgements = list[Comparison | Rating | PairRecord]


def read_label_studio(fields: Fields) -> Judgements:
    """A task: what stands in `data` is compared, each annotation that was not cancelled says how.

    A task without annotations is a pair to ask about.
    """
    for name in _ABOUT_TASKS.split():
        fields.get(name)
    data = fields.part("data")
    data.get("prompt_text")  # klimb's export has the prompt a second time, as text to be shown
    candidates = _listed(data) or find_candidates(data, any_stem=True)
    single = None if candidates else data.first(*TEXTS)
    if candidates is None and single is None:
        names = ", ".join(map(quote, data)) or "nothing"
        raise RefusedError(f"data: expected answer1 and answer2 (or text1 and text2), got {names}")
    prompt = read_prompt(data)
    if candidates is None:
        text = completion(f"data.{single}", data.get(str(single)))
        candidates = Candidates([Candidate(str(single), "", text)], [])
    elif candidates.before:
        prompt = join(prompt, candidates.before)
    found: Judgements = []
    for name in ("predictions", "drafts"):
        extra = fields.get(name)
        fields.uncounted[name] += len(extra) if isinstance(extra, list) else 0
    for annotation in fields.get("annotations") or []:
        if not isinstance(annotation, dict):
            raise RefusedError(f"malformed: expected annotations that are objects, got {quote(annotation)}")
        found += _annotation(fields, annotation, candidates, prompt)
    if not found and not fields.has("annotations") and len(candidates.texts) > 1:
        return [*pairs_of(candidates, prompt)]
    return found


def _listed(data: Fields) -> Candidates | None:
    """The items of a list that is to be ranked."""
    name = data.first("items", "answers", "responses", "completions")
    items = data.look(name) if name else None
    if not isinstance(items, list) or not all(isinstance(item, dict) and "id" in item for item in items):
        return None
    data.get(str(name))
    texts = [Candidate(str(item["id"]), "", completion(f"data.{name}", _body(item))) for item in items]
    return Candidates(texts, [])


def _body(item: dict[str, Any]) -> Any:
    return next((item[key] for key in ("body", "text", "html", "content") if item.get(key)), None)


def _annotation(
    fields: Fields, annotation: dict[str, Any], candidates: Candidates, prompt: Text
) -> Judgements:
    if annotation.get("was_cancelled"):
        fields.uncounted["cancelled annotations"] += 1
        return []
    reviews = annotation.get("reviews") or []
    if reviews and isinstance(reviews[-1], dict) and reviews[-1].get("accepted") is False:
        fields.uncounted["annotations that a review rejected"] += 1
        return []
    by = annotation.get("completed_by", "")
    by = by.get("email", by.get("id", "")) if isinstance(by, dict) else by
    found: Judgements = []
    for result in annotation.get("result") or []:
        meta = result.get("meta")
        named = meta.get("rater") if isinstance(meta, dict) else None  # as klimb exports it
        rater = checked_rater(by) if named is None else checked_rater(named)
        kind, value = result.get("type"), result.get("value")
        reader = _KINDS.get(kind)
        if reader is None:
            fields.leave(f"annotations[].result of type {quote(kind)}")
        elif not is_empty(value):
            found += reader(value, _in_order(result, candidates), prompt, rater)
    return found


def _in_order(result: dict[str, Any], candidates: Candidates) -> Candidates:
    """The candidates as they were shown: the first that a result names was left."""
    names = result.get("to_name")
    names = names.split(",") if isinstance(names, str) else names
    if not isinstance(names, list):
        return candidates
    texts = {one.name: one for one in candidates.texts}
    shown = [texts[name.strip()] for name in names if isinstance(name, str) and name.strip() in texts]
    return Candidates(shown, candidates.before) if len(shown) == len(texts) else candidates


def _pairwise(value: dict[str, Any], candidates: Candidates, prompt: Text, rater: str) -> Judgements:
    selected = value.get("selected")
    if is_empty(selected):
        return []
    return [*candidates.compare(selected, prompt, rater, "selected")]


def _choices(value: dict[str, Any], candidates: Candidates, prompt: Text, rater: str) -> Judgements:
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise RefusedError(f"choices: expected one, got {quote(choices)}")
    return [*candidates.compare(choices[0], prompt, rater, "choices")]


def _ranker(value: dict[str, Any], candidates: Candidates, prompt: Text, rater: str) -> Judgements:
    ranker = value.get("ranker", value)
    lists = list(ranker.values()) if isinstance(ranker, dict) else [ranker]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise RefusedError(f"ranker: expected one list, best first, got {quote(ranker)}")
    order = [candidates.choose(name) for name in lists[0]]
    if not all(isinstance(one, int) for one in order):
        raise RefusedError(f"ranker: expected ids of the items, got {quote(lists[0])}")
    ranks = [(one, float(rank)) for rank, one in enumerate(order) if isinstance(one, int)]
    return [*candidates.rank(ranks, prompt, rater)]


def _rating(value: dict[str, Any], candidates: Candidates, prompt: Text, rater: str) -> Judgements:
    if len(candidates.texts) != 1:
        raise RefusedError("rating: does not say which of the texts it is of")
    return [Rating(prompt, candidates.texts[0].text, number("rating", value.get("rating")), rater)]


_KINDS = {"pairwise": _pairwise, "choices": _choices, "ranker": _ranker, "rating": _rating}
