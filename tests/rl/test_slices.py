"""Slices and ranks: the same bits on every admissible number of ranks, and the definition's update on each.

The ranks are threads here; tests/scale has them as processes.
"""

import numpy as np
import pytest
import torch

from klimb import rlhf_weight_update
from klimb.config.train import TrainConfig
from klimb.data.prompts import PromptRow
from klimb.errors import RewardError
from klimb.model.trainable import Lora
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.step import take_step
from klimb.training.evaluate.evaluator import Evaluator
from klimb.training.setup import load_value_function
from klimb.training.trainer import Trainer
from worlds import on_ranks

TEXTS = ("abc", "d", "fghij", "ba", "cab", "ji", "hhh", "e", "fed", "gab", "ic", "jab")
ROWS = [PromptRow(text, {}, text) for text in TEXTS]
BETA, LR = 0.3, 0.05
OPTIONS = {
    "model": "",
    "prompts": "p",
    "reward": ("r",),
    "out": "o",
    "eval_prompts": None,
    "completions_per_prompt": 3,
    "max_new_tokens": 6,
    "beta": BETA,
}


def count_bs(completions):
    return [completion.count("b") - 0.3 * len(completion) for completion in completions]


def fails_on_j(completions, log_metric=None, log_extra=None, **_):
    log_metric("letters", sum(map(len, completions)))
    log_extra("first", [completion[:1] for completion in completions])
    return [None if "j" in text else text.count("e") + 0.1 * len(text) for text in completions]


def rewarded(function=count_bs):
    return WeightedSum([FunctionReward(function.__name__, function)])


def policies_of(make_model, tokenizer, family, dtype):
    """Four policies of the same weights, made one after the other, and how to give them these again."""
    made = [
        Policy(
            make_model(family, vocab_size=10, dtype=dtype), tokenizer, distribution=SamplingDistribution(0.9)
        )
        for _ in range(4)
    ]
    start = {name: p.detach().clone() for name, p in made[0].trainable().items()}

    def fresh(micro_batch_size=None):
        for policy in made:
            policy.restore(start, 0)
            policy.micro_batch_size = micro_batch_size
        return made

    return fresh


@pytest.fixture(scope="module")
def policies(make_model, letter_tokenizer):
    return policies_of(make_model, letter_tokenizer, "llama", torch.float32)


@pytest.fixture(scope="module")
def wide_policies(make_model, letter_tokenizer):
    return policies_of(make_model, letter_tokenizer, "gpt2", torch.float64)


def flatten(policy):
    return torch.cat([p.detach().reshape(-1) for p in policy.trainable().values()]).numpy()


@pytest.mark.parametrize(
    "size", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3, 4]
)
def test_a_step_on_ranks_is_rlhf_weight_update_on_the_whole_batch(wide_policies, size):
    config = TrainConfig.from_dict(
        OPTIONS
        | {
            "prompts_per_step": 12,
            "baseline": "none",
            "optimiser": "sgd",
            "lr": LR,
            "max_grad_norm": None,
            "num_slices": size,
        }
    )
    reward, made = rewarded(), wide_policies()

    def two_steps(world):
        policy = made[world.rank]
        optimizer = PolicyOptimizer(policy, config, world)
        take_step(policy, reward, optimizer, ROWS, SampleKey(0, 0, list(range(12))), config)
        before = flatten(policy)
        drawn, stats = take_step(policy, reward, optimizer, ROWS, SampleKey(0, 1, list(range(12))), config)
        return before, drawn, flatten(policy), stats

    before, drawn, after, stats = on_ranks(size, two_steps)[0]
    policy = made[0]
    policy.restore(unflatten(policy, before), 1)
    gradients = []
    for row in range(len(drawn.completions)):
        policy.log_probs(drawn.completions.rows(torch.tensor([row]))).sum().backward()
        gradients.append(torch.cat([g.reshape(-1) for _, g in policy.take_gradients()]).numpy())
    expected = rlhf_weight_update(
        weights=before,
        rewards=drawn.rewards.total,
        policy_log_probs=drawn.completions.log_probs.numpy(),
        ref_log_probs=policy.reference.log_probs(drawn.completions).sum(dim=1).numpy(),
        log_prob_grads=np.stack(gradients),
        beta=BETA,
        lr=LR,
    )
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-10)
    assert stats.sampler_gap_mean < 1e-10


def unflatten(policy, flat):
    weights, start = {}, 0
    for name, p in policy.trainable().items():
        weights[name] = torch.from_numpy(flat[start : start + p.numel()]).reshape(p.shape)
        start += p.numel()
    return weights


SETTINGS = {
    "micro-batches, adaptive beta": {"micro_batch_size": 2, "kl_target": 0.5, "kl_horizon": 40, "lr": 3e-3},
    "minibatches smaller than a slice": {
        "objective": "grpo",
        "num_minibatches": 4,
        "drop_uniform_groups": True,
    },
    "greedy": {"baseline": "greedy"},
    "exact KL and entropy": {
        "objective": "grpo",
        "kl_estimator": "exact",
        "entropy_coefficient": 0.1,
        "num_minibatches": 2,
        "top_p": 0.8,
    },
    "a value function": {"objective": "ppo", "num_minibatches": 3, "num_epochs": 1, "value_warmup_steps": 1},
    "a value model": {"objective": "ppo", "num_epochs": 2, "value_model": "self", "micro_batch_size": 2},
    "tokens whitened": {"kl_place": "reward", "kl_credit": "to_go", "whiten_tokens": True},
}


