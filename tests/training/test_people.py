"""People as the reward of a run: a robot judges by a stated rule on the page, over HTTP, as a browser does."""

import os
import signal
import socket
import threading
from pathlib import Path
from unittest import mock

import pytest

from klimb.config.pairwise import CompareConfig, LabelConfig
from klimb.config.serving import ServeOptions
from klimb.errors import ConfigError, StoreError
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.store.claim import LIVE, claimed
from klimb.feedback.store.store import Store
from klimb.io.progress import ignore
from klimb.pairwise.compare import compare
from klimb.pairwise.label import label
from klimb.reward.people import People, PeopleReward, WaitStoppedError
from klimb.reward.reward import Batch, WeightedSum
from klimb.training.report.report import write_report
from klimb.training.storage.folder import RunFolder
from robot import Robot, free_port
from runs import lines_of, start_process


@pytest.fixture(scope="module", autouse=True)
def short_farewell():
    """Runs of this process tell their robots for a second that all is over."""
    with mock.patch("klimb.feedback.server.live._FAREWELL", 1.0):
        yield


@pytest.fixture
def robot():
    port = free_port()
    made = Robot(port)
    made.start()
    yield made
    made.has_left.set()


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask about completions, each a letter count, and answer by a list of what is said, in the order of the pairs."""
    monkeypatch.setattr("klimb.feedback.server.live._FAREWELL", 0.0)

    def ask(prompts, texts, say, tell=ignore):
        serve = ServeOptions(port=free_port(), rater="ann")
        reward = PeopleReward(People(tmp_path / "people.db", serve, tell))
        is_over = threading.Event()
        with Store.open(tmp_path / "people.db"):  # made here, so that run and rater do not both make it
            pass
        said = threading.Thread(target=answer_all, args=(tmp_path / "people.db", say, is_over), daemon=True)
        said.start()
        batch = Batch(prompts, texts)
        try:
            return reward(batch)
        finally:
            reward.finish("over", has_finished=True)
            is_over.set()
            said.join(30)

    def answer_all(file, say, is_over):
        with Store.open(file) as store:
            while not is_over.is_set():
                if (question := store.next_question("ann")) is not None:
                    store.judge(
                        Answer(
                            question.pair_id,
                            "ann",
                            say(question.first, question.second),
                            f"k{question.pair_id}",
                        )
                    )
                else:
                    is_over.wait(0.05)

    return ask


def longer(first, second):
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def test_a_reward_is_the_share_of_its_comparisons_that_a_completion_won(ask):
    # a ring of four: aaa–b, b–cc, cc–dd (a tie), dd–aaa; then a pair
    rewards = ask(["p"] * 4 + ["q"] * 2, ["aaa", "b", "cc", "dd", "x", "yy"], longer)
    assert rewards == [1.0, 0.0, 0.75, 0.25, 0.0, 1.0]


def test_the_same_text_twice_is_asked_about_once_and_a_prompt_of_one_text_not_at_all(ask):
    asked = []

    def say(first, second):
        asked.append({first, second})
        return longer(first, second)

    assert ask(["p", "p", "p", "q", "q"], ["aa", "b", "aa", "same", "same"], say) == [1.0, 0.0, 1.0, 0.5, 0.5]
    assert asked == [{"aa", "b"}]


def test_what_is_skipped_says_nothing_and_both_bad_is_a_tie(ask):
    assert ask(["p", "p"], ["aa", "b"], lambda *_: "skip") == [0.5, 0.5]


def test_both_bad_is_a_tie(ask):
    assert ask(["p", "p"], ["aa", "b"], lambda *_: "both_bad") == [0.5, 0.5]


def test_a_stop_while_people_are_waited_for_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("klimb.feedback.server.live._FAREWELL", 0.0)
    reward = PeopleReward(People(tmp_path / "people.db", ServeOptions(port=free_port(), rater="ann")))
    reward.is_stopping = lambda: True
    with pytest.raises(WaitStoppedError):
        reward(Batch(["p", "p"], ["one", "two"]))
    reward.finish("stopped", has_finished=False)
    with Store.open(tmp_path / "people.db") as store:
        assert {store.open_questions()[0].first, store.open_questions()[0].second} == {"one", "two"}


def test_who_answers_by_place_is_warned_of_once_and_the_run_continues(tmp_path, monkeypatch):
    monkeypatch.setattr("klimb.feedback.server.live._FAREWELL", 0.0)
    told, file = [], tmp_path / "people.db"
    reward = PeopleReward(People(file, ServeOptions(port=free_port(), rater="eve"), told.append))
    reward.is_stopping = lambda: answer_left(file)
    try:
        for step in range(3):
            texts = [f"{step} {number}" for number in range(32)]
            rewards = reward(Batch([f"p{number // 2}" for number in range(32)], texts))
            assert sorted(set(rewards)) == [0.0, 1.0]
    finally:
        reward.finish("over", has_finished=True)
    warnings = [line for line in told if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: eve prefers answer ")
    assert warnings[0].endswith("; the run continues")


def answer_left(file):
    """Answer all that is open, always by place, each side as often first; and do not stop."""
    with Store.open(file) as store:
        while (question := store.next_question("eve")) is not None:
            side = ("first", "second")[question.pair_id % 2]
            store.judge(Answer(question.pair_id, "eve", side, f"key-{question.pair_id:06}", side))
    return False


def test_choices_are_told_for_the_order_in_which_they_are_asked(tmp_path):
    with Store.open(tmp_path / "store.db") as store:
        there = store.ask([("p", Candidate("a"), Candidate("b"))])
        back = store.ask([("p", Candidate("b"), Candidate("a"))])
        assert there[0][0] == back[0][0]
        question = store.question(there[0][0])
        best = "first" if question.first == "b" else "second"
        store.judge(Answer(question.pair_id, "ann", best, "key-00000001"))
        assert store.choices(there) == [["second"]]
        assert store.choices(back) == [["first"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completions_per_prompt": 1, "baseline": "none"}, "completions_per_prompt: people compare"),
        ({"people_rater": ""}, "people_rater: expected 1 to"),
        ({"people_pairs": 2}, "people_pairs: only used with people and a learned reward"),
        ({"refit_every": 2}, "refit_every: only used with people and a learned reward"),
        ({"people_port": 0}, "people_port: expected"),
        ({"keep_best": "reward", "eval_every": 1}, "keep_best: people do not judge in evaluations"),
    ],
)
def test_options_of_people_that_do_not_fit_are_named(make_options, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_options(reward=("people",), **changes)


def test_a_port_that_is_in_use_is_named_before_the_model_is_loaded(make_options, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = make_options(reward=("people",), people_port=port, model="./no-such-model")
        with pytest.raises(ConfigError, match=f"port {port} is in use; choose another with --people-port"):
            run(config)
    assert not config.out.exists()


def test_a_second_live_run_in_one_folder_is_refused_before_the_model_is_loaded(make_options, run):
    config = make_options(reward=("people",), people_port=free_port(), model="./no-such-model")
    with claimed(config.out / "people.db", LIVE, advice="wait"), pytest.raises(StoreError) as found:
        run(config)
    assert f"{config.out / 'people.db'}: a live run" in str(found.value)
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(found.value)
    assert f"wait until it ends, stop it, or choose another --out than {config.out}" in str(found.value)


@pytest.mark.slow
def test_what_a_start_left_that_was_killed_does_not_hinder_the_next(make_options, run, robot):
    config = make_options(reward=("people",), people_port=robot.port, people_rater="ann", num_steps=1)
    config.out.mkdir()
    (config.out / "people.db.lock").write_text("{}")
    run(config)
    assert not (config.out / "people.db.lock").exists()


def test_labelling_and_comparing_in_the_store_of_a_live_run_are_refused_at_once(
    tmp_path, prompts_file, model_folder
):
    store = tmp_path / "people.db"
    Store.open(store).close()
    with claimed(store, LIVE, advice="wait"):
        for config in (
            LabelConfig(store=str(store)),
            LabelConfig(store=str(store), model=(str(model_folder),), prompts=prompts_file),
        ):
            with pytest.raises(StoreError, match=r"people\.db: a live run .* judge on the run's own page"):
                label(config)
        config = CompareConfig(
            model_a="./none", model_b="./neither", prompts=prompts_file, by=("people",), store=str(store)
        )
        with pytest.raises(StoreError, match=r"people\.db: a live run .* judge on the run's own page"):
            compare(config)


def test_what_others_say_after_a_step_was_taken_does_not_change_it(tmp_path, ask):
    assert ask(["p", "p"], ["aa", "b"], lambda *_: "skip") == [0.5, 0.5]
    with Store.open(tmp_path / "people.db") as store:
        question = store.next_question("bob")
        store.judge(Answer(question.pair_id, "bob", "first", "key-of-bob"))
        assert [said.preferred for said in store.judgements()] == ["skip", "first"]
    assert ask(["p", "p"], ["aa", "b"], longer) == [0.5, 0.5]


def test_a_judgement_taken_back_after_its_step_is_told_of_and_changes_nothing(tmp_path, ask):
    assert ask(["p", "p"], ["aa", "b"], longer) == [1.0, 0.0]
    with Store.open(tmp_path / "people.db") as store:
        question = store.undo("ann")  # by klimb label, while the run is stopped
        store.judge(Answer(question.pair_id, "ann", "tie", "another-key"))
    said = []
    assert ask(["p", "p"], ["aa", "b"], longer, said.append) == [1.0, 0.0]
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert "of 1 pair that the run has learned from, a judgement was taken back or changed since" in warning
    assert "people.jsonl" in warning


def test_links_survive_a_restart_where_the_environment_says_so(make_options, monkeypatch):
    monkeypatch.setenv("KLIMB_RATER_TOKEN", "r" * 20)
    monkeypatch.setenv("KLIMB_OWNER_TOKEN", "o" * 20)
    page = make_options(reward=("people",), people_host="0.0.0.0").people_page  # noqa: S104  so that links are needed
    assert (page.rater_token, page.owner_token) == ("r" * 20, "o" * 20)
    page = make_options(reward=("people",), people_rater="ann").people_page
    assert (page.rater_token, page.owner_token) == (None, None)  # one person, here: no links


def test_people_are_no_judge(make_options, run):
    with pytest.raises(ConfigError, match="people: are asked as a reward of klimb train"):
        run(make_options(judges=("people",)))


def test_without_other_rewards_evaluations_have_none_and_nothing_failed():
    found = WeightedSum([])(Batch(["p"], ["text"]))
    assert (found.total, found.failures) == ([None], [])


@pytest.fixture(scope="module")
def whole(options_in, run, tmp_path_factory):
    """A run with people that was not interrupted, and its robot."""
    robot = Robot(free_port())
    robot.start()
    folder = tmp_path_factory.mktemp("whole")
    shown = run(options_in(folder, reward=("people",), people_port=robot.port, people_rater="ann"))
    robot.join(30)
    return folder / "run", shown, robot


@pytest.mark.usefixtures("drawn_figures")
def test_a_run_learns_from_people_alone_and_tells_them_how_it_ended(whole):
    folder, shown, robot = whole
    assert f"http://127.0.0.1:{robot.port}/" in shown
    assert "waiting for people to judge" in shown
    assert robot.last.startswith("The run has finished")
    rows = lines_of(folder / "completions.jsonl")
    assert len(rows) == 4 * 2 * 3
    assert {row["reward"] for row in rows} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {0.0, 1.0} < {row["reward"] for row in rows}
    for step in range(4):  # the rewards of a prompt are shares of the same pairs
        for prompt in {row["prompt"] for row in rows if row["step"] == step}:
            group = [row for row in rows if row["step"] == step and row["prompt"] == prompt]
            texts = {row["completion"]: row["reward"] for row in group}
            assert sum(texts.values()) == pytest.approx(len(texts) / 2)
    assert {row["reward"] for row in lines_of(folder / "evaluations.jsonl")} == {None}
    assert "no reward was asked about these; to ask people, blind: klimb compare --by people" in shown
    assert "nan" not in shown
    page = write_report(RunFolder.open(folder)).read_text()
    assert "No reward was asked about these" in page
    assert "nan" not in page.replace("nanoseconds", "")
    assert "Its mean is about one half whatever the model writes, so it is not drawn." in page
    assert "<h3>Reward" not in page
    assert '<span class="chip' not in page
    with Store.open(folder / "people.db") as store:
        assert store.progress("ann").num_own == robot.num_judged > 0


def weights_of(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("signum", "after"),
    [
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 7, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 8, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 3, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ends_while_people_judge_goes_on_to_the_same_bits(whole, make_options, run, signum, after):
    folder, _, complete = whole
    robot = Robot(free_port(), most=after)
    config = make_options(reward=("people",), people_port=robot.port, people_rater="ann")
    process = start_process(config)
    robot.start()
    robot.join(120)
    assert robot.num_judged == after
    process.send_signal(signum)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), said
    with Store.open(config.out / "people.db") as store:
        assert len(store.judgements()) == after  # no judgement was lost

    again = Robot(robot.port)
    again.start()
    run(config, resume=True)
    again.join(30)
    assert not set(again.asked) & set(robot.asked)  # nobody is asked twice
    assert len(again.asked) + after == len(complete.asked)
    assert weights_of(config.out) == weights_of(folder)


def test_a_step_with_people_is_rlhf_weight_update_with_their_rewards(make_options, run, tmp_path, robot):
    """At the start the KL is 0, so that the weights ascend by lr times the mean of r times the gradient of log π."""
    config = make_options(
        reward=("people",),
        people_port=robot.port,
        people_rater="ann",
        num_steps=1,
        baseline="none",
        optimiser="sgd",
        max_grad_norm=None,
    )
    run(config)
    rewards = [row["reward"] for row in lines_of(config.out / "completions.jsonl")]
    given = tmp_path / "given.py"
    given.write_text(
        f"def given(completions, **_):\n    return {rewards!r} if len(completions) == {len(rewards)} else "
        "[0.0] * len(completions)\n"
    )
    # tests/rl/test_step.py proves such a step by the definition, for any rewards
    other = make_options(
        reward=(f"{given}:given",),
        out=tmp_path / "other",
        num_steps=1,
        baseline="none",
        optimiser="sgd",
        max_grad_norm=None,
    )
    run(other)
    assert [row["kl"] for row in lines_of(config.out / "completions.jsonl")] == [0.0] * len(rewards)
    assert weights_of(config.out) == weights_of(Path(other.out))
