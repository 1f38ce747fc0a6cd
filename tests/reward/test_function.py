"""TRL's reward functions run unchanged: what they are called with, what they may return, and those that are awaited."""

# ruff: noqa: ARG001, ARG002, ARG005  signatures are TRL's

import asyncio
import functools
import threading
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from klimb.errors import RewardError, RewardHangsError
from klimb.reward.event_loop import EventLoop
from klimb.reward.failures import Tolerance
from klimb.reward.function import FunctionReward, load_function
from klimb.reward.reward import Batch, WeightedSum
from klimb.reward.state import TrainerState

USER = {"role": "user", "content": "hi"}
BATCH = Batch(
    ["p", "q", "r"],
    ["a", "bb", "ccc"],
    {"wanted": ["x", "y", "z"]},
    completion_ids=[[1], [2, 3], [4, 5, 6]],
    state=TrainerState(epoch=0.5, global_step=7, max_steps=20),
)


def ask(function, batch=BATCH, **how):
    return WeightedSum([FunctionReward("f", function, **how)])(batch)


def test_a_function_is_called_by_name_with_all_that_trl_hands_over():
    seen = {}

    def f(**kwargs):
        seen.update(kwargs)
        return [0.0] * 3

    assert ask(f).total == [0.0] * 3
    hooks = seen.pop("log_extra"), seen.pop("log_metric")
    assert all(map(callable, hooks))
    assert seen == {
        "prompts": ["p", "q", "r"],
        "completions": ["a", "bb", "ccc"],
        "completion_ids": [[1], [2, 3], [4, 5, 6]],
        "trainer_state": BATCH.state,
        "wanted": ["x", "y", "z"],
    }


def test_examples_of_trls_documentation_run():
    def longer(completion_ids, **kwargs):
        return [float(len(ids)) for ids in completion_ids]

    def older_name(completions_ids, **kwargs):
        return [float(len(ids)) for ids in completions_ids]

    def curriculum(completions, trainer_state, **kwargs):
        return [trainer_state.global_step / trainer_state.max_steps + trainer_state.epoch] * len(completions)

    def task(prompts, completions, wanted, **kwargs):
        return [1.0 if w == "y" else None for w in wanted]

    assert ask(longer).total == ask(older_name).total == [1.0, 2.0, 3.0]
    assert ask(curriculum).total == [0.85] * 3
    both = WeightedSum([FunctionReward("task", task), FunctionReward("longer", longer)], [10.0, 1.0])(BATCH)
    assert both.total == [1.0, 12.0, 3.0]


def test_the_state_has_the_names_of_transformers_trainer_state():
    from dataclasses import fields

    transformers = pytest.importorskip("transformers")
    theirs = {field.name for field in fields(transformers.TrainerState)} - {"stateful_callbacks"}
    assert theirs <= {field.name for field in fields(TrainerState)}


def test_a_continued_message_belongs_to_the_completion_as_trl_has_it():
    seen = {}
    prompt = [USER, {"role": "assistant", "content": "I think"}]
    ask(lambda **kwargs: seen.update(kwargs) or [1.0], Batch([prompt], [" so"]))
    assert seen["prompts"] == [[USER]]
    assert seen["completions"] == [[{"role": "assistant", "content": "I think so"}]]
    assert prompt[-1] == {"role": "assistant", "content": "I think"}


def test_what_a_function_changes_is_its_own():
    prompt = [USER.copy()]

    def f(prompts, completions, **kwargs):
        for messages in prompts:
            messages.append(messages.pop() | {"content": "changed"})
        return [1.0] * len(prompts)

    ask(f, Batch([prompt, prompt], ["a", "b"]))
    assert prompt == [USER]


def test_a_class_is_no_judge():
    with pytest.raises(RewardError, match=r"reward f: is a class, .* write judge = Judge\(\) below it"):
        FunctionReward("f", Judge)


class Judge:
    def __call__(self, completions, **kwargs):
        return [len(c) for c in completions]

    def method(self, completions):
        return [len(c) for c in completions]

    async def later(self, completions, **kwargs):
        return [len(c) for c in completions]


class LaterJudge:
    async def __call__(self, completions, **kwargs):
        return [len(c) for c in completions]


def scaled(scale, completions, /, wanted, *, unit=1.0, **kwargs):
    return [scale * unit * len(c) for c in completions]


async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [len(c) for c in completions]


async def one_by_one(completions, **kwargs):
    for c in completions:
        yield len(c)


def hidden(completions, **kwargs):
    return later(completions)


def traced(function):
    @functools.wraps(function)
    def call(**kwargs):
        return function(**kwargs)

    return call


