"""Training of a value function, beside the policy, on the same completions.

Axes: N completions of a rollout, n of an update or a micro-batch, T tokens.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from klimb.config.train import TrainConfig
from klimb.core.aggregation import aggregation, count_denominators
from klimb.core.objective import Objective
from klimb.core.returns import returns_to_go
from klimb.core.values import explained_variance, value_weights
from klimb.errors import DivergedError
from klimb.policy.completions import Completions
from klimb.policy.value_function import HEAD_PREFIX, ValueFunction
from klimb.rl.advantages import find_generalised_advantages, find_token_rewards, has_reward
from klimb.rl.optimizer import PolicyOptimizer, UpdateStats
from klimb.rl.rollout import Rollout, Slice
from klimb.rl.slices import cut_slices
from klimb.rl.surrogates import cut_to_rows
from klimb.world import ALONE, World


class ValueTrainer:
    """Fits a value function to the returns of each step.

    Attributes:
        function: The value function.
        optimizer: What moves its weights: of the policy's kind, with a constant learning rate of its own.

    Args:
        function: As above.
        config: The options.
        world: The ranks that take a step together.
    """

    def __init__(self, function: ValueFunction, config: TrainConfig, world: World = ALONE) -> None:
        self.function = function
        constant = replace(config, lr=config.present_value_lr, lr_schedule="constant", warmup_steps=0)
        rate = config.present_head_lr / config.present_value_lr
        of_head = {name: rate for name in function.trainable() if name.startswith(HEAD_PREFIX)}
        self.optimizer = PolicyOptimizer(function, constant, world, score=function.values, rates=of_head)
        self._config = config

    @property
    def is_warming_up(self) -> bool:
        """Whether the policy does not move yet."""
        steps = self.function.num_updates // self._config.algorithm.num_updates
        return steps < (self._config.value_warmup_steps or 0)

    def start(self, rollout: Rollout, config: TrainConfig) -> "ValueFit":
        """Find the values of a step's completions, before anything is moved.

        Before its first update, once these values are found, the value function is set to the mean return, and its
        units to the returns' standard deviation: its clip and its learning rate would have it reach them slowly.

        Args:
            rollout: The completions and their rewards.
            config: The options of this step.

        Raises:
            DivergedError: The values are not finite.
        """
        function, num_rows = self.function, len(rollout.completions)
        every = torch.arange(num_rows, device=rollout.completions.ids.device)
        slices = [
            Slice(function.prepare(each.completions), each.rows)
            for each in rollout.slices or [Slice(rollout.completions, every)]
        ]
        own = [function.constant_values(each.completions) for each in slices]
        values = own[0] if rollout.slices is None else self._gathered(own, rollout.completions)
        _require_finite(values, function.num_updates)
        rollout = replace(rollout, values=values)
        is_token, to_go = _returns_to_go(rollout, config)
        if function.num_updates == 0 and bool(is_token.any()):
            returns = to_go[is_token].double()
            mean = float(returns.mean())
            scale = function.head.start_at(mean, float(returns.std(correction=0)))
            values = (scale * values + mean).masked_fill(~rollout.completions.mask, 0.0)
        return ValueFit(self.optimizer, config, slices, rollout, values)

    def _gathered(self, own: list[Tensor], completions: Completions) -> Float[Tensor, "N T"]:
        """Put the values of all ranks' slices together, in order."""
        parts = self.optimizer.world.gather("values", own)
        longest = completions.ids.shape[1]
        padded = [pad(part.to(own[0].device), (0, longest - part.shape[1])) for part in parts]
        return torch.cat(padded)


