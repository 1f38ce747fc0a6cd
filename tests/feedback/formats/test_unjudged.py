"""Rows that nobody has judged become pairs to ask about, where that is what they are."""

import json

import pytest

from klimb.feedback.formats import read_feedback
from klimb.feedback.sources import import_files
from klimb.feedback.store.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "feedback.db") as store:
        yield store


def asked(store):
    """The pairs that the page would ask about."""
    found = []
    while (question := store.next_question(f"rater {len(found)}")) is not None:
        found.append((question.prompt, question.first, question.second))
    return found


UNJUDGED = [
    {"prompt": "p", "left": "a", "right": "b"},
    {"prompt": "p", "left": "a", "right": "b", "preferred": None},
    {"prompt": "p", "left": "a", "right": "b", "preferred": "", "id": 7},
    {"prompt": "p", "response_a": "a", "response_b": "b", "winner": None, "colour": "red"},
]


@pytest.mark.parametrize("row", UNJUDGED)
def test_two_completions_without_a_verdict_are_asked_about(store, write_jsonl, row):
    report = import_files(store, [write_jsonl([row], "in.jsonl")])
    assert report.refused == []
    assert asked(store) == [("p", "a", "b")]
    assert report.lines()[:3] == [
        "1 rows read, 1 without a judgement, 0 refused",
        "1 pairs, 1 of them new",
        f"1 pairs have no judgement here: klimb label --store {store.where} asks about them",
    ]
    assert (
        "nothing was added: the store has all of it already"
        in import_files(store, [store_file(store)]).lines()
    )


def store_file(store):
    return store.where.replace("feedback.db", "in.jsonl")


def test_a_verdict_under_an_unknown_name_is_not_taken_for_none(store, write_jsonl):
    rows = [{"prompt": "p", "left": "a", "right": "b", "my_choice": "left"}, UNJUDGED[0] | {"prompt": "q"}]
    file = write_jsonl(rows, "in.jsonl")
    ((place, reason),) = import_files(store, [file]).refused
    assert place.endswith("in.jsonl:1")
    assert reason == (
        "no known column says which completion is better, and it has 'my_choice'; "
        "if nobody has judged, add --unjudged"
    )
    report = import_files(store, [file], unjudged=True)
    assert (report.refused, dict(report.feedback.unread)) == ([], {"my_choice": 1})
    assert len(asked(store)) == 2


def test_completions_are_a_ranking_unless_they_are_said_to_be_unjudged(store, write_jsonl):
    file = write_jsonl([{"prompt": "p", "completions": ["a", "b", "c"]}], "in.jsonl")
    lines = import_files(store, [file], unjudged=True).lines()
    assert "3 pairs, 3 of them new" in lines
    assert asked(store) == [("p", "a", "b"), ("p", "a", "c"), ("p", "b", "c")]
    assert store.judgements() == []
    lines = import_files(store, [file]).lines()
    assert "3 comparisons, 3 of them new" in lines
    assert any(
        line.startswith("1 rows were read as rankings, best first; if their order means") for line in lines
    )
    assert len(store.judgements()) == 3


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "left": "a", "right": "b", "preferred": "left"},
        {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]},
        {"prompt": "p", "completions": [{"text": "a", "score": 1}, {"text": "b"}]},
    ],
)
def test_a_judgement_among_rows_said_to_be_unjudged_is_refused(store, write_jsonl, row):
    ((_, reason),) = import_files(store, [write_jsonl([UNJUDGED[0], row], "in.jsonl")], unjudged=True).refused
    assert reason.endswith("import this row without --unjudged")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "p", "completions": ["a"]}, "completions: expected a list of at least 2"),
        ({"prompt": "p", "completions": ["a", "b", "a"]}, "the same completion occurs twice: 'a'"),
        ({"prompt": "p", "text": "a"}, "expected completions, or left and right, got 'prompt', 'text'"),
        ({"prompt": "p", "left": "a", "right": "a"}, "the same completion occurs twice"),
    ],
)
def test_rows_that_make_no_pair_are_refused(store, write_jsonl, row, why):
    ((_, reason),) = import_files(
        store, [write_jsonl([UNJUDGED[0] | {"prompt": "q"}, row], "in.jsonl")], unjudged=True
    ).refused
    assert why in reason


def test_a_table_of_completions_is_asked_about(store, tmp_path):
    file = tmp_path / "in.csv"
    file.write_text('prompt,completion_1,completion_2,completion_3\r\n"p, ""q""",a,b,c\r\nr,d,e,\r\n')
    assert import_files(store, [file]).refused == []
    assert asked(store) == [
        ('p, "q"', "a", "b"), ('p, "q"', "a", "c"), ('p, "q"', "b", "c"), ("r", "d", "e"),
    ]  # fmt: skip


def test_a_list_in_a_field_of_a_table_is_asked_about(store, tmp_path):
    file = tmp_path / "in.csv"
    file.write_text('prompt;completions\np;"[""a"", ""b""]"\n', encoding="utf-8-sig")
    assert import_files(store, [file], unjudged=True).refused == []
    assert asked(store) == [("p", "a", "b")]


def test_rows_that_nobody_judged_teach_nothing(tmp_path):
    file = tmp_path / "in.jsonl"
    rows = [UNJUDGED[0], {"prompt": "p", "left": "a", "right": "b", "preferred": "left"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_feedback(file)
    assert (len(found.comparisons), found.num_skipped, found.pairs) == (1, 1, [])


@pytest.mark.parametrize(
    "row",
    [
        {"data": {"prompt": "p", "answer1": "a", "answer2": "b"}, "annotations": []},
        {"fields": {"prompt": "p", "response1": "a", "response2": "b"}, "responses": {}},
    ],
)
def test_what_nobody_annotated_in_another_tool_is_asked_about_here(store, write_jsonl, row):
    report = import_files(store, [write_jsonl([row], "in.jsonl")])
    assert (report.refused, report.feedback.num_skipped) == ([], 1)
    assert asked(store) == [("p", "a", "b")]


def test_what_was_cancelled_or_is_a_draft_is_not_asked_about(store, write_jsonl):
    said = [{"result": [], "was_cancelled": True}]
    rows = [
        {"data": {"prompt": "p", "answer1": "a", "answer2": "b"}, "annotations": said},
        {
            "fields": {"prompt": "p", "response1": "a", "response2": "b"},
            "responses": {"preference": [{"value": "response1", "user_id": "u", "status": "draft"}]},
        },
        UNJUDGED[0] | {"prompt": "q"},
    ]
    report = import_files(store, [write_jsonl(rows, "in.jsonl")])
    assert report.feedback.num_skipped == 3
    assert [prompt for prompt, _, _ in asked(store)] == ["q"]
