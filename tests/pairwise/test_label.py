"""`klimb label`: pairs go to a store, whose page is served."""

import time

import pytest

from klimb import KlimbError
from klimb.config.pairwise import LabelConfig
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.store.store import Store
from klimb.pairwise.label import label


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def prefer_the_longer(question):
    return "first" if len(question.first) >= len(question.second) else "second"


def config(model, prompts, **changes):
    return LabelConfig(**({"model": (str(model),), "prompts": prompts, "max_new_tokens": 4} | changes))


def test_pairs_are_sampled_served_and_judged(model_folder, prompts_file, tmp_path, judged_by):
    said = []
    where = label(config(model_folder, prompts_file), said.append, judged_by(prefer_the_longer))
    assert where == "feedback.db"
    with Store.open(tmp_path / "feedback.db", must_exist=True) as store:
        judgements = store.judgements()
    assert len(judgements) == 6
    assert {judgement.first.source["model"] for judgement in judgements} == {str(model_folder)}
    assert said[0].startswith(f"Sampling pairs, 1 for each of 6 prompts, from {model_folder}")
    assert said[1] == "6 pairs, 6 of them new"


def test_the_same_command_asks_nothing_twice(model_folder, prompts_file, judged_by):
    label(config(model_folder, prompts_file), print, judged_by(prefer_the_longer, at_most=2))
    said = []
    label(config(model_folder, prompts_file), said.append, judged_by(prefer_the_longer))
    assert "6 pairs, 0 of them new" in said
    with Store.open("feedback.db") as store:
        assert store.progress("").num_pairs == len(store.judgements()) == 6


def test_the_pairs_of_a_run_are_kept_in_its_folder(run_folder, prompts_file, judged_by):
    where = label(config(run_folder, prompts_file), print, judged_by(prefer_the_longer))
    assert where == str(run_folder / "feedback.db")
    assert (run_folder / "feedback.db").is_file()


def test_a_store_that_is_named_is_used(run_folder, prompts_file, tmp_path, judged_by):
    label(config(run_folder, prompts_file, store="mine.db"), print, judged_by(prefer_the_longer))
    assert (tmp_path / "mine.db").is_file()
    assert not (run_folder / "feedback.db").exists()


def test_without_a_model_what_the_store_has_is_served(judged_by):
    with Store.open("feedback.db") as store:
        store.add_pairs([("why", Candidate("a"), Candidate("bc"))])
    label(LabelConfig(), print, judged_by(prefer_the_longer))
    with Store.open("feedback.db") as store:
        assert [judgement.second.text for judgement in store.judgements()] == ["bc"]


def test_the_page_is_served_as_asked_for():
    seen = []

    def serve(_store, options, say, open_browser, until, notes):  # noqa: ARG001  as the real one is called
        seen.append((options.host, options.port, options.rater, options.per_pair, open_browser))

    with Store.open("feedback.db") as store:
        store.add_pairs([("why", Candidate("a"), Candidate("b"))])
    label(LabelConfig(port=9000, rater="ann", per_pair=3, browser=False), print, serve)
    assert seen == [("127.0.0.1", 9000, "ann", 3, False)]


def test_raters_are_told_what_to_look_for(tmp_path, monkeypatch):
    seen = []

    def serve(_store, options, say, open_browser, until, notes):  # noqa: ARG001  as the real one is called
        seen.append((notes.guidelines, options.rater_token, options.owner_token))

    with Store.open("feedback.db") as store:
        store.add_pairs([("why", Candidate("a"), Candidate("b"))])
    (tmp_path / "guide.md").write_text("**Short** answers.")
    monkeypatch.setenv("KLIMB_RATER_TOKEN", "r" * 20)
    label(LabelConfig(guidelines=tmp_path / "guide.md", criterion="brief / long, wordy"), print, serve)
    assert seen == [("Better: brief. Worse: long, wordy.\n\n**Short** answers.", "r" * 20, None)]
    with pytest.raises(KlimbError, match=r"guidelines: .*none\.md: No such file"):
        LabelConfig(guidelines=tmp_path / "none.md")
    with pytest.raises(KlimbError, match="rater_token: expected 16 to 200"):
        LabelConfig(rater_token="short")


def test_a_reward_is_learned_along_and_raters_are_told_of_it(model_folder, prompts_file, monkeypatch):
    monkeypatch.setattr("klimb.reward.learn.along._POLL", 0.05)
    said, told = [], []

    def serve(store, options, say, open_browser, until, notes):  # noqa: ARG001  as the real one is called
        while (question := store.next_question("ann")) is not None:
            store.judge(
                Answer(question.pair_id, "ann", prefer_the_longer(question), f"key-{question.pair_id:06}")
            )
        for _ in range(600):
            if notes.learned():
                break
            time.sleep(0.05)
        told.append(notes.learned())

    label(
        config(model_folder, prompts_file, num_pairs_per_prompt=4, criterion="long / short"),
        said.append,
        serve,
    )
    assert told[0].startswith("A reward learned from ")
    assert "of held-out pairs" in told[0]
    assert any(line.startswith("A reward learned from ") for line in said)
    assert any('--criterion "long / short" --out learned/reward' in line for line in said)


def test_ctrl_c_ends_it_and_shows_what_there_is(judged_by, capsys):
    with Store.open("feedback.db") as store:
        store.add_pairs([("why", Candidate("a"), Candidate("b")), ("why", Candidate("a"), Candidate("c"))])
    label(LabelConfig(), print, judged_by(prefer_the_longer, at_most=1))
    screen = capsys.readouterr().out
    assert "feedback.db: 2 pairs, 1 of them judged" in screen
    assert "klimb reward train --feedback feedback.db" in screen


def test_a_store_that_is_not_there_is_not_made(tmp_path, judged_by):
    with pytest.raises(KlimbError, match=r"feedback\.db: no such store"):
        label(LabelConfig(), print, judged_by(prefer_the_longer))
    assert not (tmp_path / "feedback.db").exists()


def test_with_nothing_to_judge_nothing_is_served(model_folder, prompts_file, judged_by):
    serve = judged_by(prefer_the_longer)
    said = []
    with pytest.raises(KlimbError, match=r"feedback\.db: has no pairs to judge; raise --temperature"):
        label(config(model_folder, prompts_file, temperature=1e-4), said.append, serve)
    assert "0 pairs, 0 of them new; 6 were dropped: the same text twice" in said
    with pytest.raises(KlimbError, match="has no pairs to judge; sample some"):
        label(LabelConfig(), print, serve)
    assert serve.num_calls == 0


def test_what_is_wrong_is_found_before_a_store_is_made(model_folder, write_jsonl, tmp_path, judged_by):
    prompts = write_jsonl([{"prompt": "one"}, {"prompt": ""}])
    with pytest.raises(KlimbError, match=r"prompts\.jsonl:2: prompt: it is empty"):
        label(config(model_folder, prompts), print, judged_by(prefer_the_longer))
    prompts = write_jsonl([{"prompt": "one"}])
    with pytest.raises(KlimbError, match=r"\./nowhere: no such folder or file"):
        label(config("./nowhere", prompts), print, judged_by(prefer_the_longer))
    assert not (tmp_path / "feedback.db").exists()
