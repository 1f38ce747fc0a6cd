"""Completions from a sampler that is not the policy."""

from dataclasses import replace

import pytest
import torch

from klimb.config.train import TrainConfig
from klimb.data.prompts import PromptRow
from klimb.errors import SamplerGapError
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
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
