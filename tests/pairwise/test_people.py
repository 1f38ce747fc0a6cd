"""`klimb compare --by people`: who is asked what, and what is made of the answers."""

import json
import shutil

import pytest

from klimb import KlimbError
from klimb.config.pairwise import CompareConfig, LabelConfig
from klimb.data.prompts import PromptRow
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.server.blind import left_of
from klimb.feedback.store.store import Store
from klimb.pairwise.candidates import Drawn
from klimb.pairwise.compare import compare
from klimb.pairwise.console import show_comparison
from klimb.pairwise.people import ask_people


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_config(model_folder, other_folder, prompts_file, tmp_path):
    def make(**changes):
        options = {
            "model_a": str(model_folder),
            "model_b": str(other_folder),
            "prompts": prompts_file,
            "completions_per_prompt": 2,
            "max_new_tokens": 5,
            "out": tmp_path / "compare.html",
        }
        return CompareConfig(**(options | changes))

    return make


def value(text):
    return sum(map(ord, text))


def dearer(question):
    first, second = value(question.first), value(question.second)
    return "tie" if first == second else "first" if first > second else "second"


def cheaper(question):
    return {"first": "second", "second": "first", "tie": "tie"}[dearer(question)]


def quiet(_line):
    pass


def values(result):
    rows = json.loads(result.data.read_text())["comparisons"]
    return [(value(row["a"]), value(row["b"])) for row in rows]


def test_the_rate_is_that_of_the_texts_it_wrote_down(make_config, judged_by, tmp_path):
    result = compare(make_config(), quiet, judged_by(dearer))
    pairs = values(result)
    (judged,) = result.tallies
    assert judged.judge == "people"
    assert judged.wins_a == sum(a > b for a, b in pairs) > 0
    assert judged.wins_b == sum(a < b for a, b in pairs) > 0
    assert judged.num_comparisons == len(pairs) == 12
    assert (tmp_path / "compare.db").is_file()


def test_people_and_a_reward_may_judge_together(make_config, judged_by, tmp_path):
    (tmp_path / "judge.py").write_text(
        "def f(completions, **_):\n    return [sum(map(ord, c)) for c in completions]\n"
    )
    config = make_config(by=("people", f"{tmp_path / 'judge.py'}:f"))
    people, reward = compare(config, quiet, judged_by(dearer)).tallies
    assert (people.judge, people.win_rate) == ("people", reward.win_rate)
    assert (people.low, people.high) == (reward.low, reward.high)


def test_ctrl_c_ends_it_and_the_same_command_goes_on(make_config, judged_by):
    first = compare(make_config(), quiet, judged_by(dearer, at_most=3)).tallies[0]
    assert 3 <= first.num_comparisons < 12
    assert first.num_left_out == 12 - first.num_comparisons
    said = []
    last = compare(make_config(), said.append, judged_by(dearer)).tallies[0]
    assert last.num_comparisons == 12
    assert any("0 of them new" in line for line in said)
    serve = judged_by(dearer)
    assert compare(make_config(), quiet, serve).tallies[0] == last
    assert serve.num_calls == 0


def test_several_raters_of_a_pair_are_averaged(make_config, judged_by):
    raters = [judged_by(dearer, "ann"), judged_by(cheaper, "bob"), judged_by(dearer, "cem")]

    def serve(*arguments, **options):
        for rater in raters:
            rater(*arguments, **options)

    config = make_config(per_pair=3)
    result = compare(config, quiet, serve)
    (judged,) = result.tallies
    a, b = (sum(x > y for x, y in pairs) for pairs in (values(result), [(y, x) for x, y in values(result)]))
    assert judged.num_comparisons == 12
    assert judged.wins_a == pytest.approx((2 * a + b) / 3)
    assert judged.win_rate == pytest.approx((judged.wins_a + judged.ties / 2) / 12)
    with Store.open(config.out.with_suffix(".db")) as store:
        assert len(store.judgements()) >= 3 * (a + b)


def test_both_bad_is_a_tie_and_skips_are_left_out(make_config, judged_by):
    asked = []

    def prefer(question):
        asked.append(question.pair_id)
        return "skip" if len(asked) == 1 else "both_bad"

    (judged,) = compare(make_config(rater="ann"), quiet, judged_by(prefer)).tallies
    assert (judged.num_skipped, judged.num_left_out) == (1, 1)
    assert judged.both_bad == len(asked) - 1
    assert (judged.win_rate, judged.ties) == (0.5, 11)


def test_judgements_of_other_models_are_not_counted_and_theirs_are_asked_last(make_config):
    asked = []

    def serve(store, options, say, open_browser, until, notes):  # noqa: ARG001  as the real one is called
        while (question := store.next_question("ann", per_pair=options.per_pair)) is not None:
            asked.append(question.prompt)
            store.judge(Answer(question.pair_id, "ann", dearer(question), f"key-number-{question.pair_id}"))

    with Store.open(make_config().out.with_suffix(".db")) as store:
        store.add_pairs(
            [(f"other {index}", Candidate("a", {"model": "c"}), Candidate("b")) for index in range(3)]
        )
    said = []
    (judged,) = compare(make_config(), said.append, serve).tallies
    assert judged.num_comparisons == 12
    assert asked[-3:] == ["other 0", "other 1", "other 2"]
    assert any(line.startswith("3 judgements in ") and line.endswith("and are not counted") for line in said)


