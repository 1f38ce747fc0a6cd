"""Completions from a sampler that is not the policy."""

from dataclasses import replace

import pytest
import torch

from klimb.config.train import TrainConfig
from klimb.core.aggregation import count_denominators
from klimb.core.score_weights import TokenBatch, find_score_weights
from klimb.data.prompts import PromptRow
from klimb.errors import ArgumentError, SamplerGapError
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.rl.advantages import find_counted, find_token_advantages
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.rollout import rollout
from klimb.rl.step import take_step
from klimb.training.evaluate.evaluator import Evaluator
from klimb.training.trainer import Trainer

ROWS = [PromptRow(text, {}, text) for text in ("abc", "d", "fghij")]
REWARD = WeightedSum([FunctionReward("count_bs", lambda completions: [c.count("b") for c in completions])])
KEY, OTHER_KEY = SampleKey(0, 0, [0, 1, 2]), SampleKey(9, 4, [0, 1, 2])


class Replay:
    """Returns the same completions each time, and keeps what it was asked for."""

    def __init__(self, completions):
        self.completions = completions
        self.asked = []

    def sample(self, prompts, completions_per_prompt, *, max_new_tokens, key):
        self.asked.append((prompts, completions_per_prompt, max_new_tokens, key))
        return self.completions


def config(**changes):
    options = {"model": "m", "prompts": "p", "reward": ("r",), "out": "o", "eval_prompts": None, "lr": 0.05}
    sizes = {"prompts_per_step": 3, "completions_per_prompt": 2, "max_new_tokens": 7}
    return TrainConfig.from_dict(options | sizes | {"eval_completions_per_prompt": 2} | changes)


@pytest.fixture
def make_policy(make_model, letter_tokenizer):
    return lambda: Policy(make_model("gpt2", vocab_size=10, dtype=torch.float64), letter_tokenizer)


@pytest.fixture
def replay(make_policy):
    policy = make_policy()
    prompts = [policy.encode(row.prompt) for row in ROWS]
    return Replay(policy.sample(prompts, 2, max_new_tokens=7, key=KEY))


def test_a_rollout_scores_what_its_sampler_draws(make_policy, replay):
    policy = make_policy()
    sizes = {"completions_per_prompt": 2, "max_new_tokens": 7}
    own = rollout(policy, REWARD, ROWS, key=KEY, **sizes)
    replayed = rollout(policy, REWARD, ROWS, key=OTHER_KEY, sampler=replay, **sizes)
    assert (replayed.texts, replayed.rewards.total) == (own.texts, own.rewards.total)
    assert replayed.texts != rollout(policy, REWARD, ROWS, key=OTHER_KEY, **sizes).texts
    assert replay.asked == [([policy.encode(row.prompt) for row in ROWS], 2, 7, OTHER_KEY)]


def test_a_step_on_replayed_completions_moves_the_weights_as_one_that_drew_them(make_policy, replay):
    policies = own, replaying, other = make_policy(), make_policy(), make_policy()
    for policy, key, sampler in zip(policies, (KEY, OTHER_KEY, OTHER_KEY), (None, replay, None), strict=True):
        optimizer = PolicyOptimizer(policy, config())
        take_step(policy, REWARD, optimizer, ROWS, key, config(), sampler=sampler)
    for name, weight in own.trainable().items():
        assert torch.equal(weight, replaying.trainable()[name])
    assert any(not torch.equal(weight, other.trainable()[name]) for name, weight in own.trainable().items())


