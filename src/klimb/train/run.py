"""A run from configuration to fine-tuned model and report."""

import contextlib
import itertools
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from klimb.errors import ConfigError, KlimbError
from klimb.policy.clock import clock_at, current_moment, reads_clock
from klimb.policy.decoding import TextDecoder
from klimb.policy.distribution import Distribution
from klimb.policy.policy import Draw, Policy
from klimb.policy.trainable import Lora
from klimb.reward.load import PEOPLE, load_rewards, require_proven
from klimb.reward.people import WaitStoppedError
from klimb.reward.reward import WeightedSum
from klimb.train.ascent import Ascent, AscentMetrics
from klimb.train.asking import ask_people, asking, join_people, store_claimed
from klimb.train.choice import Choice
from klimb.train.config import TrainConfig
from klimb.train.display import Display
from klimb.train.environment import ENVIRONMENT, describe_environment, describe_slowness, require_paths
from klimb.train.estimates import Rows, short_name
from klimb.train.fingerprint import CLOCK, read_moment, take_fingerprints
from klimb.train.folder import RunFolder
from klimb.train.guards import Guards, note_last_good, share_of_one_text
from klimb.train.judging import Evaluator, Watch, completion_rows
from klimb.train.lengths import check_lengths
from klimb.train.objective import declare
from klimb.train.preflight import Preflight, Setting, examine, require_room, same_random_numbers
from klimb.train.prompts import PromptFile, PromptRow, indices_of_step, read_prompts, require_held_out
from klimb.train.report import write_report
from klimb.train.resume import Resumption, plan_resumption
from klimb.train.retention import Checkpoints
from klimb.train.room import device_of
from klimb.train.schedule import KLCoefficient
from klimb.train.signals import Interruption, listening
from klimb.train.step import Judged, take_step
from klimb.train.summary import Summary, summarise

_MOST_TRAINING_PROMPTS_JUDGED = 32  # where no held-out prompts are given


@dataclass(frozen=True)
class RunResult:
    """Where a run left its files, and what it changed."""

    folder: RunFolder
    summary: Summary


def train(
    config: TrainConfig,
    display: Display | None = None,
    *,
    resume: bool = False,
    accept: Sequence[str] = (),
    from_step: int | None = None,
) -> RunResult:
    """Fine-tune a model.

    Everything that can be wrong with the configuration and its files is found before the model
    is loaded, and everything about prompts before the first step.

    Args:
        config: The options.
        display: What shows the run; a terminal display where None.
        resume: Go on with the run in `config.out`, to the same bits as if it had not been interrupted.
        accept: Names of content that may differ from what the resumed run began with, as the refusal names them.
        from_step: Updates of the checkpoint that the resumed run goes back to, and what came after is removed; the
            newest good one where None.

    Returns:
        The run's folder and what changed.

    Raises:
        KlimbError: Something is wrong with an option, a file, a reward or the model; the
            message says what, where, and what to do. After the first update a checkpoint of
            the last one is left in the run's folder, unless the weights have diverged.
        RunInterrupted: Ctrl-C or SIGTERM came; the step was finished and a checkpoint was written.
    """
    display = display or Display()
    if from_step is not None and not resume:
        raise ConfigError("from_step: has no meaning without resume")
    if not resume:
        with store_claimed(config), clock_at(current_moment()):
            RunFolder.require_free(config.out)
            return _train(config, display)
    folder = RunFolder.find(config.out)
    moment = read_moment(folder.fingerprints) or current_moment()
    with store_claimed(config), folder.claimed(), clock_at(moment):
        resumption = plan_resumption(config, from_step)
        display.resuming(resumption.sentences())
        if resumption.is_finished:
            return RunResult(folder, _summary(config, folder, folder.read_choice()))
        return _train(config, display, resumption, accept)


def check(config: TrainConfig, display: Display | None = None) -> Preflight:
    """Make the checks that a run makes before its first step, and nothing else.

    Raises:
        KlimbError: Something would keep the run from beginning; the message says what, where, and what to do.
    """
    display = display or Display()
    RunFolder.require_free(config.out)
    setting, _, _ = _prepare(config, display)
    return _look_first(setting, display, with_memory=True)


def _train(
    config: TrainConfig,
    display: Display,
    resumption: Resumption | None = None,
    accept: Sequence[str] = (),
) -> RunResult:
    setting, rows, judged_rows = _prepare(config, display)
    policy, reward = setting.policy, setting.reward
    content = take_fingerprints(config) | {ENVIRONMENT: describe_environment(policy.model.device)}
    content |= {CLOCK: {"moment": current_moment().isoformat()}}
    if resumption is not None:
        display.resuming(resumption.compare(content, accept))
    display.started(config, declare(config), _facts(config, policy, rows))
    if config.preflight:
        _look_first(setting, display)

    # Judged before anything is written: a reward that fails at once leaves no folder behind.
    evaluator = Evaluator(policy, reward.unattended(), judged_rows, config, len(rows), display.tell)
    evaluations = [] if resumption is None else resumption.evaluations
    before = None
    if not evaluations:
        display.evaluating("before", len(judged_rows))
        before = evaluator.evaluate_start()
    folder = resumption.folder if resumption else RunFolder.create(config.out, config.to_dict(), content)
    climb = _Climb.begin(config, rows, policy, reward, folder, display)
    watch = Watch(evaluator, folder, climb.checkpoints, display)
    with contextlib.nullcontext() if resumption else folder.claimed():
        if resumption is not None:
            climb.go_on_from(resumption)
            resumption.rewind(content, accept)
        summary = climb.complete(watch, before, evaluations)
    display.finished(folder, summary)
    return RunResult(folder, summary)


