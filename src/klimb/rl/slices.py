"""A rollout in slices of whole prompts: each rank draws its own slices, and all ranks get the whole batch.

What a slice's completions are does not depend on the other slices, and everything that is computed from the whole batch
is computed from the same numbers on every rank, so the number of ranks changes no bit.

Axes: B prompts, G completions per prompt, N = B·G completions, S slices, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from klimb.data.prompts import PromptRow
from klimb.policy.completions import Completions, join
from klimb.policy.policy import SampleKey
from klimb.reward.failures import Failure
from klimb.reward.reward import Rewards
from klimb.rl.rollout import Rollout, Slice, Stopwatch
from klimb.world import World, cut

_TENSORS = ("ids", "lengths", "token_log_probs", "token_entropies")


def draw_in_slices(
    draw: Callable[[list[PromptRow], SampleKey], Rollout],
    rows: list[PromptRow],
    key: SampleKey,
    num_slices: int,
    world: World,
) -> Rollout:
    """Draw a step's completions in slices, of which this rank draws its own.

    Args:
        draw: Draws and scores completions of some prompts.
        rows: The step's B prompts.
        key: Key of the counter-based RNG.
        num_slices: S, by which B can be divided.
        world: The ranks.

    Returns:
        The whole batch, the same on every rank; without states of the trunk but in its `slices`.
    """
    if num_slices == 1:
        return draw(rows, key)
    own = cut(cut(range(len(rows)), num_slices), world.size)[world.rank]
    drawn = [
        draw([rows[at] for at in places], replace(key, prompts=[key.prompts[at] for at in places]))
        for places in own
    ]
    timer = Stopwatch(drawn[0].completions.ids.device)
    parts = world.gather("rollouts", [_as_part(each) for each in drawn])
    whole = _join(rows, parts, drawn[0].completions.ids.device)
    timer.lap("waiting")
    group = len(whole.completions) // len(rows)
    slices = [
        Slice(
            each.completions, torch.arange(places[0] * group, (places[-1] + 1) * group, device=timer.device)
        )
        for each, places in zip(drawn, own, strict=True)
    ]
    seconds = {name: sum(each.seconds[name] for each in drawn) for name in drawn[0].seconds} | timer.seconds
    return replace(whole, slices=slices, seconds=seconds)


def cut_slices(slices: Sequence[Slice], rows: Int[Tensor, " n"], num_rows: int) -> list[Slice | None]:
    """Cut slices to the completions of an update, and number these as the update does; None where none is left.

    Args:
        slices: Slices of the whole batch.
        rows: Which completions of the batch the update is of, (n,).
        num_rows: N.
    """
    places = torch.full((num_rows,), -1, device=rows.device)
    places[rows] = torch.arange(len(rows), device=rows.device)
    cut_to: list[Slice | None] = []
    for each in slices:
        here = places[each.rows]
        kept = (here >= 0).nonzero()[:, 0]
        if len(kept) == len(here):
            cut_to.append(Slice(each.completions, here))
        else:
            cut_to.append(Slice(each.completions.rows(kept), here[kept]) if len(kept) else None)
    return cut_to


def _as_part(drawn: Rollout) -> dict[str, Any]:
    """What all ranks need of a slice, as JSON types and tensors."""
    completions, rewards = drawn.completions, drawn.rewards
    return {
        **{name: getattr(completions, name) for name in _TENSORS},
        "prompts": completions.prompts,
        "finish_reasons": completions.finish_reasons,
        "texts": drawn.texts,
        "total": rewards.total,
        "parts": rewards.parts,
        "failures": [[failure.index, failure.reason] for failure in rewards.failures],
        "metrics": rewards.metrics,
        "extra": rewards.extra,
        "kl": drawn.kl,
        "openings": drawn.openings,
        "ref_log_probs": drawn.ref_log_probs,
        "old_log_probs": drawn.old_log_probs,
        "greedy_rewards": drawn.greedy_rewards,
    }


def _join(rows: list[PromptRow], parts: Sequence[dict[str, Any]], device: torch.device) -> Rollout:
    """Put the slices of a batch together, in order."""
    sizes = [len(part["texts"]) for part in parts]
    texts = _joined(parts, "texts")
    has_openings = any(part["openings"] for part in parts)
    openings = [part["openings"] or [""] * size for part, size in zip(parts, sizes, strict=True)]
    return Rollout(
        rows,
        _join_completions(parts, len(texts) // len(rows), device),
        texts,
        _join_rewards(parts, texts),
        None if parts[0]["kl"] is None else _joined(parts, "kl"),
        {},
        [opening for part in openings for opening in part] if has_openings else None,
        _join_tokens(parts, "ref_log_probs", device),
        None if parts[0]["greedy_rewards"] is None else _joined(parts, "greedy_rewards"),
        old_log_probs=_join_tokens(parts, "old_log_probs", device),
    )


def _join_tokens(parts: Sequence[dict[str, Any]], name: str, device: torch.device) -> Tensor | None:
    """Put numbers of tokens, (n, t) of each slice, together; None where slices have none."""
    if parts[0][name] is None:
        return None
    tensors = [part[name].to(device) for part in parts]
    longest = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors])


def _join_completions(parts: Sequence[dict[str, Any]], group: int, device: torch.device) -> Completions:
    drawn = [
        Completions(
            prompts=part["prompts"],
            prompt_of=torch.arange(len(part["prompts"]), device=device).repeat_interleave(group),
            finish_reasons=part["finish_reasons"],
            **{name: part[name].to(device) for name in _TENSORS},
        )
        for part in parts
    ]
    prompts = _joined(parts, "prompts")
    return join(prompts, drawn, torch.arange(len(prompts), device=device).repeat_interleave(group))


def _join_rewards(parts: Sequence[dict[str, Any]], texts: list[str]) -> Rewards:
    failures: list[Failure] = []
    first = 0
    for part in parts:
        for index, reason in part["failures"]:
            failures.append(Failure(first + index, len(texts), texts[first + index], reason))
        first += len(part["texts"])
    return Rewards(
        _joined(parts, "total"),
        {name: [value for part in parts for value in part["parts"][name]] for name in parts[0]["parts"]},
        failures,
        _mean_metrics(parts),
        _join_columns(parts),
    )


def _mean_metrics(parts: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean over slices of each number that reward functions logged; None where one is not finite."""
    means: dict[str, float | None] = {}
    for name in dict.fromkeys(name for part in parts for name in part["metrics"]):
        values = [part["metrics"][name] for part in parts if name in part["metrics"]]
        means[name] = None if None in values else sum(values) / len(values)
    return means


def _join_columns(parts: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns that reward functions logged; None for the completions of slices in which they did not."""
    names = dict.fromkeys(name for part in parts for name in part["extra"])
    return {
        name: [value for part in parts for value in part["extra"].get(name, [None] * len(part["texts"]))]
        for name in names
    }


def _joined(parts: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [value for part in parts for value in part[name]]