LONG = ("a value model", "greedy", "tokens whitened")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[pytest.mark.slow] if name in LONG else [])
        for name, changes in SETTINGS.items()
    ],
)
def test_four_slices_give_the_same_bits_on_one_two_and_four_ranks(policies, changes):
    found = [run_steps(policies, size, 2, fails_on_j, **changes) for size in (1, 2, 4)]
    assert found[0] == found[1] == found[2]
    assert any(metrics["grad_norm"] > 0 for metrics in found[0]["metrics"])
    assert any(metrics["reward_failures"] for metrics in found[0]["metrics"])


def run_steps(policies, size, num_steps, function, **changes):
    """Take steps on ranks, and return what must not depend on their number, of rank 0; all ranks must agree."""
    options = {"prompts_per_step": 4, "num_slices": 4, "lr": 1e-2, "max_failed": 1.0, "num_steps": num_steps}
    config = TrainConfig.from_dict(OPTIONS | options | changes)
    made = policies(config.micro_batch_size)

    def steps(world):
        policy = made[world.rank]
        policy.distribution = SamplingDistribution.of(config, 0.9)
        value = load_value_function(config, policy, 1)
        trainer = Trainer.start(config, ROWS, policy, rewarded(function), world, value_function=value)
        results = [trainer.train_step() for _ in range(num_steps)]
        lines = [
            {
                name: value
                for name, value in result.metrics.items()
                if name not in ("seconds", "completions_per_second", "peak_memory_bytes")
            }
            for result in results
        ]
        moments = {name: value.numpy().tobytes() for name, value in trainer.optimizer.moments().items()}
        texts = [result.rollout.texts for result in results]
        rewards = [result.rollout.rewards for result in results]
        states = {name: part.state() for name, part in trainer.parts.items()}
        return {
            "weights": flatten(policy).tobytes(),
            "values": None if value is None else flatten(value).tobytes(),
            "metrics": lines,
            "texts": texts,
            "moments": moments,
            "rewards": rewards,
            "states": states,
        }

    found = on_ranks(size, steps)
    assert all(each == found[0] for each in found)
    return found[0]


def test_slices_change_a_step_by_rounding_alone(policies):
    sliced = run_steps(policies, 2, 1, count_bs)
    whole = run_steps(policies, 1, 1, count_bs, num_slices=1)
    assert sliced["texts"] == whole["texts"]
    weights = [np.frombuffer(found["weights"], np.float32) for found in (sliced, whole)]
    np.testing.assert_allclose(*weights, rtol=0, atol=1e-4)
    assert sliced["metrics"][0]["grad_norm"] == pytest.approx(whole["metrics"][0]["grad_norm"], rel=1e-4)


def test_an_evaluation_gives_the_same_rows_on_one_and_three_ranks(policies):
    config = TrainConfig.from_dict(OPTIONS | {"prompts_per_step": 5, "num_slices": 5})
    made, rows = policies(), []
    for size in (1, 3):
        rows += on_ranks(
            size,
            lambda world: Evaluator(made[world.rank], rewarded(), ROWS, config, world=world).evaluate(
                "after", 0
            ),
        )
    assert len(rows[0]) == 12 * 4
    assert all(each == rows[0] for each in rows)


@pytest.mark.parametrize(
    "kind", [{"lora": Lora(2, 4.0)}, {"num_trainable_layers": 1}], ids=["lora", "layers"]
)
def test_adapters_and_last_layers_give_the_same_bits_on_one_and_two_ranks(model_folder, kind):
    def make_policy(**_):
        return Policy.load(model_folder, **kind)

    rows = [PromptRow(f"text {text}", {}, text) for text in TEXTS]

    def steps(world):
        options = {"prompts_per_step": 4, "num_slices": 2, "lr": 1e-2, "max_failed": 1.0}
        config = TrainConfig.from_dict(OPTIONS | options)
        policy = policies[world.rank]
        trainer = Trainer.start(config, rows, policy, rewarded(), world)
        for _ in range(3):
            trainer.train_step()
        return flatten(policy).tobytes()

    found = []
    for size in (1, 2):
        policies = [
            make_policy() for _ in range(size)
        ]  # one after the other: adapters begin from a global seed
        found += on_ranks(size, steps)
    assert found[0] == found[1] == found[2]
    assert found[0] != flatten(make_policy()).tobytes()


def test_too_many_failures_end_all_ranks_with_one_message(policies):
    messages = []
    for size in (1, 2):
        with pytest.raises(RewardError) as caught:
            run_steps(policies, size, 3, fails_on_j, max_failed=0.0)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "of 12 completions failed" in messages[0]


def test_failures_are_numbered_in_the_whole_batch(policies):
    rewards = run_steps(policies, 2, 1, fails_on_j)["rewards"][0]
    failed = [index for index, reward in enumerate(rewards.total) if reward is None]
    assert failed
    assert [failure.index for failure in rewards.failures] == failed
    assert {failure.num_completions for failure in rewards.failures} == {12}
    assert len(rewards.extra["first"]) == 12
