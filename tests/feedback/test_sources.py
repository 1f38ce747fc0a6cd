"""Feedback from files and stores alike, and the import of files into a store."""

import json

import pytest

from klimb.errors import DataError, StoreError
from klimb.feedback.comparison import Comparison
from klimb.feedback.export import export_file
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.sources import import_files, is_store, read_sources
from klimb.feedback.store.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


def test_a_store_and_a_file_are_read_alike(store, tmp_path, write_jsonl):
    store.add_pairs([("p", Candidate("a"), Candidate("b"))])
    store.judge(Answer(store.next_question("ann").pair_id, "ann", "second", "k"))
    file = write_jsonl([{"prompt": "q", "chosen": "c", "rejected": "d"}], "more.jsonl")
    found = read_sources([str(file), tmp_path / "feedback.db"])
    assert found.comparisons == [Comparison("q", "c", "d", "left"), Comparison("p", "a", "b", "right", "ann")]
    assert found.num_rows == 2


@pytest.mark.usefixtures("store")
def test_an_empty_store_is_said(tmp_path):
    with pytest.raises(
        DataError, match="nothing has been judged there yet; a reward is learned from pairs with"
    ):
        read_sources([tmp_path / "feedback.db"])


def test_a_store_of_skips_alone_is_said_with_what_it_holds(store, tmp_path):
    store.add_pairs([(f"p{number}", Candidate("a"), Candidate("b")) for number in range(3)])
    for number, said in enumerate(("skip", "skip", "both_bad")):
        store.judge(Answer(store.next_question("ann").pair_id, "ann", said, f"k{number}"))
    with pytest.raises(
        DataError, match=r"feedback\.db: 3 judgements, none of which prefers .*\(1 both bad, 2 skipped\); a"
    ):
        read_sources([tmp_path / "feedback.db"])


def test_where_and_how_fast_something_was_said_comes_along(store, tmp_path):
    store.add_pairs([("p", Candidate("a"), Candidate("b"))])
    store.judge(Answer(store.next_question("ann").pair_id, "ann", "second", "k", "second", 2.5))
    (found,) = read_sources([tmp_path / "feedback.db"]).comparisons
    assert (found.preferred, found.shown_left, found.seconds) == ("right", "right", 2.5)


@pytest.mark.usefixtures("store")
def test_a_store_is_known_by_what_it_is_and_not_by_its_name(tmp_path):
    (tmp_path / "feedback.db").rename(tmp_path / "answers")
    assert is_store(tmp_path / "answers")
    assert is_store("postgresql://host/feedback")
    (tmp_path / "rows.db").write_text("{}\n")
    assert not is_store(tmp_path / "rows.db")
    with pytest.raises(StoreError):
        read_sources(["mysql://host/feedback"])


def test_an_import_says_what_became_of_each_row(store, tmp_path, write_jsonl):
    rows = [
        {"prompt": "p", "left": "a", "right": "b", "preferred": "left", "rater": "ann"},
        {"prompt": "p", "left": "a", "right": "b", "preferred": "right", "rater": "ann"},
        {"prompt": "p", "left": "a", "right": "a", "preferred": "left"},
        {"prompt": "p", "left": "a", "right": "b", "preferred": "skip"},
        {"prompt": "q", "completions": ["best", "middle", "worst"], "rater": "bob"},
        {"nothing": "known"},
    ]
    report = import_files(store, [write_jsonl(rows, "in.jsonl")])
    assert (
        report.feedback.num_rows,
        report.feedback.num_skipped,
        report.num_comparisons,
        report.num_new,
    ) == (6, 1, 5, 4)
    places = [place.rsplit(":", 1)[1] for place, _ in report.refused]
    assert places == ["3", "6", "2"]
    lines = "\n".join(report.lines())
    assert "6 rows read, 1 without a judgement, 3 refused" in lines
    assert "in.jsonl:2: ann has said otherwise of these two before" in lines
    again = import_files(store, [tmp_path / "in.jsonl"])
    assert again.num_new == 0
    assert len(store.judgements()) == 4


def test_ratings_become_comparisons_where_they_are_far_enough_apart(store, write_jsonl):
    rows = [
        {"prompt": "p", "completion": text, "score": score}
        for text, score in (("a", 1), ("b", 1.2), ("c", 3))
    ]
    report = import_files(store, [write_jsonl(rows, "ratings.jsonl")], min_gap=0.5)
    assert report.num_new == 2
    winners = {(c.left if c.preferred == "left" else c.right) for c in store.feedback().comparisons}
    assert winners == {"c"}


def test_where_something_fails_nothing_is_imported(store, write_jsonl, monkeypatch):
    rows = [{"prompt": str(number), "chosen": "a", "rejected": "b"} for number in range(5)]
    count = 0

    def fails(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return insert(*arguments)

    from klimb.feedback.store import transfer as module

    insert = module.insert_judgement
    monkeypatch.setattr(module, "insert_judgement", fails)
    with pytest.raises(KeyboardInterrupt):
        import_files(store, [write_jsonl(rows, "in.jsonl")])
    assert store.judgements() == []
    assert store.progress("ann").num_pairs == 0


def test_many_refused_rows_are_cut_short(store, write_jsonl):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, *[{"x": 1}] * 30]
    lines = import_files(store, [write_jsonl(rows, "in.jsonl")]).lines()
    assert lines[-1] == "  … and 10 more"
    assert json.dumps(lines).count("refused ") == 20


def test_the_place_and_the_time_survive_an_export_and_an_import(store, tmp_path):
    store.add_pairs([(f"p{number}", Candidate("a"), Candidate("b")) for number in range(4)])
    sides = [("first", "first"), ("first", "second"), ("second", "first"), ("tie", "")]
    for number, (said, left) in enumerate(sides):
        question = store.next_question("ann")
        store.judge(Answer(question.pair_id, "ann", said, f"k{number}", left, 2.5 + number))
    export_file(store.judgements(), "comparisons", tmp_path / "said.jsonl")
    expected = [(c.left, c.preferred, c.shown_left, c.seconds) for c in store.feedback().comparisons]
    read = read_sources([tmp_path / "said.jsonl"]).comparisons
    assert [(c.left, c.preferred, c.shown_left, c.seconds) for c in read] == expected
    with Store.open(tmp_path / "other.db") as other:
        import_files(other, [tmp_path / "said.jsonl"])
        again = [
            (j.first.text, j.second.text, j.preferred, j.shown_left, j.seconds) for j in other.judgements()
        ]
    before = [(j.first.text, j.second.text, j.preferred, j.shown_left, j.seconds) for j in store.judgements()]
    assert again == before


@pytest.mark.parametrize(("shown", "seconds"), [("top", "soon"), (3, -1), (None, True), ("", float("inf"))])
def test_a_place_or_time_that_means_nothing_is_not_known(write_jsonl, shown, seconds):
    row = {
        "prompt": "p",
        "left": "a",
        "right": "b",
        "preferred": "left",
        "shown_left": shown,
        "seconds": seconds,
    }
    (found,) = read_sources([write_jsonl([row], "said.jsonl")]).comparisons
    assert (found.shown_left, found.seconds) == ("", None)
