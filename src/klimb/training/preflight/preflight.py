"""Checks before the first step, so that a run does not fail hours later."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from klimb.config.train import TrainConfig
from klimb.config.value import HEAD, SELF
from klimb.data.prompts import PromptRow
from klimb.errors import DivergedError, PreflightError
from klimb.policy.policy import Policy
from klimb.policy.value_function import ValueFunction
from klimb.reward.reward import WeightedSum
from klimb.rl.optimizer import USUAL_GAPS
from klimb.rl.rollout import trainer_state
from klimb.training.preflight.checks import (
    CheckResult,
    check_batch,
    check_disk,
    check_end_tokens,
    check_header,
    check_lengths,
    check_memory,
    check_tools,
    memory_remedy,
    predict_disk,
)
from klimb.training.preflight.memory import (
    MemoryPrediction,
    outline,
    predict_memory,
    size_of,
    size_of_value_function,
)
from klimb.training.preflight.probe import (
    check_reward_room,
    check_rewards,
    check_sampler,
    check_start,
    draw_probe,
)
from klimb.training.preflight.resources import (
    available_memory,
    base_memory,
    device_of,
    free_disk,
    used_memory,
)

_START_BOUNDS = {"float32": 1e-4, "bfloat16": 1e-2}  # nats per token; the same computation twice: 0 is seen


@dataclass(frozen=True)
class PreflightInputs:
    """A run that is about to begin.

    Attributes:
        config: Its options.
        policy: The policy.
        reward: What is trained on, and the judges.
        rows: The training prompts.
        num_judged: How many prompts the policy is judged by.
        longest_prompt: Tokens of the longest of all of these.
        base: Bytes of the process without the model.
        value_function: The value function, where the objective has one.
    """

    config: TrainConfig
    policy: Policy
    reward: WeightedSum
    rows: Sequence[PromptRow]
    num_judged: int
    longest_prompt: int
    base: int
    value_function: ValueFunction | None = None


@dataclass(frozen=True)
class Preflight:
    """What all checks found.

    Attributes:
        results: In the order in which they were made.
        memory: What the run's memory consists of.
        seconds: How long it took.
    """

    results: list[CheckResult]
    memory: MemoryPrediction
    seconds: float

    def require_passed(self) -> None:
        """Raise if a check failed.

        Raises:
            PreflightError: The message has what failed, and the remedies.
        """
        failed = [result for result in self.results if result.outcome == "failed"]
        if failed:
            reasons = "; ".join(f"{result.name}: {result.words} ({result.remedy})" for result in failed)
            raise PreflightError(f"preflight: {reasons}. --no-preflight skips this check")


def run_preflight(inputs: PreflightInputs) -> Preflight:
    """Make all checks; nothing of the policy changes, and no random number of the run is taken."""
    start = time.perf_counter()
    config, policy = inputs.config, inputs.policy
    longest, num_judged = inputs.longest_prompt, inputs.num_judged
    size = size_of(policy)
    memory = predict_memory(
        size,
        config,
        longest_prompt=longest,
        num_judged=num_judged,
        base=inputs.base,
        value_size=size_of_value_function(inputs.value_function, size),
    )
    files = predict_disk(
        policy, config, longest_prompt=longest, num_judged=num_judged, value_function=inputs.value_function
    )
    device = policy.model.device
    results = [
        check_batch(config, config.num_steps, len(inputs.rows), longest),
        check_lengths(policy.context_length, longest, config.max_new_tokens),
        check_end_tokens(policy, inputs.rows),
        *check_header(policy, inputs.rows),
        *check_tools(policy, inputs.rows),
        check_memory(memory, memory_remedy(config, config), available_memory(device), used_memory(device)),
        check_disk(files, free_disk(config.out)),
    ]
    results += _probe_checks(inputs)
    return Preflight(results, memory, time.perf_counter() - start)


def _probe_checks(inputs: PreflightInputs) -> list[CheckResult]:
    config, policy, unattended = inputs.config, inputs.policy, inputs.reward.unattended()
    state = trainer_state(config, len(inputs.rows), policy.num_updates)
    try:
        probe = draw_probe(policy, inputs.rows, config, state)
    except DivergedError as error:
        remedy = "the weights are damaged: fetch or save the model again"
        return [CheckResult("start", "failed", f"before any training {error}", remedy)]
    return [
        check_start(policy, probe, _START_BOUNDS[config.precision]),
        check_sampler(policy, probe, config.max_logprob_mismatch or USUAL_GAPS[config.precision]),
        check_rewards(unattended, probe, config.completions_per_step, config.algorithm.beta)
        if unattended.rewards
        else CheckResult("rewards", "passed", "people are asked at each step, and not beforehand"),
        *check_reward_room(inputs.reward, inputs.rows, config.max_new_tokens),
    ]


def require_room(config: TrainConfig) -> int:
    """Raise where a model is too large for this machine however short its texts, before it is loaded.

    Returns:
        Bytes that the process takes besides the model, of which a prediction is made later.

    Raises:
        PreflightError: It cannot fit.
    """
    base = base_memory(config.device)
    with same_random_numbers():
        size = outline(config) if config.preflight else None
    if size is not None:
        has_other = config.algorithm.baseline == "value" and config.value_source not in (HEAD, SELF)
        value_size = outline(replace(config, model=config.value_source)) if has_other else None
        whole = predict_memory(size, config, longest_prompt=1, base=base, value_size=value_size)
        device = device_of(config.device)
        result = check_memory(
            MemoryPrediction(whole.held),
            memory_remedy(config, config),
            available_memory(device),
            used_memory(device),
        )
        if result.outcome == "failed":
            raise PreflightError(f"memory: {result.words} ({result.remedy}). --no-preflight skips this check")
    return base


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Give back the state of every global generator, of which a reward, or what draws the screen, may have drawn."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  the one that others use
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
