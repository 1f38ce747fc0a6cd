"""Feedback in other tools' formats: what is read, what is refused and why, what is written."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klimb import KlimbError
from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.formats import read_feedback

USER = [{"role": "user", "content": "hi"}]


def said(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="feedback.jsonl"):
        file = tmp_path / name
        if name.endswith(".json"):
            file.write_text(json.dumps(list(rows)))
        else:
            file.write_text(
                "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
            )
        return file

    return write


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, Comparison("p", "a", "b", "left")),
        ({"prompt": USER, "chosen": said("a"), "rejected": said("b")}, Comparison(USER, "a", "b", "left")),
        ({"chosen": USER + said("a"), "rejected": USER + said("b")}, Comparison(USER, "a", "b", "left")),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"},
            Comparison(USER, "a", "b", "left"),
        ),
        (
            {"messages": [{"role": "prompter", "content": "hi"}], "chosen": "a", "rejected": "b"},
            Comparison(USER, "a", "b", "left"),
        ),
        (
            {"prompt": "p", "left": "a", "right": "b", "preferred": "tie", "rater": "ann"},
            Comparison("p", "a", "b", "tie", "ann"),
        ),
        (
            {"prompt": "p", "left": "a", "right": "b", "preferred": "right"},
            Comparison("p", "a", "b", "right"),
        ),
    ],
)
def test_a_comparison_in_each_format(write, row, expected):
    assert read_feedback(write(row)).comparisons == [expected]


def test_a_ranking_is_every_pair_in_it(write):
    found = read_feedback(write({"prompt": "p", "completions": ["a", "b", "c"]})).comparisons
    assert [(c.left, c.right, c.preferred) for c in found] == [
        ("a", "b", "left"),
        ("a", "c", "left"),
        ("b", "c", "left"),
    ]


@pytest.mark.parametrize(("text", "score"), [("text", "score"), ("completion", "rating")])
def test_ratings(write, text, score):
    assert read_feedback(write({text: "a", score: "1.5"})).ratings == [Rating("", "a", 1.5)]


def test_exports_of_label_studio_and_argilla(write):
    studio = {
        "data": {"prompt": "p", "answer1": "a", "answer2": "b"},
        "annotations": [
            {
                "completed_by": {"email": "x@y"},
                "result": [{"type": "pairwise", "value": {"selected": "right"}}],
            },
            {"completed_by": 7, "result": []},
        ],
    }
    argilla = {
        "fields": {"prompt": "p", "response1": "a", "response2": "b"},
        "responses": {"preference": [{"value": "response1", "user_id": "u"}]},
    }
    unjudged = {"data": {"answer1": "a", "answer2": "b"}, "annotations": []}
    found = read_feedback(write(studio, argilla, unjudged, name="export.json"))
    assert found.comparisons == [
        Comparison("p", "a", "b", "right", "x@y"),
        Comparison("p", "a", "b", "left", "u"),
    ]
    assert found.num_skipped == 1
    assert found.summary == "3 rows read: 2 comparisons, 1 without a judgement, 0 refused"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ({"prompt": "p"}, "no known format has the columns 'prompt'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "the two completions are the same"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "rejected: it is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected: expected text or one message"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt: expected text or a list of messages"),
        ({"left": "a", "right": "b", "preferred": "up"}, "preferred: expected left, right or tie"),
        ({"completions": ["a"]}, "expected a list of at least 2"),
        ({"completions": ["a", "a"]}, "occurs twice"),
        ({"text": "a", "score": "high"}, "score: expected a number"),
        ({"text": "a", "score": float("nan")}, "score: expected a finite number"),
        ({"data": {"x": 1}, "annotations": []}, "data: expected answer1 and answer2"),
        ({"data": {"answer1": "a", "answer2": "b"}, "annotations": ["?"]}, "malformed"),
        ({"fields": {"response1": "a"}, "responses": {}}, "fields: expected response1 and response2"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "differ before",
        ),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: c"}, "ends with an answer"),
        ({"text": "\ud800", "score": 1}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line_and_the_rest_kept(write, row, reason):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    file = write(good, row, good)
    found = read_feedback(file)
    assert len(found.comparisons) == 2
    ((place, why),) = found.refused
    assert place == f"{file}:2"
    assert reason in why


def test_a_file_with_nothing_usable_says_why(write):
    with pytest.raises(KlimbError, match=r"no judgement could be read: 1 rows read.*:1: preferred: expected"):
        read_feedback(write({"left": "a", "right": "b", "preferred": "up"}))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(KlimbError, match=r"none\.jsonl: no such file"):
        read_feedback(tmp_path / "none.jsonl")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(KlimbError, match="expected a list of objects"):
        read_feedback(tmp_path / "x.json")


LEAF = st.none() | st.booleans() | st.floats() | st.text(max_size=4)
JSON = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(st.text(max_size=4), LEAF, max_size=3)
COLUMNS = ["prompt", "chosen", "rejected", "left", "right", "preferred", "completions", "completion", "text"]
COLUMNS += ["score", "rating", "data", "annotations", "fields", "responses", "messages"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=5), max_size=4))
def test_whatever_stands_in_a_row_it_is_kept_skipped_or_refused(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        found = read_feedback(file)
    except KlimbError:
        return
    assert found.num_rows == len(rows)
    assert len(found.comparisons) + len(found.ratings) + len(found.refused) + found.num_skipped >= len(rows)