@pytest.mark.parametrize(
    ("changes", "num_epochs", "micro_batch_size"),
    [
        ({"objective": "trl_grpo", "correction_high": 1.05}, 1, None),
        (
            {"objective": "decoupled_ppo", "baseline": "group_mean", "beta": 0.0, "correction_high": 1.01},
            2,
            None,
        ),
        ({"objective": "dapo", "filter_low": 0.95, "filter_high": 1.05}, 1, 2),
        (
            {
                "objective": "prime_rl",
                "sampler_correction": "truncate",
                "correction_level": "sequence_mean",
            },
            2,
            2,
        ),
    ],
)
def test_a_correction_weighs_by_the_trainers_log_probs_over_the_samplers(
    changes, num_epochs, micro_batch_size, make_policy, replay
):
    """The sampler recorded other log-probs than the trainer finds; the update is by the score weights of both."""
    options = config(**{"num_epochs": num_epochs, "optimiser": "sgd", "max_grad_norm": None, **changes})
    options = replace(options, max_logprob_mismatch=1.0)
    drawn = replay.completions
    noise = 0.1 * torch.randn(
        drawn.ids.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    replay.completions = replace(drawn, token_log_probs=drawn.token_log_probs + noise * drawn.mask)
    policy, expected = make_policy(), make_policy()
    policy.micro_batch_size = micro_batch_size
    found, stats = take_step(
        policy, REWARD, PolicyOptimizer(policy, options), ROWS, KEY, options, sampler=replay
    )
    old = expected.log_probs(drawn).detach()
    batch = TokenBatch(
        drawn.mask,
        find_token_advantages(found, options),
        old,
        sampler_log_probs=found.completions.token_log_probs,
    )
    is_counted = find_counted(found, options)
    rows = is_counted.nonzero()[:, 0]
    counts = count_denominators(drawn.lengths[rows], drawn.prompt_of[rows], max_length=7)
    for _ in range(num_epochs):
        log_probs = expected.log_probs(drawn)[rows]
        weights = find_score_weights(log_probs.detach(), batch.rows(rows), options.algorithm, counts)
        assert float((weights.correction - 1).abs().max()) > 1e-3
        (weights.weights * log_probs).sum().backward()
        with torch.no_grad():
            for weight in expected.trainable().values():
                weight.add_(options.lr * weight.grad)
                weight.grad = None
    for name, weight in policy.trainable().items():
        torch.testing.assert_close(weight, expected.trainable()[name], rtol=0, atol=1e-10)
    assert 0 < stats.weights["correction_mean"] != 1
    assert "masked_correction" in stats.weights


def test_without_a_correction_the_trainer_makes_no_pass_of_its_own(make_policy):
    sizes = {"completions_per_prompt": 2, "max_new_tokens": 7}
    assert rollout(make_policy(), REWARD, ROWS, key=KEY, **sizes).old_log_probs is None
    corrected = config(objective="trl_grpo", num_epochs=2)
    policy = make_policy()
    found, _ = take_step(policy, REWARD, PolicyOptimizer(policy, corrected), ROWS, KEY, corrected)
    torch.testing.assert_close(found.old_log_probs, found.completions.token_log_probs, rtol=0, atol=1e-10)


def test_a_truncated_sampler_without_supports_is_refused(make_policy, replay):
    policy = make_policy()
    policy.distribution = SamplingDistribution(top_p=0.9)
    sizes = {"completions_per_prompt": 2, "max_new_tokens": 7}
    with pytest.raises(
        ArgumentError, match=r"sampler: top_p, top_k or min_p .* the completions have no supports"
    ):
        rollout(policy, REWARD, ROWS, key=KEY, sampler=replay, **sizes)


def without_tokens(drawn, rows):
    """The same completions, of which some have none."""
    lengths = drawn.lengths.clone()
    lengths[rows] = 0
    mask = torch.arange(drawn.ids.shape[1]) < lengths[:, None]
    numbers = {name: getattr(drawn, name) * mask for name in ("token_log_probs", "token_entropies")}
    return replace(drawn, lengths=lengths, **numbers)


@pytest.mark.parametrize("micro_batch_size", [None, 1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "grpo", "num_minibatches": 3},
        {"objective": "grpo", "kl_estimator": "exact", "num_epochs": 2},
        {"objective": "gspo", "num_minibatches": 1, "sampler_correction": "truncate", "num_epochs": 2},
    ],
)
def test_completions_without_a_token_are_in_no_gradient_and_no_denominator(
    make_policy, replay, changes, micro_batch_size
):
    # They are rewarded: all rewards are as if they counted, so the baseline is the same with and without them.
    replay.completions = without_tokens(
        replay.completions, [1, 2, 3]
    )  # the second prompt has nothing but such
    options, moved = config(**changes, optimiser="sgd", max_grad_norm=None), []
    reward = WeightedSum([FunctionReward("number", lambda completions: [*range(len(completions))])])
    policy = make_policy()
    policy.micro_batch_size = micro_batch_size
    for number in range(2):  # in the second step the reference is another model
        key = SampleKey(0, number, [0, 1, 2])
        with torch.no_grad():
            present = policy.log_probs(replay.completions)
        replay.completions = replace(replay.completions, token_log_probs=present)
        optimizer = PolicyOptimizer(policy, options)
        found, stats = take_step(policy, reward, optimizer, ROWS, key, options, sampler=replay)
        moved.append(stats.grad_norm)
    assert find_counted(found, options).tolist() == [True, False, False, False, True, True]
    assert stats.weights["left_out"] == 1 / 2
    assert min(moved) > 0
    replay.completions = without_tokens(replay.completions, slice(None))
    with pytest.raises(ArgumentError, match="sampler: none of the 6 completions has a token"):
        take_step(policy, reward, optimizer, ROWS, key, options, sampler=replay)


def test_a_trainer_and_an_evaluator_draw_from_their_sampler(make_policy, replay):
    policy = make_policy()
    trainer = Trainer.start(config(), ROWS, policy, REWARD)
    trainer.sampler = replay
    assert trainer.train_step().rollout.completions is replay.completions
    rows = Evaluator(policy, REWARD, ROWS, config(), sampler=replay).evaluate("after", 1)
    assert [row["length"] for row in rows] == replay.completions.lengths.tolist()
    assert len(replay.asked) == 2


def test_a_sampler_of_other_weights_stops_the_run_before_the_weights_move(make_policy, replay):
    policy = make_policy()
    drawn = replay.completions
    stale = Replay(replace(drawn, token_log_probs=drawn.token_log_probs - 0.1 * drawn.mask))
    optimizer = PolicyOptimizer(policy, config())
    with pytest.raises(SamplerGapError, match=r"differ by 0\.1 nats per token"):
        take_step(policy, REWARD, optimizer, ROWS, KEY, config(), sampler=stale)
    assert policy.num_updates == 0
