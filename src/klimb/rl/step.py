"""One step of a run: prompts → completions → rewards → advantages → score weights → gradient → weights, once or often.

Axes: B prompts, G completions per prompt, N = B·G completions, T tokens.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.config.train import TrainConfig
from klimb.core.rng import Stream, uniforms
from klimb.data.prompts import PromptRow
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.failures import Tolerance
from klimb.reward.reward import WeightedSum
from klimb.rl.advantages import find_advantages, find_counted, find_token_advantages
from klimb.rl.optimizer import PolicyOptimizer, UpdateStats, join_stats
from klimb.rl.rollout import Rollout, Stopwatch, rollout, trainer_state
from klimb.rl.sampler import Sampler
from klimb.rl.slices import cut_slices, draw_in_slices
from klimb.rl.surrogates import SumOfTokens, WeightStats, cut_to_rows, make_surrogate
from klimb.rl.value import ValueFit, ValueTrainer


def take_step(  # noqa: PLR0913  who draws, scores and moves, and of what
    policy: Policy,
    reward: WeightedSum,
    optimizer: PolicyOptimizer,
    rows: list[PromptRow],
    key: SampleKey,
    config: TrainConfig,
    *,
    num_prompts: int | None = None,
    sampler: Sampler | None = None,
    value: ValueTrainer | None = None,
) -> tuple[Rollout, UpdateStats]:
    """Draw completions and move the policy's weights, once or for each minibatch and epoch.

    With the objective `reinforce`, no baseline, plain SGD, no clipping and no decay this computes
    `klimb.rlhf_weight_update` on the flattened parameters, of the completions that have a reward.

    Args:
        policy: The policy.
        reward: What is trained on, and the judges.
        optimizer: What moves the weights.
        rows: The step's prompts.
        key: Key of the counter-based RNG.
        config: The options.
        num_prompts: How many prompts the run has; those of this step where None.
        sampler: What draws the completions; the policy itself where None.
        value: What fits the value function, where the objective has one.
    """

    def draw(rows: list[PromptRow], key: SampleKey) -> Rollout:
        return rollout(
            policy,
            reward,
            rows,
            completions_per_prompt=config.completions_per_prompt,
            max_new_tokens=config.max_new_tokens,
            key=key,
            state=trainer_state(config, num_prompts or len(rows), key.step),
            sampler=sampler,
            with_greedy=config.algorithm.baseline == "greedy",
            with_old=config.algorithm.corrects_sampler and config.algorithm.num_updates > 1,
            with_ref_hidden=config.algorithm.has_exact_kl,
        )

    drawn = draw_in_slices(draw, rows, key, config.num_slices or 1, optimizer.world)
    Tolerance(config.max_failed, len(drawn.completions)).take(drawn.rewards.failures)
    timer = Stopwatch(policy.model.device)
    fit = None
    if value is not None:
        fit = value.start(drawn, config)
        drawn = fit.rollout
        timer.lap("values")
    is_held = value is not None and value.is_warming_up
    stats = _update(optimizer, drawn, key, config, fit, is_held=is_held)
    timer.lap("update")
    drawn.seconds.update(timer.seconds)
    return drawn, stats


def _update(
    optimizer: PolicyOptimizer,
    rollout: Rollout,
    key: SampleKey,
    config: TrainConfig,
    fit: ValueFit | None,
    *,
    is_held: bool,
) -> UpdateStats:
    """Move the weights by the completions that count, by none not at all; and the value function's where there is one.

    Where `is_held`, the value function alone is moved.
    """
    algorithm = config.algorithm
    if algorithm.is_sum_of_completions:
        advantages = find_advantages(rollout, config)
    else:
        advantages = find_token_advantages(rollout, config)
    is_counted = find_counted(rollout, config)
    weights, updates = WeightStats(), list[UpdateStats]()
    for epoch in range(algorithm.num_epochs):
        for minibatch in minibatches(rollout, algorithm.num_minibatches, key, epoch):
            rows = minibatch[is_counted[minibatch]]
            is_first = all(update.is_skipped for update in updates)
            if is_held:
                updates.append(optimizer.skip())
            else:
                updates.append(_one_update(optimizer, rollout, advantages, rows, weights, is_first, config))
            if fit is not None:
                fit.update(minibatch)
    num_left_out = len(rollout.valid) - int(is_counted.sum())
    shown = {"left_out": num_left_out / len(is_counted)} if num_left_out else {}
    values = {} if fit is None else fit.metrics()
    return replace(join_stats(updates), weights=weights.metrics() | shown, value=values)


def _one_update(
    optimizer: PolicyOptimizer,
    rollout: Rollout,
    advantages: Float[Tensor, "N T"] | Float[Tensor, " N"],
    rows: Int[Tensor, " n"],
    weights: WeightStats,
    is_first: bool,
    config: TrainConfig,
) -> UpdateStats:
    """Move the weights by some completions of a rollout."""
    completions, reference, old = rollout.completions, rollout.ref_log_probs, rollout.old_log_probs
    if not len(rows):
        return optimizer.skip()
    if len(rows) < len(completions) or config.algorithm.num_minibatches > 1:
        completions = completions.rows(rows)
        advantages = cut_to_rows(completions, advantages, rows)
        reference = None if reference is None else cut_to_rows(completions, reference, rows)
        old = None if old is None else cut_to_rows(completions, old, rows)
    surrogate = make_surrogate(config, completions, advantages, reference, old, numbers=rows)
    slices = rollout.slices and cut_slices(rollout.slices, rows, len(rollout.completions))
    stats = optimizer.step(surrogate, completions, slices=slices, is_on_policy=is_first)
    if isinstance(surrogate, SumOfTokens):
        weights.parts += optimizer.world.gather("score weights", surrogate.stats.parts)
    return stats


def minibatches(rollout: Rollout, count: int, key: SampleKey, epoch: int) -> list[Int[Tensor, " n"]]:
    """Split a rollout into minibatches of whole prompts, in an order of the seed, the step and the epoch.

    Args:
        rollout: The completions, ordered by prompt.
        count: How many; one keeps the order.
        key: What the step's random numbers are counted by.
        epoch: How often the batch has been gone through.

    Returns:
        Rows of the completions of each.
    """
    completions = rollout.completions
    device = completions.ids.device
    if count == 1:
        return [torch.arange(len(completions), device=device)]
    keys = uniforms(
        seed=key.seed,
        step=key.step,
        prompt=0,
        completion=epoch,
        count=len(rollout.rows),
        stream=Stream.MINIBATCH,
    )
    order = torch.from_numpy(keys).argsort(stable=True).to(device)
    group = torch.arange(len(completions), device=device).reshape(len(rollout.rows), -1)
    return [group[prompts].reshape(-1) for prompts in order.tensor_split(count)]
