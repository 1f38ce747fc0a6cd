"""Advantages of a rollout: of whole completions, and of tokens where an objective credits them.

Axes: B prompts, G completions per prompt, N = B·G completions, T tokens.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from klimb.config.train import TrainConfig
from klimb.core.advantages import BASELINES
from klimb.core.baselines import greedy_baseline, group_mean, length_weighted, scaled
from klimb.core.length_penalty import overlong_penalty
from klimb.core.masks import uniform_groups
from klimb.core.objective import Objective
from klimb.core.returns import generalised_advantages, returns_to_go
from klimb.core.update import adjusted_rewards
from klimb.core.whitening import whiten_tokens
from klimb.errors import ArgumentError
from klimb.rl.rollout import Rollout


def find_advantages(rollout: Rollout, config: TrainConfig) -> Float[Tensor, " N"]:
    """Find the advantages of completions; where a reward failed a completion counts for nothing, and its own is 0."""
    algorithm = config.algorithm
    grouped = _adjusted(rollout, config).reshape(len(rollout.rows), -1)
    is_valid = _is_valid(rollout)
    advantages = _baseline(rollout, algorithm)(grouped, is_valid)
    if algorithm.scale != "none":
        advantages = scaled(
            advantages,
            grouped,
            algorithm.scale,
            epsilon=algorithm.scale_epsilon,
            ddof=algorithm.scale_ddof,
            is_valid=is_valid,
        )
    return advantages.reshape(-1)


def find_token_advantages(rollout: Rollout, config: TrainConfig) -> Float[Tensor, "N T"]:
    """Find the advantages of tokens: the completion's, less the KL that a token pays for, whitened if asked.

    Those of completions without a reward are 0, and whitening does not know of them.
    """
    algorithm, completions = config.algorithm, rollout.completions
    is_token = completions.mask & has_reward(rollout)[:, None]
    zeros = torch.zeros_like(completions.token_log_probs)
    if algorithm.baseline == "value":
        advantages, _ = find_generalised_advantages(rollout, config)
    else:
        advantages = torch.where(is_token, find_advantages(rollout, config)[:, None], zeros)
        if algorithm.kl_in_tokens and algorithm.kl_credit == "to_go":
            advantages = advantages + returns_to_go(
                _token_penalties(rollout, algorithm), is_token, algorithm.discount
            )
    if algorithm.kl_in_tokens and algorithm.kl_credit == "own":
        advantages = advantages + torch.where(is_token, _token_penalties(rollout, algorithm), zeros)
    if algorithm.whiten_tokens:
        advantages = whiten_tokens(advantages, is_token, ddof=algorithm.whiten_ddof)
    return advantages


def find_generalised_advantages(
    rollout: Rollout, config: TrainConfig
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Find the advantages of tokens by the rollout's values, and the returns that these are fitted to.

    r_it = −β d_it + 1[t is the last token] r̃_i with the KL to go; else the reward comes with the last token alone.

    Returns:
        The advantages and the returns; 0 where there is no token, and for completions without a reward.
    """
    algorithm = config.algorithm
    if rollout.values is None:
        raise ArgumentError("rollout: the baseline is a value function, and the rollout has no values")
    is_token, rewards = find_token_rewards(rollout, config)
    values = rollout.values.to(rewards.dtype)
    return generalised_advantages(rewards, values, is_token, algorithm.discount, algorithm.trace_decay)


