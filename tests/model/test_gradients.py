"""Per-sample gradients equal those taken one by one."""

import itertools

import pytest
import torch

import klimb
from klimb import KlimbError, log_prob_gradients


def make_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()


def log_prob(model, state, action):
    return torch.log_softmax(model(state), -1).gather(-1, action[None])[0]


def samples(num_samples=7):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(num_samples, 3, dtype=torch.float64, generator=generator)
    return states, torch.randint(0, 4, (num_samples,), generator=generator)


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_each_row_is_the_gradient_of_its_sample(block_size):
    model = make_model()
    states, actions = samples()
    blocks = list(log_prob_gradients(model, log_prob, (states, actions), block_size=block_size))
    assert [len(block) for block in blocks] == [
        min(block_size, 7 - first) for first in range(0, 7, block_size)
    ]
    rows = torch.cat(blocks)
    for row, state, action in zip(rows, states, actions, strict=True):
        gradients = torch.autograd.grad(log_prob(model, state, action), list(model.parameters()))
        torch.testing.assert_close(row, torch.cat([g.reshape(-1) for g in gradients]), rtol=0, atol=1e-14)
    assert not rows.requires_grad


def test_frozen_parameters_have_no_column():
    model = make_model()
    model[0].requires_grad_(False)
    (block,) = log_prob_gradients(model, log_prob, samples())
    assert block.shape == (7, 5 * 4 + 4)


def test_blocks_feed_the_streamed_step():
    model = make_model()
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    rewards, log_probs = [1.0] * 7, [-1.0] * 7
    streamed = klimb.streamed_weight_update(
        weights,
        rewards,
        log_probs,
        log_probs,
        (b.numpy() for b in log_prob_gradients(model, log_prob, samples(), block_size=2)),
        0.1,
        0.1,
    )
    whole = torch.cat(list(log_prob_gradients(model, log_prob, samples()))).numpy()
    expected = klimb.rlhf_weight_update(weights, rewards, log_probs, log_probs, whole, 0.1, 0.1)
    torch.testing.assert_close(torch.from_numpy(streamed), torch.from_numpy(expected), rtol=0, atol=1e-14)


def test_bad_input_names_the_argument():
    states, actions = samples()
    with pytest.raises(KlimbError, match=r"samples: expected tensors of one length, got \[6, 7\]"):
        next(log_prob_gradients(make_model(), log_prob, (states, actions[:6])))
    with pytest.raises(KlimbError, match="samples: expected tensors of one length, got none"):
        next(log_prob_gradients(make_model(), log_prob, ()))
    with pytest.raises(KlimbError, match="block_size: expected at least 1, got 0"):
        next(log_prob_gradients(make_model(), log_prob, (states, actions), block_size=0))
    with pytest.raises(KlimbError, match="model: expected at least one parameter"):
        next(log_prob_gradients(make_model().requires_grad_(False), log_prob, (states, actions)))


def load_example(name):
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_handful_of_parameters_comes_near_its_optimum(capsys):
    assert load_example("handful_of_parameters").main() < 0.05
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_the_small_transformer_comes_near_its_optimum():
    before, after, best = itertools.islice(load_example("small_transformer").main(), 3)
    assert before < after < best
    assert best - after < 0.1 * (best - before)