def _prepare(config: TrainConfig, display: Display) -> tuple[Setting, PromptFile, list[PromptRow]]:
    """Read and load all that a run is made of; returns it with the prompts to train on, and those to judge by."""
    require_paths(device_of(config.device), config.precision)
    if not config.accept_unproven_reward:
        require_proven(config.reward)
    rows = PromptFile(config.prompts, config.prompt_column)
    judged_rows = _rows_to_judge(config, rows)
    indices_of_step(0, len(rows), config.prompts_per_step, config.seed)
    reward = load_rewards(
        [ask_people(config, display.tell) if name == PEOPLE else name for name in config.reward],
        config.reward_weights,
        judges=config.judges,
        caution=config.caution,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        timeout=config.reward_timeout,
    )
    join_people(config, reward, display.tell)
    base = require_room(config)
    display.loading(config.model)
    policy = load_policy(config)
    longest = check_lengths(
        policy, itertools.chain(rows, judged_rows), config.max_new_tokens, reward.check_prompt
    )
    return Setting(config, policy, reward, rows, len(judged_rows), longest, base), rows, judged_rows


def _look_first(setting: Setting, display: Display, *, with_memory: bool = False) -> Preflight:
    with same_random_numbers():
        found = examine(setting)
        display.checked(found, with_memory=with_memory)
    found.require_passed()
    return found


@dataclass
class _Climb:
    """What a step works on, and how many were taken and written down."""

    config: TrainConfig
    rows: PromptFile
    policy: Policy
    reward: WeightedSum
    ascent: Ascent
    folder: RunFolder
    display: Display
    coefficient: KLCoefficient
    guards: Guards
    checkpoints: Checkpoints
    num_updates: int = 0

    @classmethod
    def begin(
        cls,
        config: TrainConfig,
        rows: PromptFile,
        policy: Policy,
        reward: WeightedSum,
        folder: RunFolder,
        display: Display,
    ) -> "_Climb":
        """Begin where the policy is what it is compared with."""
        ascent, coefficient = Ascent(policy, config), KLCoefficient(config)
        guards = Guards(config, ascent)
        remembering = {"kl_coefficient": coefficient, "guards": guards}
        checkpoints = Checkpoints(folder, policy, ascent, config, remembering)
        return cls(config, rows, policy, reward, ascent, folder, display, coefficient, guards, checkpoints)

    def go_on_from(self, resumption: Resumption) -> None:
        """Take up the state of an interrupted run."""
        if resumption.checkpoint is not None:
            self.checkpoints.restore(resumption.checkpoint)
            self.num_updates = self.policy.num_updates

    def complete(self, watch: Watch, before: Rows | None, evaluations: Sequence[Rows]) -> Summary:
        """Go to the end of the run, or leave a folder from where it can go on, and say so in what is raised.

        Args:
            watch: What judges the policy.
            before: How the policy was judged before its run; None where an interrupted one goes on.
            evaluations: What that one had found, the start first.
        """
        folder, config = self.folder, self.config
        try:
            with (
                listening(f"go on with: klimb train --resume {config.out}") as interruption,
                asking(self.reward, interruption),
            ):
                if before is None:
                    watch.recall(evaluations)
                else:
                    watch.start(before)
                self._to_the_end(watch, interruption)
            summary = _summary(config, folder, watch.choice)
            write_report(folder)
        except KlimbError as error:
            self.checkpoints.explain(error, self.num_updates)
            note_last_good(error, folder, self.policy.num_updates)
            raise
        except OSError as error:
            raise self.checkpoints.translate(error, self.num_updates) from error
        finally:
            self.display.stopped()
        return summary

    def _to_the_end(self, watch: Watch, interruption: Interruption) -> None:
        """Take the steps that are left, and write the model and how it is judged.

        Raises:
            RunInterrupted: A signal came; the step was finished and a checkpoint was written.
        """
        goes_on = watch.look()
        while goes_on and self.num_updates < self.config.num_steps:
            with contextlib.suppress(WaitStoppedError):
                self.take(self.num_updates)
            self._leave_if_asked(interruption)
            goes_on = watch.look()
            self._leave_if_asked(interruption)
        self.display.stopped()
        self.checkpoints.save()
        watch.settle()
        self.folder.save_model(self.policy)
        if interruption.was_asked_for:
            self._leave(interruption)
        watch.finish()

    def take(self, step: int) -> None:
        """Take a step, write down what it did, and write a checkpoint when one is due."""
        config = replace(self.config, beta=self.coefficient.beta)
        indices = indices_of_step(step, len(self.rows), config.prompts_per_step, config.seed)
        rows, draw = [self.rows[index] for index in indices], Draw(config.seed, step, indices)
        num_prompts = len(self.rows)
        judged, ascended = take_step(
            self.policy, self.reward, self.ascent, rows, draw, config, num_prompts=num_prompts
        )
        metrics = {**_metrics(step, judged, ascended, self.policy.model.device), "beta": config.beta}
        findings = self.guards.look(metrics)
        metrics["guards"] = [finding.guard for finding in findings]
        self.folder.append("metrics", [metrics])
        self.folder.append("completions", completion_rows(judged, step=step))
        self.num_updates = self.policy.num_updates
        if judged.kl is not None:
            self.coefficient.adapt(statistics.fmean(judged.kl), len(judged.completions))
        self.display.stepped(metrics, judged)
        self.display.alarmed(self.guards.new(findings), self.guards.act(findings))
        self.checkpoints.save_if_due()

    def _leave_if_asked(self, interruption: Interruption) -> None:
        if interruption.was_asked_for:
            self.display.stopped()
            self.checkpoints.save()
            self._leave(interruption)

    def _leave(self, interruption: Interruption) -> NoReturn:
        """Write the report of what was done so far, and leave."""
        if self.num_updates:
            self.display.tell(f"The run so far: {write_report(self.folder)}")
        interruption.leave(self.num_updates)


