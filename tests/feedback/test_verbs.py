"""`klimb feedback import | export | show | prioritise`, as they are typed and what they print."""

import json

import pytest

from klimb.cli.main import main
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.store.store import Store


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


def answer_by_place(rater, count):
    """A store of pairs, the one with more letters first or second, of which a rater always prefers the left one."""
    with Store.open("feedback.db") as store:
        store.add_pairs(
            (f"p{n}", Candidate(f"a{n}"), Candidate(f"b{n} longer"))
            if n % 3
            else (f"p{n}", Candidate(f"b{n} longer"), Candidate(f"a{n}"))
            for n in range(count)
        )
        while (question := store.next_question(rater, per_pair=9)) is not None:
            side = ("first", "second")[question.pair_id % 2]
            store.judge(Answer(question.pair_id, rater, side, f"{rater} {question.pair_id:06}", side, 3.0))


def prefer_longer(rater):
    with Store.open("feedback.db") as store:
        while (question := store.next_question(rater, per_pair=9)) is not None:
            side = "first" if len(question.first) > len(question.second) else "second"
            left = ("first", "second")[question.pair_id * 7 % 5 % 2]
            store.judge(Answer(question.pair_id, rater, side, f"{rater} {question.pair_id:06}", left, 3.0))


def test_who_answers_by_place_is_named_where_a_store_is_shown(capsys):
    answer_by_place("eve [b]", 24)
    assert main(["feedback", "show", "feedback.db"]) == 0
    screen = capsys.readouterr().out
    assert "eve [b] prefers answer 1 in 24 of 24 pairs, whatever it says" in screen
    assert "klimb reward train … --without-raters 'eve [b]'" in screen


def test_a_reward_names_who_answers_by_place_and_is_learned_without_them(model_folder, tmp_path, capsys):
    answer_by_place("eve", 30)
    prefer_longer("ann")
    command = ["reward", "train", "--feedback", "feedback.db", "--base", str(model_folder)]
    assert main([*command, "--out", "learned"]) in (0, 3)
    warning = "eve prefers answer 1 in 30 of 30 pairs"
    screen = capsys.readouterr().out
    assert warning in screen
    assert "--without-raters eve" in screen
    assert warning in (tmp_path / "learned" / "report.html").read_text()
    record = json.loads((tmp_path / "learned" / "reward.json").read_text())
    flags = {rater["rater"]: rater["flags"] for rater in record["raters"]}
    assert flags == {"ann": [], "eve": ["place"]}
    assert record["held_out"]["num_pairs"] == 60

    assert main([*command, "--out", "without", "--without-raters", "eve"]) in (0, 3)
    screen = capsys.readouterr().out
    assert "30 judgements left out, of eve" in screen
    assert warning not in screen
    record = json.loads((tmp_path / "without" / "reward.json").read_text())
    assert [rater["rater"] for rater in record["raters"]] == ["ann"]
    assert record["held_out"]["num_pairs"] == 30
    assert record["options"]["without_raters"] == ["eve"]

    for names, message in (
        (["bob"], "without_raters: nobody called 'bob' judged; the raters are eve (30), ann (30)"),
        (["ann", "eve"], "without_raters: nobody else judged;"),
    ):
        assert main([*command, "--out", "none", "--without-raters", *names]) == 2
        assert message in capsys.readouterr().err


def test_two_raters_who_disagree_everywhere_are_named_by_the_reward(model_folder, tmp_path, capsys):
    prefer = {"ann": ("first", "second"), "bob": ("second", "first")}
    with Store.open("feedback.db") as store:
        store.add_pairs((f"p{n}", Candidate(f"a{n}"), Candidate(f"b{n}")) for n in range(10))
        for rater, sides in prefer.items():
            while (question := store.next_question(rater, per_pair=2)) is not None:
                said = sides[question.pair_id % 2]
                store.judge(Answer(question.pair_id, rater, said, f"{rater} {question.pair_id:06}"))
    command = [
        "reward",
        "train",
        "--feedback",
        "feedback.db",
        "--base",
        str(model_folder),
        "--out",
        "learned",
    ]
    assert main(command) == 3
    screen = capsys.readouterr().out
    assert "ann and bob prefer opposite answers: they agree on 0 of 10 pairs that both judged" in screen
    assert "Or raters answer at random" in screen
    record = json.loads((tmp_path / "learned" / "reward.json").read_text())
    assert record["conflicts"][0]["raters"] == ["ann", "bob"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "tie",
            "feedback.db: too little feedback: 4 pairs: every pair is a tie; a reward is learned from pairs with",
        ),
        (
            "skip",
            "feedback.db: 4 judgements, none of which prefers an answer (4 skipped); a reward is learned from",
        ),
    ],
)
def test_a_store_in_which_nothing_is_preferred_is_refused_with_what_it_holds(said, message, capsys):
    with Store.open("feedback.db") as store:
        store.add_pairs((f"p{n}", Candidate("a"), Candidate("b")) for n in range(4))
        while (question := store.next_question("ann")) is not None:
            store.judge(Answer(question.pair_id, "ann", said, f"k{question.pair_id}"))
    assert (
        main(["reward", "train", "--feedback", "feedback.db", "--base", "nowhere", "--out", "learned"]) == 2
    )
    assert message in capsys.readouterr().err


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
    assert "feedback.db: 1 pairs in order, the most informative first" in capsys.readouterr().out
    assert (tmp_path / "learned" / "ensemble.safetensors").is_file()
