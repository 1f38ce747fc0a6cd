"""A run from configuration to fine-tuned model and report."""

import json
import resource
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import torch

from klimb.errors import DataError, DivergedError, KlimbError
from klimb.policy.distribution import Distribution
from klimb.policy.policy import Draw, Policy
from klimb.policy.trainable import Lora
from klimb.reward.load import load_rewards
from klimb.reward.reward import WeightedSum
from klimb.train.ascent import Ascent, AscentMetrics
from klimb.train.config import TrainConfig
from klimb.train.display import Display
from klimb.train.estimates import short_name
from klimb.train.folder import RunFolder
from klimb.train.judging import Evaluator, Watch, completion_rows
from klimb.train.lengths import check_lengths
from klimb.train.objective import declare
from klimb.train.prompts import PromptRow, indices_of_step, read_prompts
from klimb.train.report import write_report
from klimb.train.step import Judged, take_step
from klimb.train.summary import Summary, summarise

_MOST_TRAINING_PROMPTS_JUDGED = 32  # where no held-out prompts are given


@dataclass(frozen=True)
class RunResult:
    """Where a run left its files, and what it changed."""

    folder: RunFolder
    summary: Summary


def train(config: TrainConfig, display: Display | None = None) -> RunResult:
    """Fine-tune a model.

    Everything that can be wrong with the configuration and its files is found before the model
    is loaded, and everything about prompts before the first step.

    Args:
        config: The options.
        display: What shows the run; a terminal display where None.

    Returns:
        The run's folder and what changed.

    Raises:
        KlimbError: Something is wrong with an option, a file, a reward or the model; the
            message says what, where, and what to do. After the first update a checkpoint of
            the last one is left in the run's folder, unless the weights have diverged.
    """
    display = display or Display()
    RunFolder.require_free(config.out)
    rows = read_prompts(config.prompts, config.prompt_column)
    judged_rows = _rows_to_judge(config, rows)
    indices_of_step(0, len(rows), config.prompts_per_step, config.seed)
    reward = load_rewards(
        config.reward,
        config.reward_weights,
        judges=config.judges,
        caution=config.caution,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    display.loading(config.model)
    policy = load_policy(config)
    check_lengths(policy, [*rows, *judged_rows], config.max_new_tokens)
    display.started(config, declare(config), _facts(config, policy, rows))

    # Judged before anything is written: a reward that fails at once leaves no folder behind.
    evaluator = Evaluator(policy, reward, judged_rows, config)
    display.evaluating("before", len(judged_rows))
    before = evaluator.evaluate_start()
    folder = RunFolder.create(config.out, config.to_dict())
    ascent = Ascent(policy, config)
    watch = Watch(evaluator, folder, ascent, display)
    climb = _Climb(config, rows, policy, reward, ascent, folder, display)
    try:
        watch.start(before)
        for step in range(config.num_steps):
            climb.take(step)
            if not watch.look():
                break
        display.stopped()
        folder.save_checkpoint(policy, ascent)
        watch.settle()
        folder.save_model(policy)
        watch.finish()
    except KlimbError as error:
        if policy.num_updates and not isinstance(error, DivergedError):
            folder.save_checkpoint(policy, ascent)
        error.add_note(f"{climb.num_updates} updates were made; what was written stays in {config.out}")
        raise
    finally:
        display.stopped()

    summary = summarise(
        folder.read("evaluations"),
        are_held_out=config.eval_prompts is not None,
        judges=config.judges,
        choice=watch.choice,
    )
    write_report(folder)
    display.finished(folder, summary)
    return RunResult(folder, summary)


@dataclass
class _Climb:
    """What a step works on, and how many were taken."""

    config: TrainConfig
    rows: list[PromptRow]
    policy: Policy
    reward: WeightedSum
    ascent: Ascent
    folder: RunFolder
    display: Display
    num_updates: int = 0

    def take(self, step: int) -> None:
        """Take a step, write down what it did, and write a checkpoint when one is due."""
        config = self.config
        indices = indices_of_step(step, len(self.rows), config.prompts_per_step, config.seed)
        rows, draw = [self.rows[index] for index in indices], Draw(config.seed, step, indices)
        judged, ascended = take_step(self.policy, self.reward, self.ascent, rows, draw, config)
        self.num_updates = self.policy.num_updates
        metrics = _metrics(step, judged, ascended, self.policy.model.device)
        self.folder.append("metrics", [metrics])
        self.folder.append("completions", completion_rows(judged, step=step))
        self.display.stepped(metrics, judged)
        if self.num_updates % config.checkpoint_every == 0:
            self.folder.save_checkpoint(self.policy, self.ascent)


def load_policy(config: TrainConfig) -> Policy:
    """Load the policy that a configuration asks for."""
    lora = None
    if config.lora_rank is not None:
        lora = Lora(config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank)
    return Policy.load(
        config.model,
        distribution=Distribution(config.temperature),
        num_trainable_layers=config.num_trainable_layers,
        lora=lora,
        lora_seed=config.seed,
        micro_batch_size=config.micro_batch_size,
        precision=config.precision,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )


def _rows_to_judge(config: TrainConfig, rows: list[PromptRow]) -> list[PromptRow]:
    if config.eval_prompts is None:
        return rows[:_MOST_TRAINING_PROMPTS_JUDGED]
    held_out = read_prompts(config.eval_prompts, config.prompt_column)
    places = {json.dumps(row.prompt): row.place for row in rows}
    for row in held_out:
        if place := places.get(json.dumps(row.prompt)):
            raise DataError(f"{row.place}: the prompt is not held out: it is trained on, {place}; remove one")
    return held_out


def _facts(config: TrainConfig, policy: Policy, rows: list[PromptRow]) -> dict[str, str]:
    num_moved = sum(p.numel() for p in policy.trainable().values())
    num_parameters = sum(p.numel() for p in policy.model.parameters())
    batch = config.prompts_per_step * config.completions_per_prompt
    facts = {
        "model": f"{config.model}, {num_parameters:,} parameters, {num_moved:,} of them trained",
        "batch": f"{config.prompts_per_step} of {len(rows)} prompts × {config.completions_per_prompt} "
        f"completions = {batch} a step, up to {config.max_new_tokens} tokens each",
        "device": f"{policy.model.device}, {config.precision}",
    }
    if not policy.way.shares_prompts:
        facts["prompts"] = f"run again for every completion, which is slow: {policy.way.reason}"
    if config.eval_every is not None:
        facts["judging"] = _judging_words(config)
    return facts


def _judging_words(config: TrainConfig) -> str:
    words = f"every {config.eval_every} steps"
    if config.keep_best is not None:
        words += f"; the weights are kept that {short_name(config.keep_best)} finds best"
    if config.patience is not None:
        words += f"; {config.patience} evaluations in a row with nothing better end the run"
    return words


def _metrics(step: int, judged: Judged, ascended: AscentMetrics, device: torch.device) -> dict[str, Any]:
    """What a step shows of itself; all but the last three describe the policy before its update."""
    rewards, completions = judged.rewards, judged.completions
    opinions = {
        name: [value for value in values if value is not None] for name, values in rewards.parts.items()
    }
    return {
        "step": step,
        "reward": statistics.fmean(rewards.total),
        "reward_std": statistics.pstdev(rewards.total),
        "rewards": {name: statistics.fmean(values) if values else None for name, values in opinions.items()},
        "kl": statistics.fmean(judged.kl),
        "entropy": completions.mean_entropy,
        "length": float(completions.lengths.double().mean()),
        "ended": completions.finish_reasons.count("end") / len(completions),
        "grad_norm": ascended.grad_norm,
        "lr": ascended.lr,
        "sampler_gap_mean": ascended.sampler_gap_mean,
        "sampler_gap_max": ascended.sampler_gap_max,
        "seconds": judged.seconds,
        "completions_per_second": len(completions) / sum(judged.seconds.values()),
        "peak_memory_bytes": _peak_memory(device),
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
