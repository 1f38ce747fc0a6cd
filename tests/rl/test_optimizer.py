"""The optimiser's state, by the names of weights: what is saved, and what is read again."""

import pytest
import torch

from klimb.config.train import TrainConfig
from klimb.errors import ArgumentError
from klimb.policy.policy import Policy
from klimb.rl.optimizer import PolicyOptimizer

PORTION = 50  # elements that are moved at a time: most weights are several pieces


@pytest.fixture
def make(make_model, letter_tokenizer, monkeypatch):
    """A policy and its optimiser; weights are moved a few elements at a time."""
    monkeypatch.setattr("klimb.rl.optimizer._PORTION", PORTION)

    def make(**changes):
        options = {"model": "", "prompts": "p", "reward": ("r",), "out": "o", "eval_prompts": None}
        policy = Policy(make_model("gpt2", vocab_size=10, dtype=torch.float64), letter_tokenizer)
        return policy, PolicyOptimizer(policy, TrainConfig.from_dict(options | changes))

    return make


def move(policy, optimizer, num_steps, first=0):
    """Move the weights along gradients that depend on the step alone."""
    for step in range(first, first + num_steps):
        random = torch.Generator().manual_seed(step)
        gradients = [
            (name, torch.randn(weight.shape, generator=random, dtype=weight.dtype))
            for name, weight in policy.trainable().items()
        ]
        optimizer._move(gradients, 1.0)


def copies(policy):
    return {name: weight.detach().clone() for name, weight in policy.trainable().items()}


def test_the_state_is_keyed_by_name_and_has_the_shapes_of_the_weights(make):
    policy, optimizer = make()
    assert optimizer.moments() == {}
    move(policy, optimizer, 2)
    moments, weights = optimizer.moments(), policy.trainable()
    assert set(moments) == {
        f"{name}/{what}" for name in weights for what in ("exp_avg", "exp_avg_sq", "step")
    }
    for name, weight in weights.items():
        assert moments[f"{name}/exp_avg"].shape == moments[f"{name}/exp_avg_sq"].shape == weight.shape
        assert int(moments[f"{name}/step"]) == 2


def test_the_averages_are_adams(make):
    policy, optimizer = make(adam_betas=(0.8, 0.9))
    name, weight = next((name, w) for name, w in policy.trainable().items() if w.numel() > 3 * PORTION)
    first, second = torch.randn(2, *weight.shape, dtype=weight.dtype)
    for gradient in (first, second):
        optimizer._move([(name, gradient)], 1.0)
    moments = optimizer.moments()
    # Gradients are ascended: torch keeps the averages of their negatives.
    expected = -(0.8 * 0.2 * first + 0.2 * second)
    torch.testing.assert_close(moments[f"{name}/exp_avg"], expected)
    expected = 0.9 * 0.1 * first**2 + 0.1 * second**2
    torch.testing.assert_close(moments[f"{name}/exp_avg_sq"], expected)


def in_the_form_of_0_1(moments, portion):
    """Averages as flat pieces, with a step for each."""
    former = {}
    for key, value in moments.items():
        name, _, what = key.rpartition("/")
        if what != "step":
            for number, piece in enumerate(value.reshape(-1).split(portion)):
                former[f"{name}/{number}/{what}"] = piece.clone()
                former[f"{name}/{number}/step"] = moments[f"{name}/step"].clone()
    return former


@pytest.mark.parametrize("form", ["of today", "of 0.1", "of 0.1 in other pieces"])
def test_an_optimiser_that_is_restored_goes_on_to_the_same_bits(make, form):
    policy, optimizer = make()
    move(policy, optimizer, 5)
    whole = copies(policy)

    policy, optimizer = make()
    move(policy, optimizer, 2)
    moments = {key: value.clone() for key, value in optimizer.moments().items()}
    if form != "of today":
        moments = in_the_form_of_0_1(moments, PORTION if form == "of 0.1" else 33)
        assert any("/10/" in key for key in moments)  # after 9, not after 1
    resumed, other = make()
    move(resumed, other, 1, first=7)  # which is forgotten
    resumed.restore(copies(policy), 2)
    other.restore(moments)
    move(resumed, other, 3, first=2)
    assert all(torch.equal(weight, whole[name]) for name, weight in resumed.trainable().items())
    assert all(int(value) == 5 for key, value in other.moments().items() if key.endswith("/step"))


def without(what):
    return lambda moments, name: moments.pop(f"{name}/{what}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("exp_avg"), r"expected exp_avg, exp_avg_sq, step of .*, got exp_avg_sq, step"),
        (without("step"), r"expected exp_avg, exp_avg_sq, step of .*, got exp_avg, exp_avg_sq"),
        (lambda moments, _: moments.update({"other/step": torch.zeros(())}), "other/step belongs to none"),
        (
            lambda moments, _: moments.update({"other/0/step": torch.zeros(())}),
            "other/0/step belongs to none",
        ),
        (
            lambda moments, name: moments.update({f"{name}/exp_avg": torch.zeros(2, 3)}),
            r"exp_avg as \(\d+, \d+\), got \(2, 3\)",
        ),
    ],
)
def test_a_state_of_other_weights_is_refused_and_changes_nothing(make, change, message):
    policy, optimizer = make()
    move(policy, optimizer, 1)
    before = {key: value.clone() for key, value in optimizer.moments().items()}
    name = next(name for name, weight in policy.trainable().items() if weight.ndim == 2)
    moments = dict(before)
    change(moments, name)
    with pytest.raises(ArgumentError, match=message):
        optimizer.restore(moments)
    after = optimizer.moments()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_a_piece_that_is_missing_of_the_form_of_0_1_is_noticed(make):
    policy, optimizer = make()
    move(policy, optimizer, 1)
    moments = in_the_form_of_0_1(optimizer.moments(), PORTION)
    place = next(key.removesuffix("/exp_avg") for key in moments if key.endswith("/2/exp_avg"))
    for what in ("exp_avg", "exp_avg_sq", "step"):
        del moments[f"{place}/{what}"]
    with pytest.raises(ArgumentError, match=r"moments: expected .*/exp_avg as \("):
        optimizer.restore(moments)


def test_sgd_keeps_no_state_and_refuses_one(make):
    policy, optimizer = make(optimiser="sgd")
    move(policy, optimizer, 1)
    assert optimizer.moments() == {}
    name = next(iter(policy.trainable()))
    with pytest.raises(ArgumentError, match="expected nothing of"):
        optimizer.restore({f"{name}/step": torch.zeros(())})
