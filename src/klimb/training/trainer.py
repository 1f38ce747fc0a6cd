"""The trainer: takes one step after another; it handles no display, files or signals."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from klimb.config.train import TrainConfig
from klimb.data.prompts import PromptRow, indices_of_step
from klimb.errors import ArgumentError
from klimb.policy.policy import Policy, SampleKey
from klimb.policy.value_function import ValueFunction
from klimb.reward.reward import WeightedSum
from klimb.rl.guards import Bounds, Finding, Guards
from klimb.rl.metrics import step_metrics
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.rollout import Rollout
from klimb.rl.sampler import Sampler
from klimb.rl.schedule import KLCoefficient
from klimb.rl.step import take_step
from klimb.rl.value import ValueTrainer
from klimb.world import ALONE, World


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that later steps depend on, besides weights and optimiser."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as JSON types."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        metrics: Its line of `metrics.jsonl`.
        rollout: The completions that were drawn, and their rewards.
        findings: What guards found.
    """

    metrics: dict[str, Any]
    rollout: Rollout
    findings: list[Finding]


@dataclass
class Trainer:
    """Takes the steps of a run: holds the policy, the optimizer and the number of steps taken.

    Attributes:
        config: The options of the run.
        rows: The training prompts.
        policy: What is trained.
        reward: What it is trained on, and the judges.
        optimizer: What moves the weights.
        coefficient: The KL coefficient, which may move.
        guards: What checks each step.
        step: Steps taken so far.
        num_updates: Updates of the weights at the end of the last whole step.
        sampler: What draws the completions of steps; the policy itself where None.
        value: What fits the value function; None where the objective has none.
    """

    config: TrainConfig
    rows: Sequence[PromptRow]
    policy: Policy
    reward: WeightedSum
    optimizer: PolicyOptimizer
    coefficient: KLCoefficient
    guards: Guards
    step: int = 0
    num_updates: int = 0
    sampler: Sampler | None = None
    value: ValueTrainer | None = None

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        rows: Sequence[PromptRow],
        policy: Policy,
        reward: WeightedSum,
        world: World = ALONE,
        *,
        value_function: ValueFunction | None = None,
    ) -> "Trainer":
        """Begin at the policy's present weights, with an optimizer without state.

        Raises:
            ArgumentError: The objective has a value function, and none is given.
        """
        if config.algorithm.baseline == "value" and value_function is None:
            raise ArgumentError(f"value_function: the objective {config.objective} needs one, got none")
        optimizer = PolicyOptimizer(policy, config, world)
        guards = Guards(Bounds(config, config.completions_per_step, config.precision), optimizer)
        value = None if value_function is None else ValueTrainer(value_function, config, world)
        return cls(config, rows, policy, reward, optimizer, KLCoefficient(config), guards, value=value)

    @property
    def parts(self) -> Mapping[str, Stateful]:
        """What besides weights, optimiser and `step` a checkpoint must hold, by name."""
        return {"kl_coefficient": self.coefficient, "guards": self.guards}

    @property
    def is_between_steps(self) -> bool:
        """Whether the last step was a whole one: its weights are those of `step`."""
        return self.num_updates == self.policy.num_updates

    def train_step(self) -> StepResult:
        """Draw completions, score them, and move the weights once."""
        config = replace(self.config, beta=self.coefficient.beta)
        indices = indices_of_step(self.step, len(self.rows), config.prompts_per_step, config.seed)
        rows, key = [self.rows[index] for index in indices], SampleKey(config.seed, self.step, indices)
        rollout, update = take_step(
            self.policy,
            self.reward,
            self.optimizer,
            rows,
            key,
            config,
            num_prompts=len(self.rows),
            sampler=self.sampler,
            value=self.value,
        )
        metrics = step_metrics(self.step, rollout, update, self.policy.model.device) | {
            "beta": config.algorithm.beta
        }
        findings = self.guards.check(metrics)
        metrics["guards"] = [finding.guard for finding in findings]
        if rollout.kl is not None:
            self.coefficient.adapt(statistics.fmean(rollout.kl), len(rollout.completions))
        self.step, self.num_updates = self.step + 1, self.policy.num_updates
        return StepResult(metrics, rollout, findings)