@pytest.mark.parametrize(
    "function",
    [
        Judge(),
        Judge().method,
        functools.partial(scaled, 0.5, unit=2.0),
        Judge().later,
        LaterJudge(),
        later,
        functools.partial(later, scale=1),
        functools.partial(LaterJudge()),
        one_by_one,
        hidden,
        traced(later),
        traced(traced(Judge().method)),
        lambda completions, /: [len(c) for c in completions],
    ],
)
def test_whatever_can_be_called_is_called(function):
    assert ask(function).total == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ((1, 2, 3), [1.0, 2.0, 3.0]),
        (np.array([1, 2, 3], dtype=np.float16), [1.0, 2.0, 3.0]),
        (torch.tensor([1.0, 2.0, 3.0], requires_grad=True), [1.0, 2.0, 3.0]),
        (torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.bfloat16), [1.0, 2.0, 3.0]),
        ([torch.tensor(1.0, requires_grad=True), np.float32(2), np.array(3)], [1.0, 2.0, 3.0]),
        ([True, False, Decimal("0.5")], [1.0, 0.0, 0.5]),
        ([Fraction(1, 2), np.bool_(True), 10], [0.5, 1.0, 10.0]),
        (iter([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]),
        (map(float, "123"), [1.0, 2.0, 3.0]),
        (torch.tensor([1.0, float("nan"), 3.0]), [1.0, None, 3.0]),
        ([1.0, float("nan"), None], [1.0, None, None]),
        ([1.0, np.nan, Decimal("nan")], [1.0, None, None]),
    ],
)
def test_numbers_are_taken_in_whatever_they_come(values, total):
    assert ask(lambda completions: values).parts["f"] == total


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({0: 1.0, 1: 2.0, 2: 3.0}, "expected a list of 3 numbers, one per completion, got dict"),
        ({1.0, 2.0, 3.0}, "expected a list of 3 numbers, one per completion, got set"),
        ("123", "expected a list of 3 numbers, one per completion, got str"),
        (["1", 2.0, 3.0], "expected a number or None, got '1'"),
        (torch.tensor(1.0), "expected a list of 3 numbers, one per completion, got float"),
        (torch.ones(3, 2), r"expected a number or None, got \[1.0, 1.0\]"),
        ([1.0, 2.0], "expected 3 numbers, one per completion, got 2"),
        (np.ones((1, 3)), "expected 3 numbers, one per completion, got 1"),
        ([1j, 2.0, 3.0], "expected a number or None, got 1j"),
    ],
)
def test_what_could_be_mistaken_for_numbers_is_refused(values, reason):
    with pytest.raises(RewardError, match=reason):
        ask(lambda completions: values).complete()


@pytest.mark.parametrize("is_async", [False, True])
def test_an_argument_that_there_is_not_is_named_once(is_async):
    calls = []

    def f(completions, solution):
        calls.append(1)

    async def g(completions, solution):
        calls.append(1)

    reason = (
        "takes `solution`, which is neither a column of the data nor an argument of TRL's; .* are 'wanted'"
    )
    with pytest.raises(RewardError, match=reason):
        ask(g if is_async else f).complete()
    assert not calls


def test_tokens_are_asked_for_in_vain_where_no_policy_drew_them():
    with pytest.raises(
        RewardError, match="takes `completion_ids`, the completions' tokens, and there are none"
    ):
        ask(lambda completion_ids: [1.0], Batch([""], ["a"])).complete()
    assert ask(lambda completions, completion_ids=None: [1.0], Batch([""], ["a"])).total == [1.0]


def test_environments_are_refused_by_name_and_may_have_a_default():
    with pytest.raises(RewardError, match="takes `environments`, which are those of TRL's agent training"):
        FunctionReward("f", lambda completions, environments: [1.0])
    assert ask(lambda completions, environments=None: [1.0] * 3).total == [1.0] * 3


@pytest.mark.parametrize("is_async", [False, True])
def test_what_functions_log_is_kept_by_name(is_async):
    def f(completions, log_extra, log_metric, **kwargs):
        log_extra("length", np.array([len(c) for c in completions]))
        log_extra("note", ["short", torch.tensor(1.5), {"at": (1, float("inf"))}])
        log_metric("share", 0.25)
        log_metric("share", torch.tensor(0.75))
        return [1.0] * 3

    async def g(**kwargs):
        return f(**kwargs)

    rewards = ask(g if is_async else f)
    assert rewards.failures == []
    assert rewards.metrics == {"share": 0.5}
    assert rewards.extra == {"length": [1, 2, 3], "note": ["short", 1.5, {"at": [1, None]}]}
    assert ask(lambda completions: [1.0] * 3).extra == {}


@pytest.mark.parametrize("is_async", [False, True])
def test_what_was_logged_before_a_function_raised_does_not_count_twice(is_async):
    def f(completions, log_extra, log_metric, **kwargs):
        log_extra("length", [len(c) for c in completions])
        log_metric("calls", 1)
        if "bb" in completions:
            raise ValueError("no bb")
        return [1.0] * len(completions)

    async def g(**kwargs):
        return f(**kwargs)

    rewards = ask(g if is_async else f)
    assert rewards.total == [1.0, None, 1.0]
    assert rewards.extra == {"length": [1, None, 3]}
    assert rewards.metrics == {"calls": 1.0}


def test_a_column_of_another_length_is_an_error_at_its_line():
    def f(completions, log_extra):
        log_extra("x", [1, 2])
        return [1.0] * 3

    with pytest.raises(RewardError, match=r"log_extra\('x'\): expected 1 values, one per completion, got 2"):
        ask(f).complete()


