"""`klimb feedback import | export | show | prioritise`, as they are typed and what they print."""

import json

import pytest

from klimb.cli import main
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.store import Store


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def preferences(write_jsonl):
    rows = [{"prompt": f"p{number}", "chosen": "good", "rejected": "bad"} for number in range(3)]
    return write_jsonl([*rows, {"prompt": "p"}], "preferences.jsonl")


def test_feedback_goes_in_and_out(preferences, tmp_path, capsys):
    assert main(["feedback", "import", str(preferences), "--store", "feedback.db"]) == 0
    screen = capsys.readouterr().out
    assert "4 rows read, 0 without a judgement, 1 refused" in screen
    assert "3 comparisons, 3 of them new" in screen
    assert "preferences.jsonl:4: no known format has the columns 'prompt'" in screen
    assert main(["feedback", "export", "feedback.db", "-o", "out.jsonl"]) == 0
    assert capsys.readouterr().out == "out.jsonl: 3 rows\n"
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": f"p{number}", "chosen": "good", "rejected": "bad"} for number in range(3)]


def test_a_store_is_shown_with_its_raters_their_agreement_and_who_won(capsys):
    with Store.open("feedback.db") as store:
        store.add_pairs(
            [
                ("p", Candidate(f"a{n}", {"model": "[red]one"}), Candidate(f"b{n}", {"model": "two"}))
                for n in range(2)
            ]
        )
        for rater, said in (("ann [b]", ("first", "first")), ("bob", ("first", "tie"))):
            for choice in said:
                question = store.next_question(rater, per_pair=2)
                store.judge(
                    Answer(question.pair_id, rater, choice, f"{rater} {question.pair_id}", seconds=3.0)
                )
    assert main(["feedback", "show", "feedback.db"]) == 0
    screen = capsys.readouterr().out
    assert "feedback.db: 2 pairs, 2 of them judged" in screen
    assert "ann [b]" in screen
    assert "Two raters of the same pair say the same in 50% of cases, over 2 pairs" in screen
    (line,) = [line for line in screen.splitlines() if "[red]one" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["[red]one", "3", "0", "1"]


def test_a_missing_store_is_said_and_not_made(tmp_path, capsys):
    for verb in (["show", "feedback.db"], ["export", "feedback.db", "-o", "out.jsonl"]):
        assert main(["feedback", *verb]) == 2
        assert "feedback.db: no such store of feedback" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_leaves_the_store_empty(write_jsonl, capsys):
    file = write_jsonl([{"nothing": 1}], "nothing.jsonl")
    assert main(["feedback", "import", str(file)]) == 2
    assert "no judgement could be read" in capsys.readouterr().err
    with Store.open("feedback.db", must_exist=True) as store:
        assert store.progress("").num_pairs == 0


def test_a_reward_is_learned_from_a_store(preferences, model_folder, tmp_path, capsys):
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(30)]
    preferences.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["feedback", "import", str(preferences)]) == 0
    command = [
        "reward",
        "train",
        "--feedback",
        "feedback.db",
        "--base",
        str(model_folder),
        "--num-members",
        "2",
    ]
    assert main([*command, "--out", "learned"]) == 0
    with Store.open("feedback.db") as store:
        store.add_pairs([("new", Candidate("x"), Candidate("yy"))])
    assert main(["feedback", "prioritise", "feedback.db", "--reward", "learned"]) == 0
    assert "feedback.db: 1 pairs in order, the most telling first" in capsys.readouterr().out
    assert (tmp_path / "learned" / "ensemble.safetensors").is_file()
