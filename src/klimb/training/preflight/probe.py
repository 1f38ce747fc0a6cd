"""The probe: a few completions sampled before the first step, to check policy, sampler and rewards.

They are drawn from random numbers of their own: a run is the same with the probe and without.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klimb.config.sections import SamplingOptions
from klimb.core.rng import Stream
from klimb.data.prompts import PromptRow
from klimb.errors import KlimbError
from klimb.policy.completions import Completions
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.reward import Batch, Rewards, WeightedSum
from klimb.reward.state import TrainerState
from klimb.rl.rollout import reward_inputs
from klimb.training.preflight.checks import LOOKED_THROUGH, CheckResult

_NUM_PROMPTS, _GROUP, _MOST_TOKENS = 2, 2, 16


@dataclass(frozen=True)
class Probe:
    """A few completions, drawn for the checks alone.

    Attributes:
        completions: The completions.
        batch: The same as a reward gets them.
        missing: Why rewards that look for tags may not see them, in words; "" where nothing is left out.
    """

    completions: Completions
    batch: Batch
    missing: str = ""


def draw_probe(
    policy: Policy, rows: Sequence[PromptRow], options: SamplingOptions, state: TrainerState | None = None
) -> Probe:
    """Draw a few short completions of the shortest among the first training prompts.

    Raises:
        DivergedError: The model's predictions are not numbers.
    """
    first = rows[:LOOKED_THROUGH]
    by_length = sorted(range(len(first)), key=lambda index: len(str(first[index].prompt)))
    indices = sorted(by_length[:_NUM_PROMPTS])
    chosen = [first[index] for index in indices]
    completions = policy.sample(
        [policy.encode(row.prompt, row.columns) for row in chosen],
        _GROUP,
        max_new_tokens=min(_MOST_TOKENS, options.max_new_tokens),
        key=SampleKey(options.seed, 0, indices, Stream.PREFLIGHT),
    )
    texts = policy.decode(completions, [row.prompt for row in chosen])
    batch = reward_inputs(policy, chosen, completions, texts, state)
    return Probe(completions, batch, _missing_tags(policy, batch))


@torch.no_grad()
def check_start(policy: Policy, probe: Probe, bound: float) -> CheckResult:
    """Whether the KL is 0 and the ratio 1 at the start: policy and reference, each by its own pass, agree.

    Args:
        policy: The policy, as it is.
        probe: Completions.
        bound: Most that they may differ by, in nats per token.
    """
    if policy.num_updates:
        words = f"the policy resumes after {policy.num_updates} updates, away from its reference"
        return CheckResult("start", "passed", words)
    if policy.reference is None:
        return CheckResult("start", "passed", "beta is 0: there is no reference to compare with")
    completions = probe.completions
    own = torch.zeros_like(completions.log_probs)
    for rows in completions.micro_batches(policy.micro_batch_size):
        own[rows] = policy.log_probs(completions.rows(rows)).sum(dim=1).to(own.dtype)
    gaps = (own - policy.reference.log_probs(completions, policy.micro_batch_size).sum(dim=1)).abs()
    gap, worst = float((gaps / completions.lengths).max()), float(gaps.max())
    words = f"KL {worst:.2g} nats per completion, ratio within {math.expm1(min(worst, 700.0)):.2g} of 1"
    if gap <= bound:
        return CheckResult("start", "passed", words)
    remedy = (
        f"policy and reference must be one model at first, to {bound:g} nats per token: train without dropout "
        "or code of the model's own that draws random numbers, or use --precision float32"
    )
    return CheckResult("start", "failed", words, remedy)


def check_sampler(policy: Policy, probe: Probe, bound: float) -> CheckResult:
    """Whether a pass as the update makes it gives the tokens the log-probs that were recorded in sampling.

    Args:
        policy: The policy.
        probe: Completions that it drew.
        bound: Most that they may differ by on average, in nats per token.
    """
    completions = probe.completions
    gaps: list[Tensor] = []
    for rows in completions.micro_batches(policy.micro_batch_size):
        part = completions.rows(rows)
        gaps.append((policy.log_probs(part).detach() - part.token_log_probs).abs()[part.mask])
    gap = torch.cat(gaps)
    words = f"{float(gap.mean()):.2g} nats per token apart, at most {float(gap.max()):.2g} (bound {bound:g})"
    if float(gap.mean()) <= bound:  # not so either where it is not a number
        return CheckResult("sampler", "passed", words)
    remedy = (
        "use --precision float32, or raise --max-logprob-mismatch if you accept another policy's gradient"
    )
    return CheckResult("sampler", "failed", words, remedy)


def check_rewards(
    reward: Callable[[Batch], Rewards], probe: Probe, completions_per_step: int, beta: float
) -> CheckResult:
    """Whether the rewards are finite numbers that differ by more than a nat costs, and how long they take."""
    start, mend = time.perf_counter(), "fix the reward, or choose another"
    try:
        rewards = reward(probe.batch)
    except KlimbError as error:
        return CheckResult("rewards", "failed", str(error), mend)
    count, values = len(rewards.total), rewards.given
    seconds = (time.perf_counter() - start) / count
    if not values:
        return CheckResult("rewards", "failed", "; ".join(map(str, rewards.failures[:1])), mend)
    words = (
        f"{min(values):.3g} to {max(values):.3g} for {len(values)} of {count} completions; {_duration(seconds)} each, "
        f"{_duration(seconds * completions_per_step)} a step"
    )
    if rewards.failures:
        return CheckResult("rewards", "warned", f"{words}; {rewards.failures[0]}", mend)
    if max(values) == min(values) and count > 1:
        remedy = (
            "if all rewards of a prompt are equal there is nothing to learn: look at a few completions"
            + (f"; {probe.missing}" if probe.missing else "")
        )
        return CheckResult("rewards", "warned", f"{words}, all equal", remedy)
    if count > 1 and max(values) - min(values) < beta:
        words += f"; they differ by {max(values) - min(values):.3g}"
        remedy = (
            f"a nat away from the start costs {beta:g}, more than that: the KL would dominate the reward; "
            "lower --beta, or weigh the reward by --reward-weights"
        )
        return CheckResult("rewards", "warned", words, remedy)
    return CheckResult("rewards", "passed", words)


def check_reward_room(
    reward: WeightedSum, rows: Sequence[PromptRow], max_new_tokens: int
) -> list[CheckResult]:
    """Whether each reward model reads the longest prompts with a completion of any length; nothing without any."""
    from klimb.reward.classifier import ClassifierReward

    prompts = [row.prompt for row in sorted(rows, key=lambda row: -len(str(row.prompt)))[:LOOKED_THROUGH]]
    results: list[CheckResult] = []
    for model in [*reward.unattended().rewards, *reward.judges]:
        if not isinstance(model, ClassifierReward) or model.longest is None:
            continue
        needed = [model.count_tokens(prompt) + max_new_tokens for prompt in prompts]
        num_short = sum(count > model.longest for count in needed)
        words = (
            f"{model.name} reads {model.longest:,} tokens; prompts and completions have up to {max(needed):,}"
        )
        if not num_short:
            results.append(CheckResult("reward room", "passed", words))
            continue
        words += (
            f", too many for {num_short} of the {len(prompts)} longest prompts: such completions get no score"
        )
        remedy = "shorten the prompts, lower --max-new-tokens, or learn the reward with --truncate left"
        results.append(CheckResult("reward room", "warned", words, remedy))
    return results


def _missing_tags(policy: Policy, batch: Batch) -> str:
    """Name the tags that completions cannot show: special tokens that are left out, and what the prompt has opened."""
    decoder = policy.text_decoder
    reasons: list[str] = []
    if hidden := [name for token, name in decoder.tags.items() if token in decoder.left_out]:
        reasons.append(
            f"{', '.join(hidden)} are special tokens, which --skip-special-tokens all leaves out of the texts"
        )
    if opened := next(filter(None, batch.openings or []), ""):
        reasons.append(
            f"the chat template writes {opened.strip()} at the end of the prompt, so no completion begins with it"
        )
    return "; ".join(reasons)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
