"""Guards: checks after every step, so that a run that goes wrong is noticed at once.

Each guard is a function of the steps so far, as `metrics.jsonl` has them, the newest last. A step's numbers are of the
policy before its update. A bound that is stated in the options is acted upon; where none is, a usual one warns.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from klimb.config.sections import GuardOptions
from klimb.errors import GuardError
from klimb.rl.metrics import with_present_names
from klimb.rl.optimizer import USUAL_GAPS, PolicyOptimizer

Step = dict[str, Any]
"""A line of `metrics.jsonl`."""

MOST_SLOWINGS = 3
"""How often the learning rate is halved before the run stops."""

_REST = 5  # steps from one halving to the next, so that the first can show
_REMEMBERED = 20  # steps kept for comparison, besides the first
_KEPT = ("step", "kl", "length", "entropy", "duplicate_rate", "grad_norm", "sampler_gap_mean", "guards")

# Usual bounds, past what three seeds of the demo showed in their 40 steps: at most 0.69 nats per token from the
# reference, 64 % of the first entropy at least, one text for 6 % of a batch at most, a gradient 1.16 times the longest.
_USUAL_KL = 3.0  # nats per token
_LEAST_SHARE_OF_ENTROPY = 0.1  # of the first step's
_MOST_ADDED_ENTROPY = 3.0  # nats per token above the first step's
_USUAL_SAME = 0.9  # of the batch
_FEW = 4  # completions of which a share says little
_USUAL_SPIKE = 10.0  # times the longest of the steps before
_FIRST_SPIKE = 5  # steps before one is spoken of
_NEAR = 0.5  # of the bound at which the gap between sampler and trainer stops a run


@dataclass(frozen=True)
class Finding:
    """An anomaly that a guard found.

    Attributes:
        guard: Its name.
        words: What was found.
        cause: What it is likely to come from.
        remedy: What to do.
        is_stated: Whether the bound is one that the options state, and which is acted upon.
    """

    guard: str
    words: str
    cause: str
    remedy: str
    is_stated: bool

    def __str__(self) -> str:
        return f"{self.words}; likely {self.cause}: {self.remedy}"


@dataclass(frozen=True)
class Bounds:
    """What guards compare a step with.

    Attributes:
        options: The bounds that are stated.
        completions_per_step: Completions of a step; of few, one text may be a large share.
        precision: What the model computes in, which decides the usual mismatch of log-probs.
    """

    options: GuardOptions
    completions_per_step: int
    precision: Literal["float32", "bfloat16"]


Guard = Callable[[Sequence[Step], Bounds], Finding | None]
"""(steps so far, bounds) → what is found of the newest."""


def watch_kl(steps: Sequence[Step], bounds: Bounds) -> Finding | None:
    """Whether the policy is further from its reference than `max_kl`, in nats per completion."""
    kl, stated = steps[-1].get("kl"), bounds.options.max_kl
    if kl is None:  # not measured
        return None
    bound = _USUAL_KL * steps[-1]["length"] if stated is None else stated
    if kl <= bound:
        return None
    return Finding(
        "kl",
        f"KL {kl:.1f} nats per completion, past {_show(bound, stated, 'max_kl')}",
        "a reward that pays more than the KL costs, or steps too long",
        "raise --beta, or lower --lr",
        stated is not None,
    )


def watch_low_entropy(steps: Sequence[Step], bounds: Bounds) -> Finding | None:
    """Whether the entropy has fallen below `min_entropy`, in nats per token: the policy repeats itself."""
    entropy, stated = steps[-1]["entropy"], bounds.options.min_entropy
    bound = _LEAST_SHARE_OF_ENTROPY * steps[0]["entropy"] if stated is None else stated
    if entropy >= bound:
        return None
    return Finding(
        "low entropy",
        f"entropy {entropy:.2g} nats per token, below {_show(bound, stated, 'min_entropy')}",
        "a reward that one answer pleases best",
        "raise --beta, or lower --lr; look at the completions",
        stated is not None,
    )


def watch_high_entropy(steps: Sequence[Step], bounds: Bounds) -> Finding | None:
    """Whether the entropy has risen above `max_entropy`, in nats per token: the policy's text becomes random."""
    entropy, stated = steps[-1]["entropy"], bounds.options.max_entropy
    bound = steps[0]["entropy"] + _MOST_ADDED_ENTROPY if stated is None else stated
    if entropy <= bound:
        return None
    return Finding(
        "high entropy",
        f"entropy {entropy:.2f} nats per token, above {_show(bound, stated, 'max_entropy')}",
        "steps so long that the model forgets its language",
        "lower --lr, or sample more completions per step",
        stated is not None,
    )


