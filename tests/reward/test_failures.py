"""Rewards that fail: what is left out, what is said of it, and what stops."""

import gc
import re
import threading
import time

import pytest
import torch

from klimb import KlimbError
from klimb.errors import RewardError, RewardHangsError
from klimb.reward.failures import Failed, Failure, Tolerance, answers
from klimb.reward.function import FunctionReward
from klimb.reward.reward import Batch, Rewards, WeightedSum
from klimb.reward.timeout import TimeLimit

BATCH = Batch(["p"] * 4, ["one", "bad", "three", "four"], {"place": [0, 1, 2, 3]})


class Fixed:
    """A reward that gives what it is told to."""

    def __init__(self, *values, name="fixed"):
        self.name = name
        self.values = list(values)

    def __call__(self, _batch):
        return self.values


def test_one_completion_that_a_function_cannot_take_costs_the_others_nothing():
    calls = []

    def fragile(completions, place):
        calls.append(place)
        if "bad" in completions:
            raise ValueError("not this one")
        return [float(len(completion)) for completion in completions]

    rewards = WeightedSum([FunctionReward("fragile", fragile)])(BATCH)
    assert rewards.total == [3.0, None, 5.0, 4.0]
    assert rewards.given == [3.0, 5.0, 4.0]
    assert rewards.parts == {"fragile": [3.0, None, 5.0, 4.0]}
    (failure,) = rewards.failures
    assert (failure.index, failure.num_completions, failure.text) == (1, 4, "bad")
    assert failure.reason.startswith("reward fragile raised ValueError: not this one (")
    assert re.search(r"test_failures\.py:\d+\)$", failure.reason)  # where it was raised
    assert rewards.reasons == {1: failure.reason}
    assert calls == [[0, 1, 2, 3], [0], [1], [2], [3]]  # all at once, then each once


def test_a_function_that_always_raises_is_asked_about_each_completion_once():
    calls = []

    def broken(completions):
        calls.append(len(completions))
        raise SystemExit(3)  # a function may not end the run unsaid either

    rewards = WeightedSum([FunctionReward("broken", broken)])(BATCH)
    assert rewards.total == [None] * 4
    assert calls == [4, 1, 1, 1, 1]
    assert all("reward broken raised SystemExit: 3" in failure.reason for failure in rewards.failures)


def test_a_function_that_fails_in_passing_loses_nothing():
    calls = []

    def moody(completions):
        calls.append(len(completions))
        if len(calls) == 1:
            raise ConnectionError
        return [1.0] * len(completions)

    rewards = WeightedSum([FunctionReward("moody", moody)])(BATCH)
    assert rewards.total == [1.0] * 4
    assert rewards.failures == []


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.0, 2.0, 3.0], "reward fixed: expected 4 numbers, one per completion, got 3"),
        (None, "reward fixed: expected a list of 4 numbers, one per completion, got NoneType"),
        (1.0, "reward fixed: expected a list of 4 numbers, one per completion, got float"),
    ],
)
def test_values_that_cannot_be_told_apart_fail_for_all(values, reason):
    reward = Fixed()
    reward.values = values
    rewards = WeightedSum([reward])(BATCH)
    assert rewards.total == [None] * 4
    assert [failure.reason for failure in rewards.failures] == [reason] * 4


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "reward fixed: expected a finite number, got nan"),
        (float("-inf"), "reward fixed: expected a finite number, got -inf"),
        ("x" * 100, f"reward fixed: expected a number or None, got '{'x' * 59}…"),
        (torch.ones(2), "reward fixed: expected a number or None, got tensor([1., 1.])"),
        (10**400, "reward fixed: expected a number or None, got 1" + "0" * 59 + "…"),
        (None, "every reward returned None or NaN"),
    ],
)
def test_a_value_that_is_no_number_fails_alone(value, reason):
    rewards = WeightedSum([Fixed(1.0, value, torch.tensor(3.0), 4)])(BATCH)
    assert rewards.total == [1.0, None, 3.0, 4.0]
    assert [(failure.index, failure.reason) for failure in rewards.failures] == [(1, reason)]


def test_a_failure_is_not_the_same_as_no_opinion():
    first, second = (
        Fixed(1.0, 1.0, 1.0, None, name="first"),
        Fixed(2.0, None, Failed("out"), None, name="second"),
    )
    rewards = WeightedSum([first, second], [1.0, 10.0])(BATCH)
    # The second has no opinion on one completion, so the first counts; on another it failed, so nothing does.
    assert rewards.total == [21.0, 1.0, None, None]
    assert rewards.reasons == {2: "out", 3: "every reward returned None or NaN"}
    assert rewards.parts["first"] == [1.0, 1.0, 1.0, None]


def test_a_judge_that_fails_takes_no_reward_away_and_is_told_of_after_the_rewards():
    judge = Fixed(float("nan"), 1.0, None, 1.0, name="judge")
    rewards = WeightedSum([Fixed(1.0, 1.0, 1.0, float("nan"))], judges=[judge])(BATCH)
    assert rewards.total == [1.0, 1.0, 1.0, None]
    assert rewards.parts["judge"] == [None, 1.0, None, 1.0]
    assert [failure.index for failure in rewards.failures] == [3, 0]


@pytest.mark.parametrize("weights", [[10.0, 10.0], [1.0, 1.0], [10.0, -10.0]])
def test_a_sum_that_is_not_finite_is_a_failure(weights):
    one, other = Fixed(1e308, 1.0, 1.0, 1.0, name="one"), Fixed(1e308, 1.0, 1.0, 1.0, name="other")
    rewards = WeightedSum([one, other], weights)(BATCH)
    assert rewards.total[0] is None
    assert rewards.reasons == {0: "the weighted sum of the rewards is not finite"}