def test_asynchronous_rewards_wait_together():
    both_wait = asyncio.Barrier(2)
    loop = EventLoop()

    async def f(completions, **kwargs):
        await both_wait.wait()  # passes only once the other waits as well
        return [1.0] * len(completions)

    rewards = [FunctionReward(name, f, 20, loop) for name in "ab"]
    assert WeightedSum([rewards[0]], judges=[rewards[1]])(BATCH).parts == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_synchronous_rewards_are_asked_while_others_are_awaited():
    has_begun = threading.Event()
    may_end = threading.Event()

    async def waits(completions, **kwargs):
        has_begun.set()
        while not may_end.is_set():
            await asyncio.sleep(0.001)
        return [1.0] * len(completions)

    def meanwhile(completions):
        assert has_begun.wait(20)
        may_end.set()
        return [2.0] * len(completions)

    rewards = WeightedSum([FunctionReward("waits", waits, 20), FunctionReward("meanwhile", meanwhile)])(BATCH)
    assert rewards.total == [3.0] * 3
    assert list(rewards.parts) == ["waits", "meanwhile"]


def test_one_loop_serves_all_calls_of_a_run():
    loops = []

    async def f(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [1.0] * len(completions)

    loop = EventLoop()
    for reward in (FunctionReward("a", f, loop=loop), FunctionReward("b", f, loop=loop)):
        for _ in range(2):
            assert WeightedSum([reward])(BATCH).total == [1.0] * 3
    assert len(set(loops)) == 1


def test_a_synchronous_function_may_run_a_loop_of_its_own():
    assert ask(lambda completions: asyncio.run(later(completions))).total == [1.0, 2.0, 3.0]


def test_completions_of_an_asynchronous_function_that_raises_are_judged_singly_and_together():
    waiting = asyncio.Barrier(3)

    async def f(completions, **kwargs):
        if len(completions) > 1:
            raise OSError("busy")
        await waiting.wait()
        if completions == ["bb"]:
            raise ValueError("no bb")
        return [len(completions[0])]

    rewards = ask(f, time_limit=20)
    assert rewards.total == [1.0, None, 3.0]
    assert "reward f raised ValueError: no bb" in rewards.reasons[1]
    with pytest.raises(RewardError, match="no bb"):
        Tolerance(0.1, 3).take(rewards.failures)


def test_an_asynchronous_function_that_takes_too_long_is_cancelled_and_asked_again():
    was_cancelled = threading.Event()

    async def f(completions, **kwargs):
        if was_cancelled.is_set():
            return [1.0] * len(completions)
        try:
            await asyncio.sleep(60)
        finally:
            was_cancelled.set()

    reward = FunctionReward("f", f, 0.05)
    assert WeightedSum([reward])(BATCH).reasons == dict.fromkeys(range(3), "reward f took longer than 0.05 s")
    assert was_cancelled.wait(20)
    while reward._latest.is_busy:
        time.sleep(0.001)
    assert WeightedSum([reward])(BATCH).total == [1.0] * 3


def test_an_asynchronous_function_that_blocks_the_loop_is_not_asked_again_until_it_has_ended():
    gate = threading.Event()

    async def f(completions, **kwargs):
        gate.wait(20)  # as time.sleep does, by mistake
        return [1.0] * len(completions)

    reward = FunctionReward("f", f, 0.05)
    assert WeightedSum([reward])(BATCH).given == []
    with pytest.raises(RewardHangsError, match=r"still busy with a call that was given up after 0\.05 s"):
        WeightedSum([reward])(BATCH)
    gate.set()


def test_what_was_awaited_one_by_one_before_the_time_was_up_counts():
    async def f(completions, **kwargs):
        if len(completions) > 1:
            raise OSError("busy")
        await asyncio.sleep(60 if completions == ["bb"] else 0)
        return [1.0]

    rewards = ask(f, time_limit=1.0)
    assert rewards.total == [1.0, None, 1.0]
    assert rewards.reasons == {1: "reward f took longer than 1 s"}


@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_a_library_raises_costs_its_completion_and_not_the_run(is_async):
    class PanicException(BaseException):  # as Rust's libraries and func_timeout have them
        pass

    def judge(completions, **kwargs):
        if "bb" in completions:
            raise PanicException("index out of bounds")
        return [1.0] * len(completions)

    async def judge_later(completions, **kwargs):
        return judge(completions)

    rewards = ask(judge_later if is_async else judge)
    assert rewards.total == [1.0, None, 1.0]
    assert rewards.reasons[1].startswith("reward f raised PanicException: index out of bounds (")


def test_ctrl_c_in_a_reward_stops_the_run():
    def judge(completions, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(judge)


def test_a_file_that_ends_the_program_while_it_is_loaded_is_named(tmp_path):
    (tmp_path / "rewards.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(RewardError, match=r"loading .*rewards\.py raised SystemExit: 0"):
        load_function(f"{tmp_path}/rewards.py:judge")
