"""A value function's part in a step: advantages, its loss, and that the policy's gradient does not know of it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from klimb.config.train import TrainConfig
from klimb.core.aggregation import count_denominators
from klimb.core.score_weights import TokenBatch, score_weights
from klimb.data.prompts import PromptRow
from klimb.errors import ArgumentError, DivergedError
from klimb.model.trainable import trainable_copy
from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.policy import Policy, SampleKey
from klimb.policy.value_function import HeadOnPolicy, ValueModel
from klimb.reward.function import FunctionReward
from klimb.reward.reward import Rewards, WeightedSum
from klimb.rl.advantages import find_generalised_advantages, find_token_advantages
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.rollout import Rollout, rollout
from klimb.rl.step import take_step
from klimb.rl.value import ValueSurrogate, ValueTrainer

ROWS = [PromptRow(text, {}, text) for text in ("abc", "d", "fghij")]
LONGEST = 7
KEY = SampleKey(0, 0, [0, 1, 2])


def count_bs(completions):
    return [completion.count("b") - 0.3 * len(completion) for completion in completions]


REWARD = WeightedSum([FunctionReward("count_bs", count_bs)])


def config(**changes):
    options = {
        "model": "",
        "prompts": "p",
        "reward": ("r",),
        "out": "o",
        "objective": "ppo",
        "completions_per_prompt": 3,
        "prompts_per_step": 3,
        "max_new_tokens": LONGEST,
        "optimiser": "sgd",
        "lr": 0.05,
        "value_lr": 0.5,
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


def own_model(policy):
    return ValueModel(trainable_copy(policy.model), micro_batch_size=policy.micro_batch_size)


FUNCTIONS = {"head": HeadOnPolicy, "model": own_model}


def step(policy, trainer, options, key=KEY):
    return take_step(policy, REWARD, PolicyOptimizer(policy, options), ROWS, key, options, value=trainer)


def drawn_for(policy):
    return rollout(policy, REWARD, ROWS, completions_per_prompt=3, max_new_tokens=LONGEST, key=KEY)


def flatten(trained):
    return torch.cat([p.detach().reshape(-1) for p in trained.trainable().values()]).numpy()


def rollout_by_hand(lengths, log_ratios, rewards, values, has_ended=True):
    """A rollout of completions of one prompt whose numbers are known; NaN stands where there is no token."""
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    full = [
        zeros.masked_scatter(mask, torch.tensor(given, dtype=torch.float64)) for given in (log_ratios, values)
    ]
    completions = Completions(
        prompts=[[1]],
        prompt_of=torch.zeros(len(lengths), dtype=torch.long),
        ids=torch.zeros(mask.shape, dtype=torch.long),
        lengths=torch.tensor(lengths),
        finish_reasons=["end" if has_ended else "length"] * len(lengths),
        token_log_probs=zeros,
        token_entropies=zeros,
    )
    return Rollout(
        ROWS[:1],
        completions,
        [""] * len(lengths),
        Rewards(rewards, {}),
        [0.0] * len(lengths),
        {},
        ref_log_probs=-full[0],
        values=full[1].masked_fill(~mask, math.nan),
    )


# β 0.1 and a log-ratio of 1 nat a token: r = (−0.1, −0.1, 1 − 0.1). With V = (0.5, 0.4, 0.6) and γ = 1 the
# differences are δ = (−0.1 + 0.4 − 0.5, −0.1 + 0.6 − 0.4, 0.9 − 0.6) = (−0.2, 0.1, 0.3).
BY_HAND = [
    (1.0, 1.0, [0.2, 0.4, 0.3], [0.7, 0.8, 0.9]),
    (1.0, 0.0, [-0.2, 0.1, 0.3], [0.3, 0.5, 0.9]),
    (1.0, 0.95, [0.16575, 0.385, 0.3], [0.66575, 0.785, 0.9]),
    (0.9, 0.5, [-0.16125, 0.175, 0.3], [0.33875, 0.575, 0.9]),
]


@pytest.mark.parametrize("has_ended", [True, False])
@pytest.mark.parametrize(("discount", "decay", "advantages", "returns"), BY_HAND)
def test_generalised_advantages_of_one_completion_by_hand(discount, decay, advantages, returns, has_ended):
    # A completion that was cut off is one that ended: nothing follows its last token.
    drawn = rollout_by_hand([3], [1.0] * 3, [1.0], [0.5, 0.4, 0.6], has_ended)
    options = config(beta=0.1, discount=discount, trace_decay=decay, whiten_tokens=False)
    found, targets = find_generalised_advantages(drawn, options)
    np.testing.assert_allclose(found, [advantages], rtol=0, atol=1e-15)
    np.testing.assert_allclose(targets, [returns], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(find_token_advantages(drawn, options), found)


def test_padding_and_completions_without_a_reward_do_not_count():
    alone = rollout_by_hand([3], [1.0] * 3, [1.0], [0.5, 0.4, 0.6])
    among = rollout_by_hand([1, 3, 2], [1.0] * 6, [None, 1.0, None], [9.0, 0.5, 0.4, 0.6, 9.0, 9.0])
    options = config(beta=0.1)
    found = find_token_advantages(among, options)
    np.testing.assert_allclose(found[1], find_token_advantages(alone, options)[0], rtol=0, atol=1e-15)
    assert (found[[0, 2]] == 0).all()
    assert float(found[1].sum()) == pytest.approx(0, abs=1e-12)  # whitened over its tokens alone


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        # r̃ = 1 − 0.1 · 3 with the last token; δ = (−0.1, 0.2, 0.1); λ = 1: sums from the right.
        ("whole", [0.2, 0.3, 0.1]),
        # r = 1; δ = (−0.1, 0.2, 0.4), summed (0.5, 0.6, 0.4), and each token pays 0.1 besides.
        ("own", [0.4, 0.5, 0.3]),
    ],
)
def test_the_kl_of_a_completion_or_of_a_tokens_own_is_credited_so(credit, expected):
    drawn = rollout_by_hand([3], [1.0] * 3, [1.0], [0.5, 0.4, 0.6])
    drawn = dataclasses.replace(drawn, kl=[3.0])
    options = config(beta=0.1, trace_decay=1.0, kl_credit=credit, whiten_tokens=False)
    np.testing.assert_allclose(find_token_advantages(drawn, options), [expected], rtol=0, atol=1e-15)


def test_a_rollout_without_values_is_refused(make_policy):
    with pytest.raises(
        ArgumentError, match="the baseline is a value function, and the rollout has no values"
    ):
        find_token_advantages(drawn_for(make_policy()), config())


@pytest.mark.parametrize(
    ("function", "aggregation"), [("head", "token_mean"), ("head", "sequence_mean"), ("model", "token_mean")]
)
def test_an_update_of_the_values_is_down_the_literal_loss_by_finite_differences(
    make_policy, function, aggregation
):
    policy = make_policy(micro_batch_size=2)
    options = config(
        aggregation=aggregation,
        value_clip=0.05,
        value_coefficient=0.7,
        value_model="self" if function == "model" else None,
    )
    value = FUNCTIONS[function](policy)
    value.num_updates = 1  # so that it does not begin at the mean return
    with torch.no_grad():
        value.head.weight.copy_(torch.linspace(-0.3, 0.5, 16))
    trainer = ValueTrainer(value, options)
    fit = trainer.start(drawn_for(policy), options)
    old, (_, returns) = fit.rollout.values, find_generalised_advantages(fit.rollout, options)
    completions = value.prepare(fit.rollout.completions)
    with torch.no_grad():  # so that some values are beyond the clip
        value.head.weight.add_(torch.linspace(0.2, -0.1, 16))
    mask, lengths = completions.mask, completions.lengths[:, None]
    scale = {
        "token_mean": 1 / mask.sum(),
        "sequence_mean": 1 / (len(completions) * lengths),
    }[aggregation]

    def loss():
        values = value.constant_values(completions)
        clipped = old + (values - old).clamp(-0.05, 0.05)
        worse = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
        return 0.7 * float(
            (scale * worse / 2)[mask].sum() if scale.ndim == 0 else (scale * worse / 2 * mask).sum()
        )

    parameters = value.trainable()
    names = ["value_head.weight", "value_head.bias"]
    if function == "model":
        names += [name for name in parameters if name.endswith(("h.1.mlp.c_proj.weight", "ln_f.weight"))]
    expected, step = {}, 1e-6
    for name in names:
        weight = parameters[name]
        flat = weight.detach().view(-1)
        expected[name] = np.zeros(min(len(flat), 3))
        for place in range(len(expected[name])):
            with torch.no_grad():
                flat[place] += step
                above = loss()
                flat[place] -= 2 * step
                below = loss()
                flat[place] += step
            expected[name][place] = (above - below) / (2 * step)
    before = {name: parameters[name].detach().clone() for name in names}
    fit.update(torch.arange(len(completions)))
    for name, gradient in expected.items():
        moved = (parameters[name].detach() - before[name]).view(-1)[: len(gradient)]
        lr = 0.5 if not name.startswith("value_head") else options.present_head_lr
        np.testing.assert_allclose(moved / -lr, gradient, rtol=1e-5, atol=1e-9)
        assert np.abs(gradient).max() > 1e-5
    assert 0 < fit.metrics()["clipped"] < 1


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_policy_moves_by_the_score_weights_of_those_advantages_alone(make_policy, function):
    moved = []
    for coefficient in (0.1, 5.0):
        policy = make_policy(2)
        options = config(num_epochs=1, value_coefficient=coefficient)
        trainer = ValueTrainer(FUNCTIONS[function](policy), options)
        with torch.no_grad():
            trainer.function.head.weight.copy_(torch.linspace(-0.3, 0.5, 16))
        drawn, stats = step(policy, trainer, options)
        moved.append(flatten(policy))
        assert stats.value["grad_norm"] > 0
    np.testing.assert_array_equal(*moved)

    expected = make_policy()
    completions = drawn.completions
    weights = score_weights(
        completions.token_log_probs,
        TokenBatch(completions.mask, find_token_advantages(drawn, options), completions.token_log_probs),
        options.algorithm,
        count_denominators(completions.lengths.double(), completions.prompt_of),
    )
    (weights * expected.log_probs(completions)).sum().backward()
    by_hand = [
        (p if p.grad is None else p + 0.05 * p.grad).detach().reshape(-1)
        for p in expected.trainable().values()
    ]
    np.testing.assert_allclose(moved[0], torch.cat(by_hand), rtol=0, atol=1e-12)


def test_micro_batches_and_the_frozen_layers_states_do_not_change_the_values(make_model, letter_tokenizer):
    model = make_model("llama", vocab_size=10, dtype=torch.float64)
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    policy = Policy(model, letter_tokenizer)
    drawn = drawn_for(policy).completions
    assert drawn.states is not None
    found = []
    for size in (None, 2):
        policy.micro_batch_size = size
        shared = ValueModel(trainable_copy(model), micro_batch_size=size, has_policys_trunk=True)
        assert shared.model.model.embed_tokens.weight is model.model.embed_tokens.weight
        for value in (HeadOnPolicy(policy), shared, own_model(policy)):
            with torch.no_grad():
                value.head.weight.copy_(torch.linspace(-0.3, 0.5, 16))
            found.append(value.constant_values(value.prepare(drawn)))
    assert found[0].abs().max() > 0.1
    assert (found[0][~drawn.mask] == 0).all()
    for values in found[1:]:
        torch.testing.assert_close(values, found[0], rtol=0, atol=1e-12)


def test_the_head_reads_the_state_before_each_token_whether_or_not_prompts_are_shared(make_policy):
    policy = make_policy()
    completions = drawn_for(policy).completions
    expected = policy.log_probs(completions)
    layer = policy.model.get_output_embeddings()
    for shares in (True, False):
        policy.way = dataclasses.replace(policy.way, shares_prompts=shares)
        hidden = policy.hidden_states(completions)
        log_probs = policy.distribution.token_log_probs(layer(hidden), completions.ids)
        torch.testing.assert_close(log_probs * completions.mask, expected, rtol=0, atol=1e-12)
        assert (hidden[~completions.mask] == 0).all()


def test_in_the_warm_up_the_value_function_moves_and_the_policy_does_not(make_policy):
    policy = make_policy()
    options = config(num_epochs=2, num_minibatches=2, value_warmup_steps=2)
    trainer = ValueTrainer(HeadOnPolicy(policy), options)
    moved = []
    for number in range(3):
        before = flatten(policy), flatten(trainer.function)
        step(policy, trainer, options, SampleKey(0, number, [0, 1, 2]))
        moved.append(
            [
                bool((flatten(one) != old).any())
                for one, old in zip((policy, trainer.function), before, strict=True)
            ]
        )
    assert moved == [[False, True], [False, True], [True, True]]
    assert policy.num_updates == trainer.function.num_updates == 12


def by_prompt(prompts, completions):
    return [
        {"abc": 0.0, "d": 1.0, "fghij": 3.0}[p] + 0.3 * len(c)
        for p, c in zip(prompts, completions, strict=True)
    ]


@pytest.mark.parametrize(
    ("changes", "share"), [({"value_lr": 0.05}, 0.1), ({"value_lr": 3e-3, "value_model": "self"}, 0.5)]
)
def test_on_a_tiny_problem_the_explained_variance_rises(make_policy, changes, share):
    policy = make_policy()
    reward = WeightedSum([FunctionReward("by_prompt", by_prompt)])
    options = config(beta=0.0, optimiser="adamw", value_clip=math.inf, value_warmup_steps=8, **changes)
    trainer = ValueTrainer(FUNCTIONS["model" if "value_model" in changes else "head"](policy), options)
    explained = []
    for number in range(8):
        key, optimizer = SampleKey(0, number, [0, 1, 2]), PolicyOptimizer(policy, options)
        _, stats = take_step(policy, reward, optimizer, ROWS, key, options, value=trainer)
        explained.append(stats.value["explained_variance"])
    assert explained[0] == 0  # a head of zeros is a constant
    assert np.mean(explained[-3:]) > share
    assert np.mean(explained[-3:]) > np.mean(explained[1:4]) > 0


def test_the_values_begin_at_the_mean_return_once_the_first_advantages_are_found(make_policy):
    policy = make_policy()
    options = config(num_steps=200, beta=0.0, value_lr=1e-9)
    trainer = ValueTrainer(HeadOnPolicy(policy), options)
    drawn, stats = step(policy, trainer, options)
    lengths = drawn.completions.lengths
    returns = torch.tensor(drawn.rewards.total, dtype=torch.float64).repeat_interleave(lengths)
    mean, spread = float(returns.mean()), float(returns.std(correction=0))
    assert (drawn.values == 0).all()
    assert stats.value["mean"] == 0
    assert stats.value["return"] == pytest.approx(mean)
    assert float(trainer.function.head.scale) == pytest.approx(spread)
    assert float(trainer.function.head.bias.detach()) == pytest.approx(mean / spread, abs=1e-6)
    _, stats = step(policy, trainer, options, SampleKey(0, 1, [0, 1, 2]))
    assert stats.value["mean"] == pytest.approx(mean, abs=1e-6)
    assert float(trainer.function.head.scale) == pytest.approx(spread)  # of the first step, for good


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_of_rewards_a_thousand_times_as_large_are_a_thousand_times_as_large(make_policy, function):
    found = []
    for scale in (1.0, 1000.0):
        policy = make_policy()
        options = config(
            beta=0.0, optimiser="adamw", lr=1e-3, value_clip=math.inf, value_lr=3e-3, num_epochs=3
        )
        trainer = ValueTrainer(FUNCTIONS[function](policy), options)
        reward = WeightedSum(
            [FunctionReward("large", lambda completions, s=scale: [s * len(c) for c in completions])]
        )
        for number in range(3):
            key, optimizer = SampleKey(0, number, [0, 1, 2]), PolicyOptimizer(policy, options)
            drawn, stats = take_step(policy, reward, optimizer, ROWS, key, options, value=trainer)
        found.append((drawn.values / scale, stats.value["explained_variance"], drawn.completions.ids))
    assert float(found[0][0].std()) > 1e-2
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-3, atol=1e-3)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-3)
    assert torch.equal(found[0][2], found[1][2])


def test_where_no_completion_has_a_reward_nothing_moves(make_policy):
    policy = make_policy()
    options = config(max_failed=1.0)
    broken = WeightedSum([FunctionReward("none", lambda completions: [None for _ in completions])])
    trainer = ValueTrainer(HeadOnPolicy(policy), options)
    before = flatten(policy)
    _, stats = take_step(policy, broken, PolicyOptimizer(policy, options), ROWS, KEY, options, value=trainer)
    assert (flatten(policy) == before).all()
    assert not trainer.function.head.weight.any()
    assert not trainer.function.head.bias
    assert trainer.function.num_updates == policy.num_updates == 4
    assert stats.value["explained_variance"] is None
    assert stats.value["mean"] is None


def test_values_that_are_not_finite_are_named(make_policy):
    policy = make_policy()
    options = config(value_lr=1e300, num_epochs=4, value_coefficient=1e10)
    trainer = ValueTrainer(HeadOnPolicy(policy), options)
    with pytest.raises(DivergedError, match=r"value function: .*--value-lr"):
        step(policy, trainer, options)


def test_a_value_beyond_the_clip_has_no_gradient_and_padding_none_either():
    drawn = rollout_by_hand([1, 2], [0.0] * 3, [1.0, 1.0], [0.5, 0.5, 0.5])
    options = config(value_clip=0.2, value_coefficient=1.0, aggregation="sum")
    old = torch.tensor([[0.5, 0.0], [0.5, 0.5]], dtype=torch.float64)
    returns = torch.tensor([[2.0, 0.0], [0.9, 1.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, 7.0], [1.0, 0.6]], dtype=torch.float64, requires_grad=True)
    surrogate = ValueSurrogate(options.algorithm, drawn.completions, old, returns, 2)
    values = values * drawn.completions.mask  # as a value function returns them
    values.retain_grad()
    surrogate(values, torch.arange(2)).backward()
    # (V, V_old, R): (1, .5, 2) and (1, .5, .9) have gradient 0; (.6, .5, 1) is inside: 0.4.
    np.testing.assert_allclose(values.grad, [[0, 0], [0, 0.4]], rtol=0, atol=1e-15)
    assert surrogate.num_clipped == 2