class ValueFit:
    """A step's completions, whose returns a value function is fitted to in one update or several.

    Attributes:
        rollout: The completions with their values before the step.

    Args:
        optimizer: Moves the value function.
        config: The options.
        slices: This rank's slices of the completions, as the value function takes them.
        rollout: As above.
        old_values: V before each of their tokens as the updates begin, (N, T).
    """

    def __init__(
        self,
        optimizer: PolicyOptimizer,
        config: TrainConfig,
        slices: list[Slice],
        rollout: Rollout,
        old_values: Float[Tensor, "N T"],
    ) -> None:
        self.rollout = rollout
        _, returns = find_generalised_advantages(rollout, config)
        self._optimizer, self._config = optimizer, config
        self._old, self._returns = old_values, returns.to(old_values.dtype)
        self._slices = [
            Slice(
                _compared_with(each.completions, cut_to_rows(each.completions, old_values, each.rows)),
                each.rows,
            )
            for each in slices
        ]
        self._updates: list[UpdateStats] = []
        self._num_clipped = self._num_weighed = 0.0

    def update(self, rows: Int[Tensor, " n"]) -> None:
        """Make an update on those of some completions that have a reward and a token.

        Raises:
            DivergedError: The gradient or the values are not finite; the weights are not moved.
        """
        rows = rows[(has_reward(self.rollout) & (self.rollout.completions.lengths > 0))[rows]]
        if not len(rows):
            self._updates.append(self._optimizer.skip())
            return
        part = self.rollout.completions.rows(rows)
        slices = cut_slices(self._slices, rows, len(self.rollout.completions))
        old, returns = (cut_to_rows(part, array, rows) for array in (self._old, self._returns))
        surrogate = ValueSurrogate(self._config.algorithm, part, old, returns, self._config.max_new_tokens)
        try:
            self._updates.append(self._optimizer.step(surrogate, part, slices=slices, is_on_policy=False))
        except DivergedError as error:
            raise DivergedError(f"value function: {error}".replace("--lr", "--value-lr")) from error
        self._num_clipped += sum(self._optimizer.world.gather("clipped values", [surrogate.num_clipped]))
        self._num_weighed += float(part.lengths.sum())

    def metrics(self) -> dict[str, float | None]:
        """Describe the values before the step, and what its updates did to them."""
        is_token, to_go = _returns_to_go(self.rollout, self._config)
        values = cast("Tensor", self.rollout.values).to(to_go.dtype)
        explained = explained_variance(values, to_go, is_token)
        num_tokens = float(is_token.sum())
        error = (self._returns - values).masked_fill(~is_token, 0.0)
        taken = [update for update in self._updates if not update.is_skipped]

        def mean(array: Any) -> float | None:
            return float(array.sum(dtype=torch.float64)) / num_tokens if num_tokens else None

        return {
            "explained_variance": None if explained is None else float(explained),
            "mean": mean(values.masked_fill(~is_token, 0.0)),
            "return": mean(to_go),
            "loss": mean(error * error / 2),
            "clipped": self._num_clipped / self._num_weighed if self._num_weighed else 0.0,
            "drift": max((update.sampler_gap_mean for update in taken), default=0.0),
            "grad_norm": max((update.grad_norm for update in taken), default=0.0),
            "lr": taken[0].lr if taken else 0.0,
        }


class ValueSurrogate:
    """Each token's value by its weight: −½ max((V − R)², (clip(V, V_old ± c) − R)²), differentiated.

    Attributes:
        num_clipped: Tokens so far whose weight was 0 because V had left the clip.

    Args:
        objective: The objective, whose aggregation is that of the values, too.
        completions: Those of the update.
        old_values: V when they were drawn, (N, T).
        returns: R, (N, T).
        max_length: Most tokens of a completion.
    """

    def __init__(
        self,
        objective: Objective,
        completions: Completions,
        old_values: Float[Tensor, "N T"],
        returns: Float[Tensor, "N T"],
        max_length: int,
    ) -> None:
        self.num_clipped = 0.0
        self._objective, self._old, self._returns = objective, old_values, returns
        self._lengths = completions.lengths.to(old_values.dtype)
        self._denominators = count_denominators(self._lengths, completions.prompt_of, max_length=max_length)

    def __call__(self, values: Float[Tensor, "n T"], rows: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Weigh the values of a micro-batch by numbers that are found from them."""
        present = values.detach()
        _require_finite(present)
        old, returns = (array[rows, : values.shape[1]] for array in (self._old, self._returns))
        weights = value_weights(present, old, returns, self._objective.value_clip)
        self.num_clipped += float(((weights == 0) & (present != returns)).sum())
        scale = aggregation(self._lengths[rows], self._objective.aggregation, self._denominators.rows(rows))
        return self._objective.value_coefficient * (scale * weights * values).sum()


def _compared_with(completions: Completions, values: Tensor) -> Completions:
    """Put values where the optimizer looks for what its pass is compared with."""
    return replace(completions, token_log_probs=values)


def _returns_to_go(rollout: Rollout, config: TrainConfig) -> tuple[Bool[Tensor, "N T"], Float[Tensor, "N T"]]:
    """What followed each token, in which there are no values."""
    is_token, rewards = find_token_rewards(rollout, config)
    return is_token, returns_to_go(rewards, is_token, config.algorithm.discount)


def _require_finite(values: Tensor, num_updates: int | None = None) -> None:
    if not bool(values.isfinite().all()):
        after = "" if num_updates is None else f" after {num_updates} updates"
        raise DivergedError(f"the values are not finite{after}; try a lower --value-lr")
