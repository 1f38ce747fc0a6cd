"""The loop in parts takes the step that `klimb.train` takes, and the example of it trains."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import klimb
from klimb.config.train import TrainConfig
from klimb.core.advantages import leave_one_out
from klimb.data.prompts import PromptRow
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.step import take_step

PROMPTS = ["one", "a longer one", "three"]


def letters(completions, **_):
    return [text.count("e") + 0.1 * len(text) for text in completions]


def fails(**_):
    raise RuntimeError("wrong on purpose")


def weights_of(policy):
    return torch.cat([weight.detach().flatten() for weight in policy.trainable().values()])


def test_two_steps_of_the_loop_are_two_steps_of_a_run_to_rounding(model_folder):
    mine, theirs = Policy.load(model_folder), Policy.load(model_folder)
    config = TrainConfig(
        model="m", prompts=Path("p"), reward=("r",), out=Path("o"), beta=0.3, lr=1e-2, prompts_per_step=3,
        completions_per_prompt=4, max_new_tokens=6, lr_schedule="constant", warmup_steps=0,
    )  # fmt: skip
    taken = PolicyOptimizer(theirs, config)
    rows = [PromptRow(text, {}, text) for text in PROMPTS]
    optimizer = klimb.Optimizer(mine, 1e-2)
    for step in range(2):
        reward = WeightedSum([FunctionReward("letters", letters)])
        take_step(theirs, reward, taken, rows, SampleKey(0, step, [0, 1, 2]), config)
        batch = klimb.rollout(mine, letters, PROMPTS, group_size=4, max_new_tokens=6, step=step)
        adjusted = klimb.adjusted_rewards(batch.rewards, batch.kl, 0.3)
        optimizer.step(batch.completions, leave_one_out(adjusted).reshape(-1) / len(batch))
    # c is divided by N before it is multiplied, there afterwards; AdamW makes of 1e-7 of a small gradient more.
    torch.testing.assert_close(weights_of(mine), weights_of(theirs), rtol=1e-4, atol=1e-5)


def test_weights_of_tokens_and_a_function_of_log_probs_give_the_step_of_weights_of_completions(model_folder):
    found = []
    for kind in ("completions", "tokens", "function"):
        policy = Policy.load(model_folder, micro_batch_size=5)
        batch = klimb.rollout(policy, letters, PROMPTS, group_size=4, max_new_tokens=6)
        weights = leave_one_out(batch.rewards).reshape(-1) / len(batch)
        given = {
            "completions": weights,
            "tokens": weights[:, None].expand_as(batch.completions.ids),
            "function": lambda log_probs, rows, weights=weights: weights[rows, None].expand_as(log_probs),
        }
        klimb.Optimizer(policy, 0.1, optimiser="sgd").step(batch.completions, given[kind])
        found.append(weights_of(policy))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-7)


def test_score_weights_of_another_shape_or_not_finite_are_refused_and_nothing_moves(model_folder):
    policy = Policy.load(model_folder)
    batch = klimb.rollout(policy, letters, PROMPTS, group_size=2, max_new_tokens=4)
    optimizer, before = klimb.Optimizer(policy, 0.1), weights_of(policy).clone()
    with pytest.raises(ValueError, match=r"score_weights: expected shape \(6,\), one per completion"):
        optimizer.step(batch.completions, batch.rewards)
    with pytest.raises(ValueError, match="expected finite numbers"):
        optimizer.step(batch.completions, torch.full((6,), torch.nan))
    assert torch.equal(weights_of(policy), before)


def test_a_reward_that_fails_and_prompts_that_cannot_be_read_are_refused(model_folder):
    policy = Policy.load(model_folder)
    with pytest.raises(klimb.KlimbError, match="wrong on purpose"):
        klimb.rollout(policy, fails, PROMPTS, group_size=2)
    with pytest.raises(klimb.KlimbError, match=r"prompts\[1\]"):
        klimb.rollout(policy, letters, ["one", 3], group_size=2)
    with pytest.raises(klimb.KlimbError, match="group_size"):
        klimb.rollout(policy, letters, PROMPTS, group_size=0)


def test_columns_of_prompts_reach_the_reward_in_a_rollout(model_folder):
    def reward(wanted, **_):
        return [float(letter == "a") for letter in wanted]

    prompts = [{"prompt": "one", "wanted": "a"}, {"prompt": "three", "wanted": "b"}]
    batch = klimb.rollout(Policy.load(model_folder), reward, prompts, group_size=2, max_new_tokens=3)
    assert batch.rewards.tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.slow
def test_the_example_of_a_loop_trains_a_model_and_saves_it(model_folder, tmp_path):
    script = Path(__file__).parents[1] / "examples" / "rl_loop.py"
    finished = subprocess.run(
        [sys.executable, script, "--model", model_folder, "--num-steps", "2", "--out", tmp_path / "out"],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "step 2/2  reward" in finished.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert 55 <= len(script.read_text().splitlines()) <= 80