def test_who_cannot_do_with_some_rewards_is_told_of_the_first_failure():
    rewards = WeightedSum([Fixed(1.0, 2.0, float("nan"), 4.0)])(BATCH)
    with pytest.raises(
        RewardError, match=r"fixed: expected a finite number, got nan, at completion 2 of 4: 'three'"
    ):
        rewards.complete()
    whole = Rewards([1.0], {})
    assert whole.complete() is whole


def test_a_reason_is_fit_for_files_and_terminals():
    def careless(completions):
        raise ValueError(f"\x1b[2J half \ud800 of https://me:word@host/x {'long ' * 500}{completions}")

    (failure,) = WeightedSum([FunctionReward("careless", careless)])(Batch(["p"], ["\x1b[2J" * 50])).failures
    assert "word" not in failure.reason
    assert failure.reason.encode()
    assert "\x1b" not in str(failure)
    assert "\ud800" not in failure.reason
    assert len(failure.reason) <= 501
    assert len(str(failure)) < 1000


@pytest.fixture
def gate():
    """What a function waits for; opened at the end, so that no thread is left hanging."""
    event = threading.Event()
    yield event
    event.set()


def ask_again(reward, batch):
    """Ask until the call that was given up has ended."""
    while True:
        try:
            return reward(batch)
        except RewardHangsError:
            time.sleep(0.005)


def test_a_function_that_hangs_is_given_up_and_not_asked_again_until_it_has_ended(gate):
    calls = []

    def hang(completions):
        calls.append(threading.current_thread())
        gate.wait()
        return [1.0] * len(completions)

    reward = WeightedSum([FunctionReward("hang", hang, time_limit=0.05)])
    rewards = reward(BATCH)
    assert rewards.total == [None] * 4
    assert {failure.reason for failure in rewards.failures} == {"reward hang took longer than 0.05 s"}
    with pytest.raises(
        RewardHangsError, match=r"hang is still busy with a call that was given up after 0\.05 s"
    ):
        reward(BATCH)
    assert len(calls) == 1
    assert calls[0].daemon  # so that the process can end
    gate.set()
    assert ask_again(reward, BATCH).total == [1.0] * 4


def test_what_was_judged_one_by_one_before_the_time_was_up_counts(gate):
    calls = []

    def slow(completions):
        calls.append(len(completions))
        if len(completions) > 1:
            raise ValueError("one by one, please")
        if completions == ["three"]:
            gate.wait()
        return [7.0]

    reward = FunctionReward("slow", slow, time_limit=0.2)
    rewards = WeightedSum([reward])(BATCH)
    assert rewards.total == [7.0, 7.0, None, None]
    assert rewards.reasons[3] == "reward slow took longer than 0.2 s"
    gate.set()
    ask_again(reward, Batch(["p"], ["one"]))
    assert calls == [4, 1, 1, 1, 1]  # not for the fourth of the batch, which had been given up


def test_within_its_time_a_function_is_as_without_a_limit():
    def fragile(completions):
        return [1 / (completion != "bad") for completion in completions]

    def reward(time_limit):
        return WeightedSum([FunctionReward("fragile", fragile, time_limit)])(BATCH)

    assert reward(60.0) == reward(None)
    assert reward(60.0).total == [1.0, None, 1.0, 1.0]


def test_a_limit_makes_its_calls_in_one_thread_and_lets_go_of_it():
    before = set(threading.enumerate())
    limit = TimeLimit(60.0)
    first, second = (limit(threading.current_thread) for _ in range(2))
    assert first is second
    assert first not in before
    with pytest.raises(KeyError, match="raised in there"):
        limit(lambda: {}["raised in there"])
    assert limit(lambda: 3) == 3  # the thread has survived that
    del limit
    gc.collect()
    first.join(timeout=5)
    assert not first.is_alive()


def failures(*indices):
    return [Failure(index, 20, f"text {index}", f"reason {index}") for index in indices]


def test_a_tenth_may_fail_and_no_more():
    tolerance = Tolerance(0.1, 20)
    tolerance.take(failures(4, 7))
    tolerance.take([])
    with pytest.raises(KlimbError) as caught:
        tolerance.take(failures(1))
    assert str(caught.value) == (
        "reason 4, at completion 4 of 20: 'text 4'; 3 of 20 completions failed, more than max_failed 0.1 allows: "
        "fix the reward, or raise --max-failed"
    )


def test_a_completion_that_failed_twice_counts_once():
    Tolerance(0.05, 20).take(failures(3, 3))
    with pytest.raises(RewardError, match="2 of 20 completions failed"):
        Tolerance(0.05, 20).take(failures(3, 3, 4))


def test_none_and_all_may_be_allowed_to_fail():
    Tolerance(1.0, 20).take(failures(*range(20)))
    Tolerance(0.0, 20).take([])
    with pytest.raises(RewardError, match="1 of 20 completions failed, more than max_failed 0 allows"):
        Tolerance(0.0, 20).take(failures(0))


def test_answers_are_one_a_completion_whatever_is_returned():
    assert answers("r", (value for value in (1, None)), 2) == [1.0, None]
    assert answers("r", {}, 0) == []
    failed = Failed("why")
    assert answers("r", [failed, True], 2) == [failed, 1.0]