def test_another_temperature_is_another_comparison(make_config, judged_by):
    compare(make_config(), quiet, judged_by(dearer))
    serve = judged_by(dearer)
    said = []
    compare(make_config(temperature=0.9), said.append, serve)
    assert serve.num_calls == 1
    assert any("belong to other pairs" in line for line in said)


def test_nobody_is_asked_about_the_same_text_twice(make_config, judged_by, model_folder, tmp_path):
    twin = shutil.copytree(model_folder, tmp_path / "twin")
    serve = judged_by(dearer)
    said = []
    (judged,) = compare(make_config(model_b=str(twin)), said.append, serve).tallies
    assert serve.num_calls == 0
    assert (judged.ties, judged.num_comparisons) == (12, 12)
    assert any("12 more are the same text twice, and ties" in line for line in said)


def test_where_nobody_judged_nothing_is_written(make_config):
    def leave(_store, _options, say, open_browser, until, notes):  # noqa: ARG001  as the real one is called
        raise KeyboardInterrupt

    config = make_config()
    with pytest.raises(KlimbError, match=r"nothing was judged.*compare\.db: run the same command again"):
        compare(config, quiet, leave)
    assert not config.out.exists()


def test_the_page_is_told_when_all_is_judged(make_config, judged_by):
    judge, told = judged_by(dearer), []

    def serve(*arguments, until, **options):
        told.append(until())
        judge(*arguments, until=until, **options)
        told.append(until())

    compare(make_config(), quiet, serve)
    assert told == [False, True]


def test_a_store_that_cannot_be_opened_is_found_before_anything_is_sampled(make_config, tmp_path, judged_by):
    (tmp_path / "compare.db").write_text("this is no database, and long enough to be taken for one" * 9)
    said = []
    with pytest.raises(KlimbError, match=r"compare\.db: "):
        compare(make_config(), said.append, judged_by(dearer))
    assert said == []


def drawn(name, texts):
    """Completions of a model, a row for each prompt, that nobody had to draw."""
    candidates = [
        [
            Candidate(text, {"model": name, "prompt_index": row, "draw": place})
            for place, text in enumerate(group)
        ]
        for row, group in enumerate(texts)
    ]
    return Drawn(candidates, [[[0] * len(text) for text in group] for group in texts])


def ask(store, sides, serve, say=quiet):
    rows = [PromptRow(f"prompt {index}", {}, "") for index in range(len(sides[0].candidates))]
    config = LabelConfig(browser=False)
    return ask_people(store, rows, sides, config, say, serve)


def test_the_same_text_twice_is_a_tie_as_far_as_the_judging_has_come(judged_by):
    sides = drawn("a", [["x"], ["same"], ["y"], ["same"]]), drawn("b", [["xx"], ["same"], ["yy"], ["same"]])
    with Store.open("feedback.db") as store:
        begun = ask(store, sides, judged_by(dearer, at_most=1))
        assert begun.has_opinion.ravel().tolist() == [True, False, False, False]
        ended = ask(store, sides, judged_by(dearer))
    assert ended.has_opinion.all()
    assert ended.outcomes.ravel().tolist() == [-1, 0, -1, 0]


def test_which_completion_the_store_had_first_does_not_matter(judged_by):
    a, b = drawn("a", [["long and dear"], ["y"]]), drawn("b", [["x"], ["dear and long"]])
    with Store.open("feedback.db") as store:
        store.add_pairs(
            [
                (f"prompt {index}", second[0], first[0])
                for index, (first, second) in enumerate(zip(a.candidates, b.candidates, strict=True))
            ]
        )
        said = ask(store, (a, b), judged_by(dearer))
    assert said.outcomes.ravel().tolist() == [1, -1]


def test_completions_of_two_comparisons_are_no_comparison(judged_by):
    a, b = drawn("a", [["a one", "a two"]]), drawn("b", [["b one", "b two"]])
    lines = []
    with Store.open("feedback.db") as store:
        store.add_pairs([("prompt 0", a.candidates[0][0], b.candidates[0][1])])
        judged_by(lambda _: "first")(store, LabelConfig().serve_options(), quiet, False)
        said = ask(store, (a, b), judged_by(dearer), lines.append)
    assert said.outcomes.tolist() == [[-1, -1]]
    assert any(line.startswith("1 judgements in ") for line in lines)


def test_a_rater_who_answers_by_place_is_named_in_the_report_the_numbers_and_the_terminal(
    make_config, tmp_path, capsys
):
    def serve(store, options, **_):
        while (question := store.next_question("eve", per_pair=options.per_pair)) is not None:
            left = left_of(question, "eve")
            key = f"eve-key-{question.pair_id}"
            store.judge(Answer(question.pair_id, "eve", left, key, shown_left=left))

    result = compare(make_config(completions_per_prompt=4), quiet, serve)
    show_comparison(result)
    (warning,) = result.raters.warnings
    assert warning.startswith("eve prefers answer 1 in ")
    assert warning in capsys.readouterr().out
    assert warning in (tmp_path / "compare.html").read_text()
    assert json.loads(result.data.read_text())["raters"]["raters"][0]["flags"] == ["place"]
