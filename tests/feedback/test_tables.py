"""Tables that spreadsheets open, out and in again."""

import csv

import pytest

from klimb.cli.main import main
from klimb.errors import DataError
from klimb.feedback.export import export_file, export_store
from klimb.feedback.formats import read_feedback
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.store.store import Store

HARD = 'says "no", then;\r\nstops\ttwice\n\n=1+1 ü 🙂\r'
CHAT = [{"role": "user", "content": HARD}]


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "feedback.db") as store:
        store.add_pairs(
            [(HARD, Candidate("a" + HARD), Candidate("b")), (CHAT, Candidate("a"), Candidate(HARD))]
        )
        store.add_pairs([("p", Candidate("a"), Candidate("b")), ("q", Candidate("a"), Candidate("b"))])
        for number, choice in enumerate(("first", "second", "tie"), start=1):
            store.judge(Answer(number, "ann", choice, f"key {number}"))
        yield store


@pytest.mark.parametrize("form", ["preferences", "comparisons"])
def test_a_csv_file_holds_what_lines_hold(store, tmp_path, form):
    export_store(store, form, tmp_path / "out.jsonl")
    export_store(store, form, tmp_path / "out.csv")
    expected = read_feedback(tmp_path / "out.jsonl")
    found = read_feedback(tmp_path / "out.csv")
    assert (found.comparisons, found.refused) == (expected.comparisons, [])


def test_a_csv_file_is_quoted_as_other_programs_expect(store, tmp_path):
    export_store(store, "preferences", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, strict=True))
    assert (rows[0]["prompt"], rows[0]["chosen"], rows[0]["rejected"]) == (HARD, "a" + HARD, "b")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_as_excel_saves_it_is_read(tmp_path, delimiter):
    file = tmp_path / "excel.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, "excel", delimiter=delimiter).writerows(
            [["prompt", "chosen", "rejected"], [HARD, "ü", "b"]]
        )
    (found,) = read_feedback(file).comparisons
    assert (found.prompt, found.left, found.right) == (HARD, "ü", "b")


def test_plain_text_that_looks_like_messages_is_not_written_into_a_table(tmp_path):
    with Store.open(tmp_path / "feedback.db") as store:
        store.add_pairs([('[{"role": "user", "content": "x"}]', Candidate("a"), Candidate("b"))])
        store.judge(Answer(1, "ann", "first", "key"))
        with pytest.raises(
            DataError, match=r"out\.csv: row 1, prompt: plain text that would be read as chat messages"
        ):
            export_store(store, "preferences", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "out"])
def test_a_file_that_exists_is_replaced_only_when_asked(store, tmp_path, name):
    judgements = store.judgements()
    export_file(judgements[:1], "comparisons", tmp_path / name)
    with pytest.raises(
        DataError, match=r"out.*: exists already; choose another name, or add --overwrite to replace it"
    ):
        export_file(judgements[2:], "comparisons", tmp_path / name)
    assert read_feedback(tmp_path / name).comparisons[0].prompt == HARD
    export_file(judgements[2:], "comparisons", tmp_path / name, overwrite=True)
    assert [found.prompt for found in read_feedback(tmp_path / name).comparisons] == ["p"]


def test_a_folder_of_something_else_is_never_replaced(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"out: holds thesis\.tex, which no data set has; it is not replaced"):
        export_file(store.judgements()[2:], "comparisons", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("store")
def test_what_is_left_out_is_printed_by_its_kind(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["feedback", "export", "feedback.db", "-o", "out.csv"]) == 0
    assert capsys.readouterr().out == (
        "out.csv: 2 rows\n"
        "left out, as preferences has no place for it: 1 ties\n"
        "left out: 1 pairs without a judgement; --form store has them\n"
    )
    assert main(["feedback", "export", "feedback.db", "-o", "out.csv"]) == 2
    assert "out.csv: exists already; choose another name, or add --overwrite" in capsys.readouterr().err
    assert main(["feedback", "export", "feedback.db", "-o", "out.csv", "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["feedback", "export", "feedback.db", "--form", "store", "-o", "all.jsonl"]) == 0
    assert capsys.readouterr().out == "all.jsonl: 4 pairs with 3 judgements: everything in feedback.db\n"
    assert main(["feedback", "import", "all.jsonl", "--store", "feedback.db"]) == 0
    assert "nothing was added: the store has all of it already" in capsys.readouterr().out
    assert main(["feedback", "export", "feedback.db", "-o", "no/out.csv"]) == 2
    assert "no/out.csv: there is no folder no; make it first" in capsys.readouterr().err
