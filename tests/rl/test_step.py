"""The trainer's step is the definition."""

import numpy as np
import pytest
import torch

from klimb import rlhf_weight_update
from klimb.config.train import TrainConfig
from klimb.data.prompts import PromptRow
from klimb.errors import DivergedError, RewardError, SamplerGapError
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.rl.advantages import find_advantages
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.rollout import rollout
from klimb.rl.step import take_step
from klimb.rl.surrogates import SumOfCompletions

ROWS = [PromptRow(text, {}, text) for text in ("abc", "d", "fghij")]  # unequal lengths: padding
BETA, LR, TEMPERATURE = 0.3, 0.05, 0.9
LONGEST = 7


def config(**changes):
    options = {
        "model": "",
        "prompts": "p",
        "reward": ("r",),
        "out": "o",
        "completions_per_prompt": 3,
        "prompts_per_step": 3,
        "max_new_tokens": LONGEST,
        "baseline": "none",
        "beta": BETA,
        "optimiser": "sgd",
        "lr": LR,
        "max_grad_norm": None,
    }
    return TrainConfig.from_dict(options | {"eval_prompts": None} | changes)


@pytest.fixture
def make_policy(make_model, letter_tokenizer):
    """A tiny transformer in float64 with dropout in its configuration."""

    def make(micro_batch_size=None):
        model = make_model("gpt2", vocab_size=10, dtype=torch.float64)
        return Policy(
            model,
            letter_tokenizer,
            distribution=SamplingDistribution(TEMPERATURE),
            micro_batch_size=micro_batch_size,
        )

    return make


def count_bs(completions):
    """An arbitrary reward that differs between completions."""
    return [completion.count("b") - 0.3 * len(completion) for completion in completions]


REWARD = WeightedSum([FunctionReward("count_bs", count_bs)])


def flatten(parameters):
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).numpy()


def log_prob_gradients(policy, completions):
    """∇ log π of each completion by torch.func, without batch, padding or cache."""
    parameters = {name: p.detach() for name, p in policy.model.named_parameters()}

    def log_prob(parameters, ids, num_prompt_tokens):
        logits = torch.func.functional_call(policy.model, parameters, (), {"input_ids": ids[None]}).logits[0]
        log_probs = torch.log_softmax(logits / TEMPERATURE, dim=-1)
        predicted = log_probs[num_prompt_tokens - 1 : -1]
        return predicted.gather(1, ids[num_prompt_tokens:, None]).sum()

    rows = []
    for row, length in enumerate(completions.lengths.tolist()):
        prompt = completions.prompts[int(completions.prompt_of[row])]
        ids = torch.tensor(prompt + completions.ids[row, :length].tolist())
        gradients = torch.func.grad(log_prob)(parameters, ids, len(prompt))
        rows.append(flatten(gradients[name] for name in policy.trainable()))
    return np.stack(rows)


def require_moved_by_definition(policy, before, weights, completions, rewards):
    """The weights that `before` has, and `policy` had, were moved as `rlhf_weight_update` moves them."""
    assert len(set(completions.lengths.tolist())) > 1
    expected = rlhf_weight_update(
        weights=weights,
        rewards=rewards,
        policy_log_probs=completions.log_probs.numpy(),
        ref_log_probs=policy.reference.log_probs(completions).sum(dim=1).numpy(),
        log_prob_grads=log_prob_gradients(before, completions),
        beta=BETA,
        lr=LR,
    )
    updated = flatten(policy.trainable().values())
    assert np.abs(updated - weights).max() > 1e-3
    np.testing.assert_allclose(updated, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 4, 9])
