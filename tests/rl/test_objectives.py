"""Steps of objectives move the weights by their score weights; minibatches; declarations."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from klimb import count_denominators, policy_gradient, score_weights
from klimb.config.train import TrainConfig
from klimb.core.presets import PRESETS
from klimb.core.score_weights import TokenBatch
from klimb.data.prompts import PromptRow
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.rl.advantages import find_advantages, find_counted, find_token_advantages
from klimb.rl.declaration import declare
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.rollout import rollout
from klimb.rl.step import minibatches, take_step

ROWS = [PromptRow(text, {}, text) for text in ("abc", "d", "fghij")]
DRAW, LONGEST, LR = SampleKey(0, 0, [0, 1, 2]), 7, 0.05
DECLARED = Path(__file__).parent / "declarations.json"


def count_bs(completions):
    return [completion.count("b") - 0.3 * len(completion) for completion in completions]


REWARD = WeightedSum([FunctionReward("count_bs", count_bs)])


def config(**changes):
    options = {
        "model": "",
        "prompts": "p",
        "reward": ("r",),
        "out": "o",
        "completions_per_prompt": 3,
        "prompts_per_step": 3,
        "max_new_tokens": LONGEST,
        "optimiser": "sgd",
        "lr": LR,
        "max_grad_norm": None,
    }
    return TrainConfig.from_dict(options | {"eval_prompts": None} | changes)


@pytest.fixture
def make_policy(make_model, letter_tokenizer):
    def make(micro_batch_size=None):
        model = make_model("gpt2", vocab_size=10, dtype=torch.float64)
        return Policy(
            model, letter_tokenizer, distribution=SamplingDistribution(0.9), micro_batch_size=micro_batch_size
        )

    return make


def flatten(policy):
    return torch.cat([p.detach().reshape(-1) for p in policy.trainable().values()]).numpy()


def token_gradients(policy, completions):
    """∇ log π of each token by plain automatic differentiation, one completion at a time."""
    longest = completions.ids.shape[1]
    found = np.zeros((len(completions), longest, len(flatten(policy))))
    for row, length in enumerate(completions.lengths.tolist()):
        scores = policy.log_probs(completions.rows(torch.tensor([row])))[0]
        for token in range(length):
            parameters = list(policy.trainable().values())
            gradients = torch.autograd.grad(scores[token], parameters, retain_graph=True, allow_unused=True)
            parts = [
                torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
            ]
            found[row, token] = torch.cat([part.reshape(-1) for part in parts]).numpy()
    return found


@pytest.fixture(scope="module")
def gradients_at_start():
    """∇ log π of the first update by the completions: every objective draws the same from the same weights."""
    return {}


OFF_POLICY = {"num_epochs": 2, "lr": 0.5}
STEPPED = [
    "grpo",
    "trl_rloo",
    "openrlhf_rloo",
    "gspo",
    "cispo",
    "dr_grpo",
    "sapo",
    "prime_rl",
    "deepseek_v3_2",
]


@pytest.mark.parametrize(
    ("objective", "micro_batch_size"),
    [
        *((name, None) for name in STEPPED),
        *(
            pytest.param(name, 2, marks=[] if name in ("grpo", "gspo") else pytest.mark.slow)
            for name in STEPPED
        ),
    ],
)
def test_a_step_moves_the_weights_by_the_score_weights(
    make_policy, objective, micro_batch_size, gradients_at_start
):
    # Two updates of one batch: in the second the ratios are not 1, and the policy has left its reference.
    options = config(objective=objective, num_minibatches=1, **OFF_POLICY)
    policy, expected = make_policy(micro_batch_size), make_policy()
    drawn, stats = take_step(policy, REWARD, PolicyOptimizer(policy, options), ROWS, DRAW, options)
    completions = drawn.completions
    advantages = find_token_advantages(drawn, options).numpy()
    batch = TokenBatch(
        completions.mask.numpy(),
        advantages,
        completions.token_log_probs.numpy(),
        None if drawn.ref_log_probs is None else drawn.ref_log_probs.numpy(),
    )
    counts = count_denominators(
        completions.lengths.numpy(), completions.prompt_of.numpy(), max_length=LONGEST
    )
    plain = completions.with_states(None)
    drawn_ids = completions.ids.numpy().tobytes()
    if drawn_ids not in gradients_at_start:
        gradients_at_start[drawn_ids] = token_gradients(expected, plain)
    for update in range(2):
        gradients = token_gradients(expected, plain) if update else gradients_at_start[drawn_ids]
        log_probs = expected.log_probs(plain).detach().numpy()
        c = score_weights(log_probs, batch, PRESETS[objective], counts)
        moved = flatten(expected) + 0.5 * policy_gradient(c, gradients)
        with torch.no_grad():
            start = 0
            for weight in expected.trainable().values():
                weight.copy_(torch.from_numpy(moved[start : start + weight.numel()]).reshape(weight.shape))
                start += weight.numel()
    assert stats.num_updates == 2
    assert stats.drift > 1e-3
    np.testing.assert_allclose(flatten(policy), flatten(expected), rtol=0, atol=1e-10)


def test_the_definition_by_tokens_is_the_definition_by_completions(make_policy):
    # A filter that leaves nothing out takes the general way; its weights are the definition's.
    moved = []
    for changes in ({}, {"filter_high": 1e9}):
        options, policy = config(**changes), make_policy()
        assert options.algorithm.is_sum_of_completions == (not changes)
        take_step(policy, REWARD, PolicyOptimizer(policy, options), ROWS, DRAW, options)
        moved.append(flatten(policy))
    np.testing.assert_allclose(moved[0], moved[1], rtol=0, atol=1e-12)


def drawn_for(policy, **changes):
    return rollout(
        policy, REWARD, ROWS, completions_per_prompt=3, max_new_tokens=LONGEST, key=DRAW, **changes
    )


def test_minibatches_hold_whole_prompts_in_an_order_of_seed_step_and_epoch(make_policy):
    drawn = drawn_for(make_policy())
    (whole,) = minibatches(drawn, 1, DRAW, 0)
    assert whole.tolist() == list(range(9))
    orders = set()
    for epoch in range(8):
        parts = minibatches(drawn, 2, DRAW, epoch)
        assert [len(part) for part in parts] == [6, 3]
        rows = torch.cat(parts).tolist()
        assert sorted(rows) == list(range(9))
        assert all(
            rows[start : start + 3] == list(range(rows[start], rows[start] + 3)) for start in (0, 3, 6)
        )
        assert torch.cat(minibatches(drawn, 2, DRAW, epoch)).tolist() == rows
        orders.add(tuple(rows))
    assert len(orders) > 2


def with_rewards(drawn, rewards):
    return dataclasses.replace(drawn, rewards=dataclasses.replace(drawn.rewards, total=rewards))


def test_uniform_prompts_leave_the_denominators_and_their_rewards_are_those_given(make_policy):
    drawn = with_rewards(drawn_for(make_policy()), [1.0, 1.0, 1.0, 0.0, 1.0, None, 2.0, None, None])
    options = config(objective="dapo")
    assert find_counted(drawn, options).tolist() == [False] * 3 + [True, True, False] + [False] * 3
    assert find_counted(drawn, config(objective="grpo")).tolist() == [True] * 5 + [False, True, False, False]
    advantages = find_token_advantages(drawn, options)
    assert (advantages[5] == 0).all()


def test_where_nothing_counts_the_weights_stay(make_policy):
    policy = make_policy()
    before = flatten(policy)
    flat = WeightedSum([FunctionReward("flat", lambda completions: [1.0] * len(completions))])
    options = config(objective="dapo", num_minibatches=3)
    _, stats = take_step(policy, flat, PolicyOptimizer(policy, options), ROWS, DRAW, options)
    assert (flatten(policy) == before).all()
    assert (stats.num_updates, policy.num_updates) == (3, 3)
    assert stats.weights == {"left_out": 1.0}


def test_sampler_and_trainer_are_compared_at_the_first_update_that_moves_the_weights(
    make_policy, monkeypatch
):
    policy, compared = make_policy(), []
    monkeypatch.setattr(PolicyOptimizer, "_check_gap", lambda _, gap: compared.append(gap))
    # A prompt's rewards are equal but for the one whose completions differ in length: others are skipped.
    prompts = iter([[0.0] * 3 + [1.0, 0.0, 2.0] + [3.0, 1.0, 0.0]])
    reward = WeightedSum([FunctionReward("some", lambda completions: next(prompts)[: len(completions)])])
    options = config(objective="dapo", num_minibatches=3, num_epochs=2)
    _, stats = take_step(policy, reward, PolicyOptimizer(policy, options), ROWS, DRAW, options)
    assert len(compared) == 1
    assert compared[0] < 1e-12
    assert stats.sampler_gap_mean == compared[0]
    assert stats.drift > 1e-3
    assert stats.num_updates == policy.num_updates == 6
    assert stats.weights["left_out"] == pytest.approx(1 / 3)


def test_the_penalty_on_length_is_taken_off_before_the_baseline(make_policy):
    drawn = drawn_for(make_policy())
    plain, penalised = (
        config(objective="dapo", overlong_buffer=0.0, scale="none"),
        config(objective="dapo", scale="none"),
    )
    lengths = drawn.completions.lengths.double()
    penalty = -(lengths - (LONGEST - 0.2 * LONGEST)).clamp(min=0) / (0.2 * LONGEST)
    change = find_advantages(drawn, penalised) - find_advantages(drawn, plain)
    centred = penalty.reshape(3, 3) - penalty.reshape(3, 3).mean(dim=1, keepdim=True)
    assert float(centred.abs().max()) > 0.1
    torch.testing.assert_close(change, centred.reshape(-1), rtol=0, atol=1e-12)


def test_the_greedy_baseline_is_the_reward_of_the_most_likely_completion(make_policy):
    policy = make_policy()
    drawn = drawn_for(policy, with_greedy=True)
    expected = []
    for row in ROWS:
        ids = policy.encode(row.prompt)
        prompt = len(ids)
        while len(ids) - prompt < LONGEST and (len(ids) == prompt or ids[-1] not in policy.end_ids):
            ids.append(int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
        text = policy.text_decoder([ids[prompt:]], [ids[:prompt]], [row.prompt])
        expected += count_bs(text)
    assert drawn.greedy_rewards == pytest.approx(expected)
    advantages = find_advantages(drawn, config(objective="remax"))
    rewards = torch.tensor(drawn.rewards.total, dtype=torch.float64).reshape(3, 3)
    torch.testing.assert_close(
        advantages.reshape(3, 3), rewards - torch.tensor(expected, dtype=torch.float64)[:, None]
    )


def test_the_rate_is_the_same_for_all_updates_of_a_step(make_policy):
    policy = make_policy()
    options = config(objective="grpo", num_minibatches=3, warmup_steps=4, lr=0.01)
    optimizer = PolicyOptimizer(policy, options)
    rates = [
        take_step(policy, REWARD, optimizer, ROWS, SampleKey(0, step, [0, 1, 2]), options)[1].lr
        for step in range(5)
    ]
    np.testing.assert_allclose(rates, [0.0025, 0.005, 0.0075, 0.01, 0.01], rtol=1e-15)
    assert policy.num_updates == 15


def declared():
    runs = {name: {} for name in PRESETS}
    runs |= {f"{name}, baseline group_mean": {"baseline": "group_mean"} for name in ("ppo", "decoupled_ppo")}
    runs |= {
        "grpo, kl_estimator exact": {"kl_estimator": "exact"},
        "reinforce, entropy_coefficient 0.01": {"entropy_coefficient": 0.01},
    }
    runs |= {"ppo, value_model self": {"value_model": "self", "value_warmup_steps": 3, "kl_credit": "own"}}
    runs |= {"dapo, clip_high 0.4": {"clip_high": 0.4, "num_minibatches": 3}}
    texts = {}
    for title, changes in runs.items():
        options = config(objective=title.partition(",")[0], **{"num_minibatches": 1, **changes})
        declaration = declare(options)
        texts[title] = declaration.words + declaration.formulas
    return texts


def test_each_preset_declares_itself_so():
    # To change it on purpose, run this file, and read what has changed.
    assert declared() == json.loads(DECLARED.read_text(encoding="utf-8"))
    (named,) = [line for line in declared()["dapo, clip_high 0.4"] if line.startswith("The objective is")]
    assert "but with clip_high 0.4 instead of 0.28, num_minibatches 3 instead of 1" in named


if __name__ == "__main__":
    DECLARED.write_text(json.dumps(declared(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
