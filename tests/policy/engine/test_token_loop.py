"""Drawing in fixed places, as a GPU replays it, run here as it is."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from klimb.errors import DivergedError
from klimb.model.trainable import Lora, add_lora
from klimb.policy.engine import token_loop
from klimb.policy.engine.kept_graphs import KeptGraphs
from klimb.policy.policy import Policy, SampleKey

PROMPTS = [[1, 2, 3], [4]]
OTHERS = [[5], [6, 7, 8, 9, 1]]


@pytest.fixture
def _off_the_cpu(monkeypatch):
    for name in (
        "model.matmul.is_on_cpu",
        "policy.engine.attention.is_on_cpu",
        "policy.distribution.on_cpu.can_take",
    ):
        monkeypatch.setattr(f"klimb.{name}", lambda _: False)
    monkeypatch.setattr("klimb.policy.engine.token_loop.can_replay", lambda _: True)


def make_policy(make_model, family="llama", seed=0):
    model = make_model(family, vocab_size=10, dtype=torch.float64, seed=seed)
    return Policy(model, SimpleNamespace(eos_token_id=0))


def draw(policy, prompts=PROMPTS, step=0, num_tokens=20):
    return policy.sample(prompts, 3, max_new_tokens=num_tokens, key=SampleKey(0, step, [0, 1]))


def assert_same(found, expected):
    assert torch.equal(found.ids * found.mask, expected.ids * expected.mask)
    assert torch.equal(found.lengths, expected.lengths)
    assert found.finish_reasons == expected.finish_reasons
    for name in ("token_log_probs", "token_entropies"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("_off_the_cpu")
def test_a_batch_drawn_by_what_an_earlier_one_left_is_that_of_a_fresh_policy(make_model):
    policy = make_policy(make_model)
    assert len(set(draw(policy).lengths.tolist())) > 2
    (kept,) = [loop for _, loop, _ in policy._engine.kept._kept.values()]
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.mul_(0.9)  # in place, as an update moves them
    found = draw(policy, OTHERS, step=1)
    assert [loop for _, loop, _ in policy._engine.kept._kept.values()] == [kept]
    fresh = make_policy(make_model)
    with torch.no_grad():
        for weight in fresh.trainable().values():
            weight.mul_(0.9)
    assert_same(found, draw(fresh, OTHERS, step=1))


@pytest.mark.usefixtures("_off_the_cpu")
def test_an_interrupted_batch_leaves_nothing_behind(make_model):
    policy = make_policy(make_model)
    draw(policy)
    weight = policy.model.model.norm.weight
    usual = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match="predictions are NaN"):
        draw(policy)
    assert len(policy._engine.kept) == 0
    with torch.no_grad():
        weight.copy_(usual)
    assert_same(draw(policy), draw(make_policy(make_model)))


@pytest.mark.usefixtures("_off_the_cpu")
def test_weights_that_stand_elsewhere_and_hooks_and_adapters_are_noticed(make_model):
    policy = make_policy(make_model)
    draw(policy, num_tokens=6)
    policy.model.model.norm.weight.data = policy.model.model.norm.weight.data * 3
    moved = draw(policy, num_tokens=6)
    assert len(policy._engine.kept) == 1  # the former is dropped
    assert not torch.equal(moved.token_log_probs, draw(make_policy(make_model), num_tokens=6).token_log_probs)
    hook = policy.model.model.layers[0].register_forward_hook(lambda *_: None)
    draw(policy, num_tokens=6)
    assert len(policy._engine.kept) == 2
    hook.remove()
    adapted = Policy(
        add_lora(make_model("llama", vocab_size=10, dtype=torch.float64), Lora(2), seed=0).double(),
        SimpleNamespace(eos_token_id=0),
    )
    draw(adapted, num_tokens=6)
    with adapted.model.disable_adapter():
        draw(adapted, num_tokens=6)
    assert len(adapted._engine.kept) == 2


@pytest.mark.usefixtures("_off_the_cpu")
def test_a_loop_that_is_not_kept_is_freed_at_once(make_model, monkeypatch):
    """Not when the garbage collector comes: its keys and values may be most of a GPU's memory."""
    loops = []
    usual = token_loop.TokenLoop.draw
    monkeypatch.setattr(
        token_loop.TokenLoop,
        "draw",
        lambda loop, *given: loops.append(weakref.ref(loop)) or usual(loop, *given),
    )
    policy = make_policy(make_model)
    monkeypatch.setenv("KLIMB_CUDA_GRAPHS", "once")
    gc.disable()
    try:
        draw(policy)
    finally:
        gc.enable()
    assert [loop() for loop in loops] == [None]


def test_the_least_recently_used_leaves_first_and_what_is_too_large_is_not_kept(monkeypatch):
    monkeypatch.setattr("klimb.policy.engine.kept_graphs.most_bytes", lambda: 100)
    kept = KeptGraphs()
    for number in range(5):
        kept.give_back("here", number, f"loop {number}", 20)
    assert kept.take("here", 0) is None
    assert kept.take("here", 1) == "loop 1"
    assert kept.take("here", 1) is None  # whoever has it, has it alone
    kept.give_back("here", 1, "loop 1", 20)
    kept.give_back("here", 5, "loop 5", 50)
    assert (len(kept), kept.num_bytes) == (3, 90)
    assert kept.take("here", 2) is None
    assert kept.take("here", 1) == "loop 1"
    kept.give_back("here", 6, "loop 6", 101)
    assert kept.take("here", 6) is None
    assert kept.take("there", 5) is None
    assert len(kept) == 0


def test_nothing_is_kept_where_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("KLIMB_CUDA_GRAPHS", "once")
    kept = KeptGraphs()
    kept.give_back("here", 0, "loop", 0)
    assert len(kept) == 0


def test_prompts_of_many_lengths_share_a_few_rooms():
    rooms = {token_loop._room_for(length) for length in range(1, 4097)}
    assert len(rooms) == 14
    assert all(
        length <= token_loop._room_for(length) < length + max(length / 2, 32) for length in range(1, 4097)
    )
    assert [token_loop._room_for(length) for length in (1, 33, 256, 257, 4096)] == [32, 64, 256, 384, 4096]
