"""Judgements written in the formats of other tools, and read again."""

import json

import pytest

from klimb.errors import DataError
from klimb.feedback.comparison import Comparison
from klimb.feedback.export import EXPORTS, count_left_out, export_file, export_judgements
from klimb.feedback.formats import read_feedback
from klimb.feedback.records import Candidate, Judgement

USER = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "ü"},
]


def said(number, preferred, prompt="p", rater="ann", pair_id=None):
    return Judgement(
        id=number, pair_id=pair_id or number, prompt=prompt, first=Candidate(f"a{number}", {"model": "m"}),
        second=Candidate(f"b{number} ü", {}), preferred=preferred, rater=rater, shown_left="second", seconds=2.5,
        note="why", judged_at=1.5,
    )  # fmt: skip


def all_of(prompt):
    choices = ("first", "second", "tie", "both_bad", "skip")
    return [said(number, choice, prompt) for number, choice in enumerate(choices, start=1)]


DECIDED = [("a1", "b1 ü", "left"), ("b2 ü", "a2", "left")]
SIDES = [("a1", "b1 ü", "left"), ("a2", "b2 ü", "right")]
READ_AGAIN = {
    "comparisons": [*SIDES, ("a3", "b3 ü", "tie")],
    "preferences": DECIDED,
    "transcripts": DECIDED,
    "label-studio": SIDES,
    "argilla": [*SIDES, ("a3", "b3 ü", "tie")],
}


@pytest.mark.parametrize("form", EXPORTS)
@pytest.mark.parametrize("prompt", ["p", USER])
def test_what_is_written_is_read_again(form, prompt, tmp_path):
    file = tmp_path / f"out{EXPORTS[form].suffix}"
    export_file(all_of(prompt), form, file)
    found = read_feedback(file)
    if form == "transcripts" and prompt == "p":  # which know no other prompt
        prompt = [{"role": "user", "content": "p"}]
    rater = "" if form in ("preferences", "transcripts") else "ann"
    assert found.comparisons == [Comparison(prompt, *row, rater) for row in READ_AGAIN[form]]
    assert found.refused == []


@pytest.mark.parametrize("form", ["comparisons", "preferences", "transcripts"])
@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_tables_hold_the_same_as_lines(form, name, tmp_path):
    count = export_file(all_of(USER), form, tmp_path / name)
    export_file(all_of(USER), form, tmp_path / "out.jsonl")
    found, expected = read_feedback(tmp_path / name), read_feedback(tmp_path / "out.jsonl")
    assert found.comparisons == expected.comparisons
    assert found.num_rows == count == expected.num_rows


def test_all_that_was_said_is_in_the_comparisons():
    row = json.loads(export_judgements([said(7, "both_bad")], "comparisons"))
    assert row == {
        "prompt": "p", "left": "a7", "right": "b7 ü", "preferred": "both_bad", "rater": "ann", "shown_left": "right",
        "seconds": 2.5, "note": "why", "judged_at": 1.5, "left_source": '{"model": "m"}', "right_source": "{}",
        "key": "",
    }  # fmt: skip


def test_several_raters_of_a_pair_share_a_task(tmp_path):
    judgements = [said(1, "first"), said(2, "second", rater="bob", pair_id=1)]
    for form in ("label-studio", "argilla"):
        (task,) = json.loads(export_judgements(judgements, form))
        file = tmp_path / f"{form}.json"
        file.write_text(json.dumps([task]))
        assert [(c.preferred, c.rater) for c in read_feedback(file).comparisons] == [
            ("left", "ann"),
            ("right", "bob"),
        ]


def test_a_name_of_another_kind_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"preferences goes into a file that ends in \.jsonl, \.csv, \.parquet, or no ending"
    ):
        export_file(all_of("p"), "preferences", tmp_path / "out.txt")
    with pytest.raises(DataError, match=r"argilla goes into a file that ends in \.json$"):
        export_file(all_of("p"), "argilla", tmp_path / "out.jsonl")


def test_nothing_to_write_is_said_and_writes_nothing(tmp_path):
    with pytest.raises(DataError, match="none of 1 judgements can be written as preferences"):
        export_file([said(1, "tie")], "preferences", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path):
    export_file(all_of("p"), "preferences", tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        export_file(all_of("p"), "preferences", tmp_path / "out")


def test_a_folder_of_several_splits_is_refused_with_their_names(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    for split in ("train", "test"):
        export_file(all_of("p"), "preferences", tmp_path / "data" / split)
    with pytest.raises(DataError, match="has several splits; name one of them: test, train"):
        read_feedback(tmp_path / "data")
    assert len(read_feedback(tmp_path / "data" / "train").comparisons) == 2


def test_a_folder_that_is_no_data_set_or_a_broken_one_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder that datasets' save_to_disk wrote"):
        read_feedback(tmp_path)
    export_file(all_of("p"), "preferences", tmp_path / "out")
    (arrow,) = (tmp_path / "out").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match="not an Arrow file"):
        read_feedback(tmp_path / "out")


@pytest.mark.parametrize("form", ["comparisons", "preferences"])
@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_texts_and_chats_in_one_table_are_refused_in_words(form, name, tmp_path):
    judgements = [said(1, "first"), said(2, "second", USER)]
    with pytest.raises(
        DataError, match=r"of 2 rows 1 have a prompt that is plain text and 1 one of chat messages"
    ):
        export_file(judgements, form, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    export_file(judgements, form, tmp_path / "out.jsonl")
    found = read_feedback(tmp_path / "out.jsonl").comparisons
    assert [comparison.prompt for comparison in found] == ["p", USER]


def test_messages_whose_values_differ_in_kind_are_refused_in_words(tmp_path):
    calls = [
        [{"role": "assistant", "content": "", "tool_calls": value}, USER[0]]
        for value in ([{"a": 1}], [{"a": "x"}])
    ]
    judgements = [said(number, "first", prompt) for number, prompt in enumerate(calls)]
    with pytest.raises(DataError, match=r"messages with values of several kinds.*export to a \.jsonl file"):
        export_file(judgements, "preferences", tmp_path / "out.parquet")


@pytest.mark.parametrize("form", EXPORTS)
def test_what_a_form_has_no_place_for_is_counted(form):
    tool = [{"role": "user", "content": "q"}, {"role": "tool", "content": "7"}]
    judgements = [*all_of("p"), said(6, "first", "says\n\nHuman: no"), said(7, "first", tool)]
    left_out = {"comparisons": 0, "preferences": 3, "transcripts": 5, "label-studio": 3, "argilla": 2}
    assert count_left_out(judgements, form) == left_out[form]
    assert count_left_out([], form) == 0


def test_a_system_turn_stays_one_in_transcripts(tmp_path):
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    export_file([said(1, "first", prompt)], "transcripts", tmp_path / "out.jsonl")
    assert read_feedback(tmp_path / "out.jsonl").comparisons == [Comparison(prompt, "a1", "b1 ü", "left")]


@pytest.mark.parametrize("form", EXPORTS)
def test_messages_with_calls_of_tools_come_back_or_are_left_out(form, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
    prompt = [USER[0], call, {"role": "tool", "content": "7", "tool_call_id": "1"}]
    file = tmp_path / f"out{EXPORTS[form].suffix}"
    judgements = [said(1, "first"), said(2, "first", prompt)]
    export_file(judgements, form, file)
    found = [comparison.prompt for comparison in read_feedback(file).comparisons]
    assert (prompt in found) == (count_left_out(judgements, form) == 0)