def test_a_step_is_rlhf_weight_update_on_the_flattened_parameters(make_policy, micro_batch_size):
    policy = make_policy(micro_batch_size)
    optimizer = PolicyOptimizer(policy, config())
    # The second step is compared: by then the policy has left the reference, so the KL matters.
    take_step(policy, REWARD, optimizer, ROWS, SampleKey(0, 0, [0, 1, 2]), config())
    weights = flatten(policy.trainable().values())
    before = make_policy()
    before.model.load_state_dict(policy.model.state_dict())

    judged, _ = take_step(policy, REWARD, optimizer, ROWS, SampleKey(0, 1, [0, 1, 2]), config())

    assert np.abs(judged.kl).max() > 1e-3
    require_moved_by_definition(policy, before, weights, judged.completions, judged.rewards.total)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_large_weights_are_moved_piece_by_piece_to_the_same_place(make_policy, optimiser, monkeypatch):
    moved, norms = [], []
    for portion in (1 << 22, 50, 7):
        monkeypatch.setattr("klimb.rl.optimizer._PORTION", portion)
        policy = make_policy()
        options = config(optimiser=optimiser, max_grad_norm=0.1)
        optimizer = PolicyOptimizer(policy, options)
        for step in range(2):
            _, metrics = take_step(policy, REWARD, optimizer, ROWS, SampleKey(0, step, [0, 1, 2]), options)
        pieces = [value.numel() for state in optimizer.optimiser.state.values() for value in state.values()]
        assert optimiser == "sgd" or max(pieces) <= portion
        moved.append(flatten(policy.trainable().values()))
        norms.append(metrics.grad_norm)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-12)
    for weights in moved[1:]:
        np.testing.assert_allclose(weights, moved[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_favoured_completion_gains_probability(make_policy, optimiser):
    policy = make_policy()
    options = config(
        optimiser=optimiser, lr=0.01, baseline="leave_one_out", completions_per_prompt=8, beta=0.0
    )
    key = SampleKey(0, 0, [0, 1, 2])
    judged, _ = take_step(policy, REWARD, PolicyOptimizer(policy, options), ROWS, key, options)
    completions = judged.completions
    change = (policy.log_probs(completions).detach().sum(dim=1) - completions.log_probs).reshape(3, 8)
    rewards = torch.tensor(judged.rewards.total, dtype=torch.float64).reshape(3, 8)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    assert float((centred * change).sum()) > 0
    best = rewards.reshape(-1).argmax()
    assert float(change.reshape(-1)[best]) > 0


def test_at_step_0_the_divergence_is_exactly_zero(make_policy):
    policy = make_policy()
    judged, metrics = take_step(
        policy, REWARD, PolicyOptimizer(policy, config()), ROWS, SampleKey(0, 0, [0, 1, 2]), config()
    )
    assert judged.kl == [0.0] * 9
    # The reference's own pass, which later steps take, agrees as far as float64 goes.
    own_pass = make_policy().reference.log_probs(judged.completions).sum(dim=1)
    torch.testing.assert_close(own_pass, judged.completions.log_probs, rtol=0, atol=1e-12)
    assert metrics.sampler_gap_max < 1e-12  # float64


def test_warm_up_rises_linearly_to_the_learning_rate(make_policy):
    policy = make_policy()
    options = config(warmup_steps=4, lr=0.01)
    optimizer = PolicyOptimizer(policy, options)
    rates = [
        take_step(policy, REWARD, optimizer, ROWS, SampleKey(0, step, [0, 1, 2]), options)[1].lr
        for step in range(6)
    ]
    np.testing.assert_allclose(rates, [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01], rtol=1e-15)


def test_a_long_gradient_is_scaled_down_to_its_limit(make_policy):
    policy = make_policy()
    options = config(max_grad_norm=0.1)
    weights = flatten(policy.trainable().values())
    _, metrics = take_step(
        policy, REWARD, PolicyOptimizer(policy, options), ROWS, SampleKey(0, 0, [0, 1, 2]), options
    )
    assert metrics.grad_norm > 0.1
    moved = np.linalg.norm(flatten(policy.trainable().values()) - weights)
    assert moved == pytest.approx(LR * 0.1, rel=1e-4)  # torch adds 1e-6 to the length that it divides by


def test_a_gradient_that_is_not_finite_moves_nothing(make_policy):
    policy = make_policy()
    weights = flatten(policy.trainable().values())
    optimizer = PolicyOptimizer(policy, config())
    key = SampleKey(0, 0, [0, 1, 2])
    prompts = [policy.encode(row.prompt) for row in ROWS]
    completions = policy.sample(prompts, 3, max_new_tokens=LONGEST, key=key)

    def broken(log_probs, _rows):
        return log_probs.sum() * float("inf")

    with pytest.raises(DivergedError, match=r"the gradient is not finite .* after 0 updates"):
        optimizer.step(broken, completions)
    np.testing.assert_array_equal(flatten(policy.trainable().values()), weights)
    assert policy.num_updates == 0


def test_columns_reach_the_reward_once_for_each_completion(make_policy):
    seen = {}

    def record(completions, wanted):
        seen["wanted"] = wanted
        return [0.0] * len(completions)

    rows = [PromptRow(row.prompt, {"wanted": index}, "") for index, row in enumerate(ROWS)]
    policy = make_policy()
    reward = WeightedSum([FunctionReward("record", record)])
    take_step(policy, reward, PolicyOptimizer(policy, config()), rows, SampleKey(0, 0, [0, 1, 2]), config())
    assert seen["wanted"] == [0] * 3 + [1] * 3 + [2] * 3


def test_a_policy_other_than_the_one_sampled_stops_the_run_before_the_weights_move(make_policy):
    policy = make_policy()
    judged = rollout(
        policy, REWARD, ROWS, completions_per_prompt=3, max_new_tokens=8, key=SampleKey(0, 0, [0, 1, 2])
    )
    with torch.no_grad():
        next(iter(policy.trainable().values())).mul_(1.5)
    weights = flatten(policy.trainable().values())
    with pytest.raises(SamplerGapError, match=r"differ by .* nats per token.*--max-logprob-mismatch"):
        PolicyOptimizer(policy, config()).step(
            SumOfCompletions(torch.ones(9, dtype=torch.float64)), judged.completions
        )
    assert (flatten(policy.trainable().values()) == weights).all()
    PolicyOptimizer(policy, config(max_logprob_mismatch=10.0)).step(
        SumOfCompletions(torch.ones(9, dtype=torch.float64)), judged.completions
    )
    assert (flatten(policy.trainable().values()) != weights).any()


def failing(*failed):
    """The same reward, where some completions of every batch have none."""

    def reward(completions):
        return [
            float("nan") if index in failed else value for index, value in enumerate(count_bs(completions))
        ]

    return WeightedSum([FunctionReward("failing", reward)])


@pytest.mark.parametrize("micro_batch_size", [None, 1, 4])
def test_a_step_with_failures_is_rlhf_weight_update_on_the_completions_that_have_a_reward(
    make_policy, micro_batch_size
):
    policy, reward, options = make_policy(micro_batch_size), failing(1, 3, 4, 5), config(max_failed=0.5)
    optimizer = PolicyOptimizer(policy, options)
    take_step(policy, reward, optimizer, ROWS, SampleKey(0, 0, [0, 1, 2]), options)
    weights = flatten(policy.trainable().values())
    before = make_policy()
    before.model.load_state_dict(policy.model.state_dict())

    judged, _ = take_step(policy, reward, optimizer, ROWS, SampleKey(0, 1, [0, 1, 2]), options)

    assert judged.valid == [0, 2, 6, 7, 8]  # of the second prompt none
    completions = judged.completions.rows(torch.tensor(judged.valid))
    require_moved_by_definition(policy, before, weights, completions, judged.rewards.given)


def test_what_failed_counts_for_no_advantage(make_policy):
    policy, options = make_policy(), config(max_failed=1.0, baseline="leave_one_out", beta=0.0)
    judged, _ = take_step(
        policy, failing(2, 3, 4), PolicyOptimizer(policy, options), ROWS, SampleKey(0, 0, [0, 1, 2]), options
    )
    total = judged.rewards.total
    advantages = find_advantages(judged, options).tolist()
    # Two are left of the first prompt, one alone of the second, and all of the third.
    gap, mean = total[0] - total[1], sum(total[6:]) / 3
    expected = [gap, -gap, 0.0, 0.0, 0.0, 0.0, *[1.5 * (reward - mean) for reward in total[6:]]]
    np.testing.assert_allclose(advantages, expected, atol=1e-14)


def test_a_step_of_which_all_failed_moves_nothing_and_is_counted(make_policy):
    policy, options = make_policy(), config(max_failed=1.0, optimiser="adamw")
    optimizer = PolicyOptimizer(policy, options)
    take_step(policy, REWARD, optimizer, ROWS, SampleKey(0, 0, [0, 1, 2]), options)
    weights, moments = flatten(policy.trainable().values()), optimizer.moments()
    moments = {name: value.clone() for name, value in moments.items()}
    judged, metrics = take_step(
        policy, failing(*range(9)), optimizer, ROWS, SampleKey(0, 1, [0, 1, 2]), options
    )
    assert judged.rewards.given == []
    assert (metrics.grad_norm, metrics.lr) == (0.0, 0.0)
    assert (flatten(policy.trainable().values()) == weights).all()
    assert all(torch.equal(value, moments[name]) for name, value in optimizer.moments().items())
    assert policy.num_updates == 2
    # What comes after is as far from the reference as it was.
    assert any(judged.kl)
    take_step(policy, REWARD, optimizer, ROWS, SampleKey(0, 2, [0, 1, 2]), options)
    assert (flatten(policy.trainable().values()) != weights).any()


def test_rewards_that_are_all_equal_move_nothing(make_policy):
    policy, options = make_policy(), config(baseline="leave_one_out", beta=0.0)
    reward = WeightedSum([FunctionReward("equal", lambda completions: [0.1] * len(completions))])
    weights = flatten(policy.trainable().values())
    _, metrics = take_step(
        policy, reward, PolicyOptimizer(policy, options), ROWS, SampleKey(0, 0, [0, 1, 2]), options
    )
    assert metrics.grad_norm == 0.0
    assert (flatten(policy.trainable().values()) == weights).all()


def test_too_many_failures_stop_the_run_before_the_weights_move(make_policy):
    policy, options = make_policy(), config()
    weights = flatten(policy.trainable().values())
    with pytest.raises(
        RewardError,
        match=r"every reward returned None or NaN, at completion 2 of 9: .*; 1 of 9 .* max_failed 0\.1",
    ):
        take_step(
            policy, failing(2), PolicyOptimizer(policy, options), ROWS, SampleKey(0, 0, [0, 1, 2]), options
        )
    assert (flatten(policy.trainable().values()) == weights).all()
    assert policy.num_updates == 0


def test_a_reward_gets_the_prompt_as_the_policy_reads_it(make_policy):
    seen = []

    class Reward:
        name = "seen"

        def __call__(self, batch):
            seen.append(batch.rendered)
            return [0.0] * len(batch.texts)

    policy = make_policy()
    take_step(
        policy,
        WeightedSum([Reward()]),
        PolicyOptimizer(policy, config()),
        ROWS,
        SampleKey(0, 0, [0, 1, 2]),
        config(),
    )
    assert seen == [["abc"] * 3 + ["d"] * 3 + ["fghij"] * 3]