def watch_one_text(steps: Sequence[Step], bounds: Bounds) -> Finding | None:
    """Whether more of a batch than `max_duplicate_share` is one and the same text."""
    share, stated = steps[-1]["duplicate_rate"], bounds.options.max_duplicate_share
    if stated is None and bounds.completions_per_step < _FEW:
        return None
    bound = _USUAL_SAME if stated is None else stated
    if share <= bound:
        return None
    return Finding(
        "one text",
        f"{share:.0%} of the completions are one text, more than {_show(bound, stated, 'max_duplicate_share')}",
        "a reward that one text pleases whatever the prompt",
        "fix the reward, or raise --beta",
        stated is not None,
    )


def watch_spike(steps: Sequence[Step], bounds: Bounds) -> Finding | None:
    """Whether the gradient is longer than `max_grad_spike` times the longest of the steps before."""
    earlier = [step["grad_norm"] for step in steps[-_REMEMBERED - 1 : -1]]
    norm, stated = steps[-1]["grad_norm"], bounds.options.max_grad_spike
    bound = _USUAL_SPIKE if stated is None else stated
    if len(earlier) < _FIRST_SPIKE or max(earlier) == 0 or norm <= bound * max(earlier):
        return None
    return Finding(
        "spike",
        f"a gradient {norm / max(earlier):.1f} times as long as any of the {len(earlier)} steps before, "
        f"past {_show(bound, stated, 'max_grad_spike')}",
        "a reward out of all proportion, or a batch unlike the others",
        "look at this step's completions and rewards, and keep --max-grad-norm",
        stated is not None,
    )


def watch_gap(steps: Sequence[Step], bounds: Bounds) -> Finding | None:
    """Whether sampling and training drift apart; at `max_logprob_mismatch` a run stops before the weights move."""
    bound = _NEAR * (bounds.options.max_logprob_mismatch or USUAL_GAPS[bounds.precision])
    gap = statistics.fmean(step["sampler_gap_mean"] for step in steps[-_FIRST_SPIKE:])
    if gap <= bound:
        return None
    return Finding(
        "sampler",
        f"sampling and training are {gap:.2g} nats per token apart, over half of what stops the run",
        "numbers too coarse for weights as they have become",
        "use --precision float32",
        False,
    )


GUARDS: tuple[Guard, ...] = (
    watch_kl,
    watch_low_entropy,
    watch_high_entropy,
    watch_one_text,
    watch_spike,
    watch_gap,
)
"""All of them."""


class Guards:
    """Runs every guard on each step; stops the run or lowers its learning rate where a bound is passed.

    Slowing halves the learning rate from the next step on, at most `MOST_SLOWINGS` times, and then stops.

    Args:
        bounds: What steps are compared with, and what is done past a bound.
        optimizer: Whose learning rate is lowered.
    """

    def __init__(self, bounds: Bounds, optimizer: PolicyOptimizer) -> None:
        self._bounds, self._optimizer = bounds, optimizer
        self._steps: list[Step] = []
        self._slowed_at: list[int] = []

    def check(self, step: Step) -> list[Finding]:
        """Run every guard on the newest step, and return what they found."""
        self._steps.append({name: step[name] for name in _KEPT if name in step})
        if len(self._steps) > _REMEMBERED + 2:
            del self._steps[1]
        findings = [found for guard in GUARDS if (found := guard(self._steps, self._bounds))]
        self._steps[-1]["guards"] = [finding.guard for finding in findings]
        return findings

    def new(self, findings: Sequence[Finding]) -> list[Finding]:
        """Those of the newest findings that the step before did not have."""
        known = self._steps[-2]["guards"] if len(self._steps) > 1 else []
        return [finding for finding in findings if finding.guard not in known]

    def act(self, findings: Sequence[Finding]) -> str | None:
        """Lower the learning rate, or stop the run, where a bound from the options is passed.

        Returns:
            What was done, if anything was.

        Raises:
            GuardError: The run is to stop.
        """
        stated = [finding for finding in findings if finding.is_stated]
        if not stated:
            return None
        now, reasons = self._steps[-1]["step"], "; ".join(map(str, stated))
        if self._slowed_at and now - self._slowed_at[-1] < _REST:
            return None
        if self._bounds.options.on_alarm == "stop" or len(self._slowed_at) == MOST_SLOWINGS:
            times = f" after {MOST_SLOWINGS} halvings of the learning rate" if self._slowed_at else ""
            raise GuardError(f"step {now + 1}{times}: {reasons}")
        self._slowed_at.append(now)
        self._slow()
        return f"learning rate halved, {len(self._slowed_at)} of {MOST_SLOWINGS} times: {reasons}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as JSON types."""
        return {"steps": [dict(step) for step in self._steps], "slowed_at": list(self._slowed_at)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave, the learning rate included."""
        self._steps = [with_present_names(step) for step in state["steps"]]
        self._slowed_at = list(state["slowed_at"])
        self._slow()

    def _slow(self) -> None:
        self._optimizer.rate_scale = 0.5 ** len(self._slowed_at)


def _show(bound: float, stated: float | None, option: str) -> str:
    return f"{option} {bound:.4g}" if stated is not None else f"the usual {bound:.3g}"
