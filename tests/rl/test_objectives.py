"""Steps of objectives move the weights by their score weights; minibatches; declarations."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from klimb import count_denominators, policy_gradient, score_weights
from klimb.config.train import TrainConfig
from klimb.core.presets import PRESETS
from klimb.core.score_weights import TokenBatch
from klimb.data.prompts import PromptRow
from klimb.errors import DivergedError
from klimb.model.trainable import train_last_layers
from klimb.model.trunk import decoder_layers
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.rl.advantages import find_advantages, find_counted, find_token_advantages
from klimb.rl.declaration import declare
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.rollout import rollout
from klimb.rl.step import minibatches, take_step
from klimb.rl.surrogates import cut_to_rows, make_surrogate

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


def gradient_of(total, policy):
    """∇ of a scalar by plain automatic differentiation, (P,)."""
    parameters = list(policy.trainable().values())
    gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


def test_the_sum_by_score_weights_is_policy_gradient_of_the_gradients_of_tokens(make_policy):
    policy = make_policy()
    completions = drawn_for(policy).completions.with_states(None)
    c = np.random.default_rng(0).normal(size=completions.ids.shape) * completions.mask.numpy()
    log_probs = policy.log_probs(completions)
    of_tokens = np.stack([[gradient_of(token, policy) for token in row] for row in log_probs])
    found = gradient_of((torch.from_numpy(c) * log_probs).sum(), policy)
    np.testing.assert_allclose(policy_gradient(c, of_tokens), found, rtol=0, atol=1e-12)


CASES = [
    *[
        pytest.param(
            objective, size, 1, marks=pytest.mark.slow if size and objective not in ("grpo", "gspo") else []
        )
        for objective in (
            *("grpo", "trl_rloo", "openrlhf_rloo", "gspo", "cispo", "dr_grpo", "sapo", "prime_rl"),
            "deepseek_v3_2",
        )
        for size in (None, 2)
    ],
    ("grpo", None, 3),
    ("cispo", 2, 2),
    ("dapo", None, 2),
    ("dr_grpo", 2, 2),
]


@pytest.mark.parametrize(("objective", "micro_batch_size", "num_minibatches"), CASES)
def test_a_step_moves_the_weights_by_the_score_weights(
    make_policy, objective, micro_batch_size, num_minibatches
):
    # Two epochs of one batch: in the second the ratios are not 1, and the policy has left its reference. The
    # denominators are those of a minibatch, of the completions that count.
    lr = 0.5 / num_minibatches
    options = config(objective=objective, num_minibatches=num_minibatches, num_epochs=2, lr=lr)
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
    plain, is_counted = completions.with_states(None), find_counted(drawn, options)
    parts = [part for epoch in range(2) for part in minibatches(drawn, num_minibatches, DRAW, epoch)]
    for part in parts:
        rows = part[is_counted[part]].numpy()
        counts = count_denominators(
            completions.lengths.numpy()[rows], completions.prompt_of.numpy()[rows], max_length=LONGEST
        )
        log_probs = expected.log_probs(plain)[torch.from_numpy(rows)]
        c = score_weights(log_probs.detach().numpy(), batch.rows(rows), PRESETS[objective], counts)
        moved = flatten(expected) + lr * gradient_of((torch.from_numpy(c) * log_probs).sum(), expected)
        with torch.no_grad():
            start = 0
            for weight in expected.trainable().values():
                weight.copy_(torch.from_numpy(moved[start : start + weight.numel()]).reshape(weight.shape))
                start += weight.numel()
    assert stats.num_updates == len(parts) == 2 * num_minibatches
    assert stats.drift > 1e-3
    np.testing.assert_allclose(flatten(policy), flatten(expected), rtol=0, atol=1e-10)


def test_the_frozen_layers_run_once_per_batch_however_many_updates_there_are(make_model, letter_tokenizer):
    """What they made of the completions in sampling is read by every minibatch and epoch, and changes nothing."""
    moved = []
    for keeps_states in (True, False):
        model = make_model("llama", vocab_size=10, num_layers=3, dtype=torch.float64)
        train_last_layers(model, 1)
        policy = Policy(model, letter_tokenizer, micro_batch_size=4)
        options = config(objective="grpo", num_minibatches=2, num_epochs=2, lr=0.01)
        ran, usual = [], policy.log_probs

        def log_probs(completions, ran=ran, usual=usual, keeps_states=keeps_states):
            below = len(ran)
            found = usual(completions if keeps_states else completions.with_states(None))
            assert (len(ran) > below) == (not keeps_states)
            return found

        policy.log_probs = log_probs
        for layer in decoder_layers(model)[:2]:
            layer.self_attn.q_proj.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        take_step(policy, REWARD, PolicyOptimizer(policy, options), ROWS, DRAW, options)
        moved.append(flatten(policy))
    np.testing.assert_allclose(*moved, rtol=0, atol=1e-10)


def test_the_definition_by_tokens_is_the_definition_by_completions(make_policy):
    # A filter that leaves nothing out takes the general way; its weights are the definition's.
    moved = []
    for changes in ({}, {"filter_high": 1e9}):
        options, policy = config(**changes), make_policy()
        assert options.algorithm.is_sum_of_completions == (not changes)
        take_step(policy, REWARD, PolicyOptimizer(policy, options), ROWS, DRAW, options)
        moved.append(flatten(policy))
    np.testing.assert_allclose(moved[0], moved[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("objective", "change", "words"),
    [
        # exp overflows float64 above 709.8: by the policy that drew, for whole completions, by the reference in k3.
        ("importance_sampling", 800.0, r"log-ratio of 800 nats .* lower lr, or make fewer updates"),
        ("vespo", 750.0, r"log-ratio of 75\d nats .* lower lr, or make fewer updates"),
        ("grpo", -800.0, r"log-ratio of 800 nats .* use the estimator k2 or unbiased"),
        ("dapo", math.nan, "log-prob is nan; lower lr"),
    ],
)
def test_a_token_without_a_score_weight_is_named_by_its_completion_of_the_step(
    make_policy, objective, change, words
):
    policy = make_policy(micro_batch_size=2)
    drawn = drawn_for(policy)
    drawn = dataclasses.replace(drawn, ref_log_probs=drawn.completions.token_log_probs)
    options = config(objective=objective)
    numbers = torch.tensor([7, 2, 8, 4])  # a minibatch
    completions = drawn.completions.rows(numbers)
    advantages, reference = (
        cut_to_rows(completions, array, numbers)
        for array in (find_token_advantages(drawn, options), drawn.ref_log_probs)
    )
    surrogate = make_surrogate(options, completions, advantages, reference, numbers=numbers)
    rows = torch.tensor([3, 1])  # a micro-batch: completions 4 and 2 of the step
    present = completions.token_log_probs[rows].clone()
    present[1, 0] += change
    with pytest.raises(DivergedError, match=rf"^completion 2 of the step, token 0: its {words}"):
        surrogate(present, rows)


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
