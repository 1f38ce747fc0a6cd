"""Schedules: the learning rate, and the adaptive KL coefficient with `kl_target`."""

import math
from typing import Any

from klimb.config.sections import AlgorithmOptions, OptimizerOptions
from klimb.core.kl import adaptive_beta

LARGEST_ERROR = 0.2
"""Distance of the KL from its target, relative to that, up to which the coefficient moves the faster."""


def learning_rate(config: OptimizerOptions, num_steps: int) -> float:
    """Find the learning rate of the step that follows so many steps, for each of its updates.

    It rises linearly over W = warmup_steps, then stays, or falls over the rest of T = num_steps: with t steps taken

        linear   lr · (T − t) / (T − W)
        cosine   lr · (1 + cos(π (t − W) / (T − W))) / 2

    so that the step after the last would have none. The constant rate does not know how long the run is.
    """
    rate = config.lr * min(1.0, (num_steps + 1) / max(config.warmup_steps, 1))
    if config.lr_schedule == "constant" or num_steps <= config.warmup_steps:
        return rate
    share = (num_steps - config.warmup_steps) / (config.num_steps - config.warmup_steps)
    if config.lr_schedule == "linear":
        return rate * (1 - share)
    return rate * (1 + math.cos(math.pi * share)) / 2


class KLCoefficient:
    """The KL coefficient of a run: fixed, or moved after every step so that the KL stays near a target.

    Attributes:
        beta: The coefficient of the next step.
    """

    def __init__(self, config: AlgorithmOptions) -> None:
        self.beta = config.algorithm.beta
        self._target, self._horizon = config.kl_target, config.kl_horizon

    def adapt(self, kl: float, num_samples: int) -> None:
        """Take note of a step: its mean KL estimate, in nats per completion, and its number of completions."""
        if self._target is not None:
            self.beta = adaptive_beta(
                self.beta,
                kl,
                target=self._target,
                horizon=self._horizon,
                num_samples=num_samples,
                clip=LARGEST_ERROR,
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as JSON types."""
        return {} if self._target is None else {"beta": self.beta}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the coefficient of a checkpoint, if it holds one."""
        if self._target is not None:
            self.beta = float(state["beta"])
