"""People and a learned reward together: it says what they are asked, and learns from what they say."""

import signal

import numpy as np
import pytest

from klimb.core.preferences import preference_disagreement
from klimb.errors import ConfigError
from klimb.reward.classifier import ClassifierReward
from klimb.reward.reward import Batch
from klimb.reward.scorer import Scorer
from robot import Robot, free_port
from runs import lines_of, start_process


@pytest.fixture(scope="module")
def reward_folders(model_folder, tmp_path_factory):
    """A learned reward with an ensemble, and one without."""
    folder = tmp_path_factory.mktemp("rewards")
    scorer = Scorer.from_base(model_folder)
    size = scorer.head.weight.shape[1]
    generator = np.random.default_rng(1)
    scorer.set_head(generator.normal(size=size).astype(np.float32))
    scorer.save(folder / "alone")
    scorer.members = generator.normal(size=(3, size)).astype(np.float32)
    scorer.save(folder / "ensemble")
    return folder


def options_of(reward_folders, port):
    return {
        "reward": ("people", str(reward_folders / "ensemble")),
        "reward_weights": (2.0, 0.5),
        "people_port": port,
        "people_rater": "ann",
        "people_pairs": 2,
        "refit_every": 2,
    }


@pytest.fixture(scope="module")
def whole(options_in, run, tmp_path_factory, reward_folders):
    """A run of both that was not interrupted."""
    robot = Robot(free_port())
    robot.start()
    folder = tmp_path_factory.mktemp("both")
    shown = run(options_in(folder, **options_of(reward_folders, robot.port)))
    robot.join(30)
    return folder / "run", shown, robot


def test_people_are_asked_where_the_members_disagree_most_and_the_others_take_the_learned_reward_alone(
    whole, reward_folders
):
    folder, _, robot = whole
    name = str(reward_folders / "ensemble")
    rows = [row for row in lines_of(folder / "completions.jsonl") if row["step"] == 0]
    judged = [
        pair for line in lines_of(folder / "people.jsonl") if line["step"] == 0 for pair in line["pairs"]
    ]
    assert robot.num_judged == 2 * 4
    for row in rows:
        own, learned = row["rewards"]["people"], row["rewards"][name]
        shares = [
            {"first": 0.5, "second": -0.5, "tie": 0.0}[pair["said"][0]] * (1 if pair["first"] == text else -1)
            for pair in judged
            if pair["prompt"] == row["prompt"]
            and (text := row["completion"]) in (pair["first"], pair["second"])
        ]
        assert own == (sum(shares) / len(shares) if shares else None)
        assert row["reward"] == pytest.approx(0.5 * learned + (0 if own is None else 2 * own), rel=1e-12)
    assert None in {row["rewards"]["people"] for row in rows}

    batch = Batch([row["prompt"] for row in rows], [row["completion"] for row in rows])
    scores = ClassifierReward(name).member_scores(batch)
    worth = {
        frozenset((rows[i]["completion"], rows[j]["completion"])): float(
            preference_disagreement((scores[i] - scores[j])[:, None])[0]
        )
        for i in range(len(rows))
        for j in range(i)
        if rows[i]["prompt"] == rows[j]["prompt"] and rows[i]["completion"] != rows[j]["completion"]
    }
    assert frozenset((judged[0]["first"], judged[0]["second"])) in worth
    assert max(worth.values()) in [worth[frozenset((pair["first"], pair["second"]))] for pair in judged]


def test_the_reward_is_refitted_along_the_run_and_evaluations_stay_with_the_first(whole, reward_folders):
    folder, shown, _ = whole
    assert "step 3: reward" in shown
    assert "refitted with 4 judgements of this run" in shown
    assert [line["logged"].get("refitted_at") for line in lines_of(folder / "metrics.jsonl")] == [
        None,
        None,
        2,
        2,
    ]
    rows = [row for row in lines_of(folder / "evaluations.jsonl") if row["when"] == "after"]
    scores = ClassifierReward(reward_folders / "ensemble")(
        Batch([row["prompt"] for row in rows], [row["completion"] for row in rows])
    )
    assert [row["rewards"][str(reward_folders / "ensemble")] for row in rows] == pytest.approx(
        scores, rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("after", [7, 5])
def test_a_run_that_is_killed_while_people_judge_learns_the_same_reward_again_and_ends_in_the_same_bits(
    whole, make_options, run, reward_folders, after
):
    folder, _, complete = whole
    robot = Robot(free_port(), most=after)
    config = make_options(**options_of(reward_folders, robot.port))
    process = start_process(config)
    robot.start()
    robot.join(120)
    process.send_signal(signal.SIGKILL)
    said = process.communicate(timeout=60)[0].decode()
    assert (process.returncode, robot.num_judged) == (-signal.SIGKILL, after), said
    again = Robot(robot.port)
    again.start()
    run(config, resume=True)
    again.join(30)
    assert not set(again.asked) & set(robot.asked)
    assert len(again.asked) + after == len(complete.asked)
    for part in ("model/model.safetensors", "completions.jsonl", "people.jsonl"):
        assert (config.out / part).read_bytes() == (folder / part).read_bytes(), part


@pytest.mark.parametrize(
    ("rewards", "changes", "message"),
    [
        (("alone",), {"people_pairs": 2}, "has one member: learn it with klimb reward train --num-members 4"),
        (("alone", "ensemble"), {"refit_every": 2}, "refit_every: expected one learned reward .* got 2"),
    ],
)
def test_rewards_that_people_cannot_work_with_are_named_before_the_model_is_loaded(
    make_options, run, reward_folders, rewards, changes, message
):
    named = ("people", *(str(reward_folders / name) for name in rewards))
    with pytest.raises(ConfigError, match=message):
        run(make_options(reward=named, people_port=free_port(), model="./no-such-model", **changes))