def _summary(config: TrainConfig, folder: RunFolder, choice: Choice | None) -> Summary:
    return summarise(
        folder.read("evaluations"),
        are_held_out=config.eval_prompts is not None,
        judges=config.judges,
        choice=choice,
    )


def load_policy(config: TrainConfig) -> Policy:
    """Load the policy that a configuration asks for."""
    lora = None
    if config.lora_rank is not None:
        lora = Lora(config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank)
    policy = Policy.load(
        config.model,
        distribution=Distribution(config.temperature),
        num_trainable_layers=config.num_trainable_layers,
        lora=lora,
        lora_seed=config.seed,
        micro_batch_size=config.micro_batch_size,
        precision=config.precision,
        has_reference=config.measures_kl,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    policy.text_decoder = TextDecoder(policy.tokenizer, config.skip_special_tokens, policy.end_ids)
    return policy


def _rows_to_judge(config: TrainConfig, rows: PromptFile) -> list[PromptRow]:
    if config.eval_prompts is None:
        return rows[:_MOST_TRAINING_PROMPTS_JUDGED]
    held_out = read_prompts(config.eval_prompts, config.prompt_column)
    require_held_out(held_out, rows)
    return held_out


def _facts(config: TrainConfig, policy: Policy, rows: PromptFile) -> dict[str, str]:
    num_moved = sum(p.numel() for p in policy.trainable().values())
    num_parameters = sum(p.numel() for p in policy.model.parameters())
    batch = config.prompts_per_step * config.completions_per_prompt
    facts = {
        "model": f"{config.model}, {num_parameters:,} parameters, {num_moved:,} of them trained",
        "batch": f"{config.prompts_per_step} of {len(rows)} prompts × {config.completions_per_prompt} "
        f"completions = {batch} a step, up to {config.max_new_tokens} tokens each",
        "device": f"{policy.model.device}, {config.precision}",
    }
    if policy.notes:
        facts["loading"] = "; ".join(policy.notes)
    if not config.measures_kl:
        facts["KL"] = "not measured, as beta is 0: no reference is kept, and no pass is made through one"
    slowness = describe_slowness(policy.model.device, config.precision)
    if slowness:
        facts["slow"] = slowness
    if not policy.way.shares_prompts:
        facts["prompts"] = f"run again for every completion, which is slow: {policy.way.reason}"
    if reads_clock(policy.tokenizer):
        facts["clock"] = (
            f"the chat template writes the time: {current_moment()} in this run, also when resumed"
        )
    if rows.repeats is not None:
        facts["repeats"] = str(rows.repeats)
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
    logged = {"logged": rewards.metrics} if rewards.metrics else {}
    return logged | {
        "step": step,
        "reward": statistics.fmean(rewards.given) if rewards.given else None,
        "reward_std": statistics.pstdev(rewards.given) if rewards.given else None,
        "failed": len(rewards.total) - len(rewards.given),
        "rewards": {name: statistics.fmean(values) if values else None for name, values in opinions.items()},
        **({} if judged.kl is None else {"kl": statistics.fmean(judged.kl)}),
        "entropy": completions.mean_entropy,
        "length": float(completions.lengths.double().mean()),
        "ended": completions.finish_reasons.count("end") / len(completions),
        "same": share_of_one_text(judged.texts),
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
