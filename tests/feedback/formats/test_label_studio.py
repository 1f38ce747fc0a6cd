"""Label Studio's exports: what is skipped, drafted or predicted, and choices by any name."""

import pytest

from klimb.feedback.comparison import Comparison, Rating

DATA = {"prompt": "p", "answer1": "a", "answer2": "b"}


def pairwise(selected, to_name="answer1,answer2"):
    return {"type": "pairwise", "from_name": "pw", "to_name": to_name, "value": {"selected": selected}}


def task(*annotations, data=DATA, **more):
    return {
        "id": 1,
        "data": data,
        "annotations": list(annotations),
        "total_annotations": 1,
        "project": 3,
        **more,
    }


def by(rater, *results, **more):
    return {
        "id": 5,
        "completed_by": rater,
        "was_cancelled": False,
        "ground_truth": False,
        "result": list(results),
        **more,
    }


def said(found):
    return [(c.left, c.right, c.preferred, c.rater) for c in found.comparisons]


def test_a_skipped_annotation_does_not_count_and_that_is_said(read):
    row = task(by(1, pairwise("left"), was_cancelled=True), by(2, pairwise("right")))
    found = read(row, "x.json")
    assert said(found) == [("a", "b", "right", "2")]
    assert "not counted: 1 cancelled annotations" in found.summary
    found = read(task(by(1, pairwise("left"), was_cancelled=True)), "x.json")
    assert (found.comparisons, found.num_skipped) == ([], 1)


def test_predictions_drafts_and_rejected_annotations_do_not_count(read):
    row = task(
        by(1, pairwise("left"), ground_truth=True),
        by(2, pairwise("right"), reviews=[{"accepted": False}]),
        predictions=[{"result": [pairwise("right")]}],
        drafts=[{"result": [pairwise("right")]}, {"result": []}],
    )
    found = read(row, "x.json")
    assert said(found) == [("a", "b", "left", "1")]
    assert "1 annotations that a review rejected, 2 drafts, 1 predictions" in found.summary
    assert not found.unread


@pytest.mark.parametrize(
    ("selected", "preferred"),
    [
        ("left", "left"),
        ("right", "right"),
        ("answer2", "right"),
        ("Answer 1", "left"),
        ("tie", "tie"),
        ("B", "right"),
    ],
)
def test_choices_by_other_names(read, selected, preferred):
    assert said(read(task(by(1, pairwise(selected))), "x.json")) == [("a", "b", preferred, "1")]
    choice = {"type": "choices", "value": {"choices": [selected]}}
    assert said(read(task(by(1, choice)), "x.json")) == [("a", "b", preferred, "1")]


def test_left_is_what_was_shown_left(read):
    row = task(by(1, pairwise("left", ["answer2", "answer1"])))
    assert said(read(row, "x.json")) == [("b", "a", "left", "1")]


def test_a_choice_that_means_nothing_is_refused_by_name(reason):
    why = reason(task(by(1, pairwise("middle"))), "x.json")
    assert (
        "selected: expected left, right or tie, or the name of a candidate (answer1, answer2), got 'middle'"
        in why
    )


@pytest.mark.parametrize(
    "data",
    [
        {"question": "p", "answer1": "a", "answer2": "b"},
        {"instruction": "p", "response_a": "a", "response_b": "b"},
        {"prompt": "p", "model_one": "a", "model_two": "b"},
        {"input": "p", "bot-1": "a", "bot-2": "b", "source": "web"},
    ],
)
def test_data_under_other_names(read, data):
    found = read(task(by({"email": "x@y"}, pairwise("right", "l,r")), data=data), "x.json")
    assert found.comparisons == [Comparison("p", "a", "b", "right", "x@y")]
    assert not found.unread


def test_data_that_is_not_understood_is_named(read, reason):
    found = read(task(by(1, pairwise("left")), data=DATA | {"rubric": "be kind"}), "x.json")
    assert found.unread == {"data.rubric": 1}
    assert "expected answer1 and answer2 (or text1 and text2), got 'one', 'other'" in reason(
        task(by(1, pairwise("left")), data={"one": "a", "other": "b"}), "x.json"
    )


def test_results_of_other_kinds_are_named_beside_the_choice(read):
    comment = {"type": "textarea", "from_name": "why", "value": {"text": ["because"]}}
    found = read(task(by(1, pairwise("left"), comment)), "x.json")
    assert said(found) == [("a", "b", "left", "1")]
    assert found.unread == {"annotations[].result of type 'textarea'": 1}


def test_a_ranking_of_items(read, reason):
    items = [{"id": f"i{n}", "title": "t", "body": text} for n, text in enumerate("abc")]
    ranker = {"type": "ranker", "value": {"ranker": {"rank": ["i2", "i0", "i1"]}}}
    found = read(task(by(1, ranker), data={"prompt": "p", "items": items}), "x.json")
    assert said(found) == [("a", "b", "left", "1"), ("a", "c", "right", "1"), ("b", "c", "right", "1")]
    buckets = {"type": "ranker", "value": {"ranker": {"good": ["i2"], "bad": ["i0", "i1"]}}}
    why = reason(task(by(1, buckets), data={"prompt": "p", "items": items}), "x.json")
    assert why.startswith("ranker: expected one list, best first")


def test_a_rating_of_one_text(read):
    rating = {"type": "rating", "value": {"rating": 4}}
    found = read(task(by(7, rating), data={"prompt": "p", "response": "a"}), "x.json")
    assert found.ratings == [Rating("p", "a", 4.0, "7")]