def find_token_rewards(
    rollout: Rollout, config: TrainConfig
) -> tuple[Bool[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Compute each token's reward for the value function: the reward at the last token, less the KL penalty."""
    algorithm, completions = config.algorithm, rollout.completions
    is_token = completions.mask & has_reward(rollout)[:, None]
    zeros = torch.zeros_like(completions.token_log_probs)
    places = torch.arange(is_token.shape[1], device=is_token.device)
    is_last = is_token & (places == completions.lengths[:, None] - 1)
    rewards = torch.where(is_last, _adjusted(rollout, config)[:, None], zeros)
    if algorithm.kl_in_tokens and algorithm.kl_credit == "to_go":
        rewards = rewards + torch.where(is_token, _token_penalties(rollout, algorithm), zeros)
    return is_token, rewards


def find_counted(rollout: Rollout, config: TrainConfig) -> Bool[Tensor, " N"]:
    """Find the completions that are in the gradient and its denominators; one without a token is in neither."""
    algorithm, is_counted = config.algorithm, has_reward(rollout) & (rollout.completions.lengths > 0)
    if algorithm.drop_uniform_groups:
        rewards = _rewards(rollout).reshape(len(rollout.rows), -1)
        is_uniform = uniform_groups(rewards, is_valid=_is_valid(rollout))
        is_counted = is_counted & ~is_uniform.repeat_interleave(rewards.shape[1])
    if algorithm.mask_truncated:
        has_ended = [reason != "length" for reason in rollout.completions.finish_reasons]
        is_counted = is_counted & torch.tensor(has_ended, device=is_counted.device)
    return is_counted


def _adjusted(rollout: Rollout, config: TrainConfig) -> Float[Tensor, " N"]:
    """Rewards less what the whole completion pays for, its length and its KL."""
    algorithm, log_probs = config.algorithm, rollout.completions.log_probs
    adjusted = _rewards(rollout)
    if algorithm.overlong_buffer > 0:
        buffer = algorithm.overlong_buffer * config.max_new_tokens
        lengths = rollout.completions.lengths.to(adjusted.dtype)
        adjusted = adjusted + overlong_penalty(
            lengths, config.max_new_tokens, buffer, algorithm.overlong_factor
        )
    if rollout.kl is not None and algorithm.kl_place == "reward" and algorithm.kl_credit == "whole":
        adjusted = adjusted_rewards(adjusted, log_probs.new_tensor(rollout.kl), algorithm.beta)
    return adjusted


def _token_penalties(rollout: Rollout, algorithm: Objective) -> Float[Tensor, "N T"]:
    """−β d of each token."""
    if rollout.ref_log_probs is None:
        raise ArgumentError("rollout: the KL is in the reward of tokens, and the policy has no reference")
    return -algorithm.beta * (rollout.completions.token_log_probs - rollout.ref_log_probs)


def _rewards(rollout: Rollout) -> Float[Tensor, " N"]:
    total = rollout.rewards.total
    return rollout.completions.log_probs.new_tensor([0.0 if reward is None else reward for reward in total])


def has_reward(rollout: Rollout) -> Bool[Tensor, " N"]:
    """Find the completions that have a reward."""
    device = rollout.completions.ids.device
    return torch.tensor([reward is not None for reward in rollout.rewards.total], device=device)


def _is_valid(rollout: Rollout) -> Bool[Tensor, "B G"] | None:
    """Which completions have a reward; None where all do."""
    if len(rollout.valid) == len(rollout.rewards.total):
        return None
    return has_reward(rollout).reshape(len(rollout.rows), -1)


def _baseline(rollout: Rollout, algorithm: Objective) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return the baseline as a function of rewards (B, G) and of which of them count."""
    if algorithm.baseline == "group_mean":
        return lambda rewards, is_valid: group_mean(rewards, is_valid=is_valid)
    if algorithm.baseline == "length_weighted":
        lengths = rollout.completions.lengths.reshape(len(rollout.rows), -1)
        return lambda rewards, is_valid: length_weighted(rewards, lengths, is_valid=is_valid)
    if algorithm.baseline == "greedy":
        return lambda rewards, is_valid: _greedy(rollout, rewards, is_valid)
    return lambda rewards, is_valid: BASELINES[algorithm.baseline](rewards, is_valid=is_valid)


def _greedy(rollout: Rollout, rewards: Tensor, is_valid: Tensor | None) -> Tensor:
    """Subtract the greedy completion's reward; a prompt whose greedy completion has none counts for nothing."""
    if rollout.greedy_rewards is None:
        raise ArgumentError("rollout: the baseline greedy needs one with_greedy")
    has_greedy = torch.tensor(
        [reward is not None for reward in rollout.greedy_rewards], device=rewards.device
    )
    greedy = rewards.new_tensor([0.0 if reward is None else reward for reward in rollout.greedy_rewards])
    counted = has_greedy[:, None].expand_as(rewards)
    return greedy_baseline(rewards, greedy, is_valid=counted if is_valid is None else counted & is_valid)
