"""People as the reward of a run: a robot judges by a stated rule on the page, over HTTP, as a browser does."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from klimb.errors import ConfigError
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.serving import ServeOptions
from klimb.feedback.store import Store
from klimb.reward.people import People, PeopleReward, WaitStoppedError, ring
from klimb.reward.reward import Batch, WeightedSum
from klimb.train.folder import RunFolder
from klimb.train.report import write_report
from robot import Robot, free_port
from train.conftest import lines_of


@pytest.fixture
def robot():
    port = free_port()
    made = Robot(port)
    made.start()
    return made


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask about completions, each a letter count, and answer by a list of what is said, in the order of the pairs."""
    monkeypatch.setattr("klimb.feedback.live._FAREWELL", 0.0)

    def ask(prompts, texts, say):
        serve = ServeOptions(port=free_port(), rater="ann")
        reward = PeopleReward(People(tmp_path / "people.db", serve))
        said = threading.Thread(target=answer_all, args=(tmp_path / "people.db", say), daemon=True)
        said.start()
        batch = Batch(prompts, texts)
        try:
            return reward(batch)
        finally:
            reward.finish("over")

    def answer_all(file, say):
        while not file.exists():
            time.sleep(0.02)
        with Store.open(file) as store:
            for _ in range(500):
                if (question := store.next_question("ann")) is not None:
                    store.judge(
                        Answer(
                            question.pair_id,
                            "ann",
                            say(question.first, question.second),
                            f"k{question.pair_id}",
                        )
                    )
                time.sleep(0.01)

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


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_in_a_ring_each_stands_in_as_many_pairs(count):
    group = [[place] for place in range(count)]
    places = [members[0] for pair in ring(group) for members in pair]
    assert {places.count(place) for place in range(count)} == {1 if count == 2 else 2}
    assert len({frozenset((left[0], right[0])) for left, right in ring(group)}) == len(ring(group))


def test_a_stop_while_people_are_waited_for_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("klimb.feedback.live._FAREWELL", 0.0)
    reward = PeopleReward(People(tmp_path / "people.db", ServeOptions(port=free_port(), rater="ann")))
    reward.is_stopping = lambda: True
    with pytest.raises(WaitStoppedError):
        reward(Batch(["p", "p"], ["one", "two"]))
    reward.finish("stopped")
    with Store.open(tmp_path / "people.db") as store:
        assert {store.open_questions()[0].first, store.open_questions()[0].second} == {"one", "two"}


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
        ({"people_port": 0}, "people_port: expected"),
        ({"keep_best": "reward", "eval_every": 1}, "keep_best: people are not asked in evaluations"),
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


_COMMAND = "import sys; from klimb.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("signum", "after"),
    [
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
        (signal.SIGKILL, 7),
        pytest.param(signal.SIGTERM, 3, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ends_while_people_judge_goes_on_to_the_same_bits(whole, make_options, run, signum, after):
    folder, _, complete = whole
    robot = Robot(free_port(), most=after)
    config = make_options(reward=("people",), people_port=robot.port, people_rater="ann")
    options = [
        part
        for name, value in config.to_dict().items()
        if value is not None and name not in ("reward_weights",) and not isinstance(value, bool)
        for part in _flag(name, value)
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "train", "--no-preflight", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
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


def _flag(name, value):
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name.replace('_', '-')}", *map(str, values)] if values else []


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
    # tests/train/test_step.py proves such a step by the definition, for any rewards
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
