"""Argilla's exports of both versions: labels, rankings, ratings; drafts and suggestions do not count."""

import pytest

from klimb.feedback.comparison import Comparison, Rating

FIELDS = {"prompt": "p", "response1": "a", "response2": "b"}


def record(responses, fields=FIELDS, **more):
    about = {
        "id": "1",
        "status": "completed",
        "metadata": {"n": 1},
        "suggestions": {},
        "vectors": {},
        "_server_id": "x",
    }
    return {**about, "fields": fields, "responses": responses, **more}


def answered(value, question="preference", **more):
    return record({question: [{"value": value, "user_id": "u1", **more}]})


def v1(value, status="submitted", question="preference"):
    return record(
        [{"user_id": "u1", "status": status, "values": {question: {"value": value}}}], external_id=None
    )


def said(found):
    return [(c.left, c.right, c.preferred, c.rater) for c in found.comparisons]


@pytest.mark.parametrize("make", [answered, v1])
@pytest.mark.parametrize(
    ("value", "preferred"),
    [
        ("response1", "left"),
        ("Response 1", "left"),
        ("response-2", "right"),
        ("Response 2 is better", "right"),
        ("2", "right"),
        ("A", "left"),
        ("Tie", "tie"),
        (["response2", "response1"], "right"),
        ([{"rank": 2, "value": "response1"}, {"rank": 1, "value": "response2"}], "right"),
        ([{"rank": 1, "value": "response-1"}, {"rank": 1, "value": "response-2"}], "tie"),
        ({"rank": [1, 2], "value": ["response1", "response2"]}, "left"),
    ],
)
def test_labels_and_rankings_by_any_title(read, make, value, preferred):
    assert said(read(make(value), "x.json")) == [("a", "b", preferred, "u1")]


@pytest.mark.parametrize("status", ["draft", "discarded"])
def test_drafts_and_discarded_responses_do_not_count_and_that_is_said(read, status):
    for row in (v1("response1", status), answered("response1", status=status)):
        found = read(row, "x.json")
        assert (found.comparisons, found.num_skipped, found.refused) == ([], 1, [])
        assert f"not counted: 1 {status} responses" in found.summary


def test_several_raters_of_whom_one_has_not_submitted(read):
    said_by = [
        ("u1", "submitted", "response1"),
        ("u2", "draft", "response1"),
        ("u3", "submitted", "response2"),
    ]
    responses = [
        {"user_id": user, "status": status, "values": {"preference": {"value": value}}}
        for user, status, value in said_by
    ]
    assert said(read(record(responses), "x.json")) == [("a", "b", "left", "u1"), ("a", "b", "right", "u3")]


def test_suggestions_of_models_do_not_count(read):
    for suggestions in (
        {"preference": {"value": "response1", "agent": "m"}},
        [{"question_name": "preference"}],
    ):
        found = read(record({}, suggestions=suggestions), "x.json")
        assert (found.comparisons, found.num_skipped) == ([], 1)
        assert "not counted: 1 suggestions of models" in found.summary


def test_a_label_that_means_nothing_is_refused_by_name(reason):
    why = reason(answered("Response 3"), "x.json")
    assert "preference: expected left, right or tie, or the name of a candidate (response1, response2)" in why
    assert "got 'Response 3'" in why
    assert "preference: expected a ranking of response1, response2" in reason(answered(["x", "y"]), "x.json")
    assert "ranks a candidate twice" in reason(answered(["response1", "response1"]), "x.json")


def test_questions_about_something_else_are_named(read, reason):
    responses = {
        "preference": [{"value": "response1", "user_id": "u1"}],
        "rationale": [{"value": "because it is short", "user_id": "u1"}],
    }
    found = read(record(responses), "x.json")
    assert said(found) == [("a", "b", "left", "u1")]
    assert set(found.unread) == {"responses.rationale"}
    why = reason(record({"safety": [{"value": 3}], "rationale": [{"value": "none"}]}), "x.json")
    assert why == "responses: no answer says which candidate is better: 'safety': 3, 'rationale': 'none'"


def test_ratings_of_each_response_or_of_the_only_one(read):
    responses = {"rating-1": [{"value": 5, "user_id": "u"}], "rating-2": [{"value": 2, "user_id": "u"}]}
    assert read(record(responses), "x.json").ratings == [
        Rating("p", "a", 5.0, "u"),
        Rating("p", "b", 2.0, "u"),
    ]
    single = record(
        {"quality": [{"value": 4, "user_id": "u"}]}, fields={"instruction": "p", "completion": "a"}
    )
    assert read(single, "x.json").ratings == [Rating("p", "a", 4.0, "u")]


def test_the_best_of_three(read):
    fields = FIELDS | {"response3": "c"}
    found = read(record({"best": [{"value": "response3", "user_id": "u"}]}, fields), "x.json")
    assert found.comparisons == [
        Comparison("p", "c", "a", "left", "u"),
        Comparison("p", "c", "b", "left", "u"),
    ]


def test_fields_under_other_names(read):
    fields = {"question": "p", "text-a": "a", "text-b": "b"}
    found = read(record({"which": [{"value": "text-b", "user_id": "u"}]}, fields), "x.json")
    assert found.comparisons == [Comparison("p", "a", "b", "right", "u")]


def test_flat_columns_of_the_second_version(read):
    row = FIELDS | {
        "preference.responses": ["Response 2", "Response 1", "Response 1"],
        "preference.responses.users": ["u1", "u2", "u3"],
        "preference.responses.status": ["submitted", "draft", "submitted"],
        "preference.suggestion": "Response 1",
        "preference.suggestion.score": 0.9,
        "preference.suggestion.agent": "m",
        "_server_id": "x",
    }
    found = read(row)
    assert said(found) == [("a", "b", "right", "u1"), ("a", "b", "left", "u3")]
    assert found.uncounted == {"draft responses": 1, "suggestions of models": 1}
    assert not found.unread


@pytest.mark.parametrize(
    "answers",
    [
        [{"user_id": "u1", "value": "response2", "status": "submitted"}],
        {"user_id": ["u1"], "value": ["response2"], "status": ["submitted"]},
    ],
)
def test_flat_columns_of_the_first_version(read, answers):
    row = FIELDS | {
        "preference": answers,
        "preference-suggestion": None,
        "external_id": None,
        "metadata": "{}",
    }
    assert said(read(row)) == [("a", "b", "right", "u1")]
