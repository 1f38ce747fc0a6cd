"""The metrics of a step: its line of `metrics.jsonl`."""

import resource
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from klimb.rl.optimizer import UpdateStats
from klimb.rl.rollout import Rollout

FORMER = {"ended": "eos_rate", "same": "duplicate_rate", "failed": "reward_failures"}
"""Metrics that had another name in klimb 0.1, and their present names."""

TIMED = frozenset({"seconds", "completions_per_second", "peak_memory_bytes"})
"""Metrics of the machine, which differ when the same step is taken again."""


def with_present_names(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the metrics of a step that an earlier version wrote, in `metrics.jsonl` or in a checkpoint."""
    return {FORMER.get(name, name): value for name, value in metrics.items()}


def step_metrics(step: int, rollout: Rollout, update: UpdateStats, device: torch.device) -> dict[str, Any]:
    """Gather what a step shows of itself; all but speed and memory describe the policy before its update.

    Args:
        step: Steps taken before this one.
        rollout: Its completions and their rewards.
        update: What the update did.
        device: Where the policy is, whose peak memory is read.
    """
    rewards, completions = rollout.rewards, rollout.completions
    opinions = {
        name: [value for value in values if value is not None] for name, values in rewards.parts.items()
    }
    logged = {"logged": rewards.metrics} if rewards.metrics else {}
    return logged | {
        "step": step,
        "reward": statistics.fmean(rewards.given) if rewards.given else None,
        "reward_std": statistics.pstdev(rewards.given) if rewards.given else None,
        "reward_failures": len(rewards.total) - len(rewards.given),
        "rewards": {name: statistics.fmean(values) if values else None for name, values in opinions.items()},
        **({} if rollout.kl is None else {"kl": statistics.fmean(rollout.kl)}),
        "entropy": completions.mean_entropy,
        "length": float(completions.lengths.double().mean()),
        "eos_rate": (len(completions) - completions.finish_reasons.count("length")) / len(completions),
        "duplicate_rate": duplicate_share(rollout.texts),
        **({} if update.num_updates == 1 else {"updates": update.num_updates, "drift": update.drift}),
        **({"weights": update.weights} if update.weights else {}),
        **({"value": update.value} if update.value else {}),
        "grad_norm": update.grad_norm,
        "lr": update.lr,
        "sampler_gap_mean": update.sampler_gap_mean,
        "sampler_gap_max": update.sampler_gap_max,
        "seconds": rollout.seconds,
        "completions_per_second": len(completions) / sum(rollout.seconds.values()),
        "peak_memory_bytes": _peak_memory(device),
    }


def duplicate_share(texts: Sequence[str]) -> float:
    """Share of a batch that is the text which it has most often."""
    return Counter(texts).most_common(1)[0][1] / len(texts)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
