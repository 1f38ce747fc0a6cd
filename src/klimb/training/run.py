"""A run from configuration to fine-tuned model and report: steps, evaluations, checkpoints, signals."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from klimb.config.train import TrainConfig
from klimb.errors import ConfigError, KlimbError
from klimb.io.progress import warn
from klimb.model.clock import clock_at, current_moment
from klimb.model.hub import push_folder
from klimb.reward.load import NO_FUNCTIONS, Functions
from klimb.reward.people import WaitStoppedError
from klimb.rl.declaration import declare
from klimb.training.evaluate.best import BestSoFar
from klimb.training.evaluate.estimates import Rows
from klimb.training.evaluate.evaluator import Evaluator
from klimb.training.evaluate.summary import Summary, summarise
from klimb.training.evaluation import EvaluationLoop
from klimb.training.observer import Observer, Observers
from klimb.training.people import asking, store_claimed
from klimb.training.preflight.preflight import Preflight, PreflightInputs, run_preflight, same_random_numbers
from klimb.training.ranks import agreed_moment, describe_ranks, require_alike, require_shared, with_slices
from klimb.training.recorder import Recorder
from klimb.training.report.console import Display
from klimb.training.setup import describe, prepare
from klimb.training.signals import Interruption, listening
from klimb.training.storage.checkpoints import Checkpoints, note_last_good
from klimb.training.storage.environment import ENVIRONMENT, describe_environment
from klimb.training.storage.fingerprint import CLOCK, Fingerprint, read_moment, take_fingerprints
from klimb.training.storage.folder import RunFolder
from klimb.training.storage.read_only import ReadOnlyFolder
from klimb.training.storage.resume import Resumption, plan_resumption
from klimb.training.trackers.tracking import trackings
from klimb.training.trainer import Trainer
from klimb.world import ALONE, World


@dataclass(frozen=True)
class RunResult:
    """The result of a run: its folder and its summary."""

    folder: RunFolder
    summary: Summary


def train(
    config: TrainConfig,
    observer: Observer | None = None,
    *,
    functions: Functions = NO_FUNCTIONS,
    resume: bool = False,
    accept: Sequence[str] = (),
    from_step: int | None = None,
    world: World = ALONE,
) -> RunResult:
    """Fine-tune a model.

    Everything that can be wrong with the configuration and its files is found before the model
    is loaded, and everything about prompts before the first step.

    Args:
        config: The options.
        observer: Receives each event; shows the run in a terminal where None.
        functions: Rewards and judges that were given as objects, by the names that `config` has for them.
        resume: Resume the run in `config.out`, to the same bits as if it had not been interrupted.
        accept: Names of content that may differ from what the resumed run began with, as the refusal names them.
        from_step: Step of the checkpoint that the resumed run goes back to, and what came after is removed; the
            newest good one where None.
        world: The ranks that take the run's steps together; each calls this, and rank 0 shows and writes.

    Returns:
        The run's folder and what changed.

    Raises:
        KlimbError: Something is wrong with an option, a file, a reward or the model; the
            message says what, where, and what to do. After the first step a checkpoint of
            the last one is left in the run's folder, unless the weights have diverged.
        RunInterrupted: Ctrl-C or SIGTERM came; the step was finished and a checkpoint was written.
    """
    observer = (observer or Display()) if world.rank == 0 else Observer()
    if from_step is not None and not resume:
        raise ConfigError("from_step: only used with resume; add it, or leave from_step out")
    config = with_slices(config, world, resume=resume)
    if not resume:
        moment = agreed_moment(current_moment(), world)
        with store_claimed(config, asks_people=config.asks_people), clock_at(moment):
            RunFolder.require_free(config.out)
            return _train(config, observer, functions, world=world)
    folder = _folder_of(RunFolder.find(config.out), world)
    moment = agreed_moment(read_moment(folder.fingerprints) or current_moment(), world)
    with store_claimed(config, asks_people=config.asks_people), folder.claimed(), clock_at(moment):
        resumption = replace(plan_resumption(config, from_step), folder=folder)
        observer.run_resumed(resumption.sentences())
        if resumption.is_finished:
            if world.rank == 0:
                _push(config, folder, observer)
            return RunResult(folder, summary_of(config, folder))
        return _train(config, observer, functions, resumption, accept, world)


def check(
    config: TrainConfig, observer: Observer | None = None, *, functions: Functions = NO_FUNCTIONS
) -> Preflight:
    """Make the checks that a run makes before its first step, and nothing else.

    Args:
        config: The options.
        observer: Receives what was found; shows it in a terminal where None.
        functions: Rewards and judges that were given as objects, by the names that `config` has for them.

    Raises:
        KlimbError: Something would keep the run from beginning; the message says what, where, and what to do.
    """
    observer = observer or Display()
    RunFolder.require_free(config.out)
    inputs, _, _ = prepare(config, observer, functions)
    return _preflight(inputs, observer, with_memory=True)


def _train(
    config: TrainConfig,
    observer: Observer,
    functions: Functions,
    resumption: Resumption | None = None,
    accept: Sequence[str] = (),
    world: World = ALONE,
) -> RunResult:
    inputs, rows, eval_rows = prepare(config, observer, functions)
    policy, reward = inputs.policy, inputs.reward
    if world.rank == 0:
        step, evaluations = (resumption.step, resumption.evaluations) if resumption else (0, [])
        observer = Observers(observer, *trackings(config, step, evaluations))
    content = take_fingerprints(config, functions) | {ENVIRONMENT: describe_environment(policy.model.device)}
    content |= {CLOCK: {"moment": current_moment().isoformat()}}
    require_alike(config, content, world)
    if resumption is not None:
        observer.run_resumed(resumption.compare(content, accept))
    observer.run_started(
        config, declare(config), describe(config, policy, rows, reward) | describe_ranks(config, world)
    )
    if config.preflight:
        _preflight(inputs, observer)

    # Evaluated before anything is written: a reward that fails at once leaves no folder behind.
    unattended = reward.unattended()
    evaluator = Evaluator(policy, unattended, eval_rows, config, len(rows), observer.message, world=world)
    evaluations = [] if resumption is None else resumption.evaluations
    before = None
    if not evaluations:
        observer.evaluation_started("before", len(eval_rows))
        before = evaluator.evaluate_start()
    folder = resumption.folder if resumption else _create_folder(config, content, world)
    require_shared(folder, world)
    trainer = Trainer.start(config, rows, policy, reward, world, value_function=inputs.value_function)
    run = _Run(trainer, evaluator, folder, observer)
    with contextlib.nullcontext() if resumption else folder.claimed():
        if resumption is not None:
            run.restore(resumption)
            if world.rank == 0:
                resumption.rewind(content, accept)
        summary = run.finish(before, evaluations)
    if world.rank == 0:
        _push(config, folder, observer)
    return RunResult(folder, summary)


def _folder_of(folder: RunFolder, world: World) -> RunFolder:
    """A run's folder, into which rank 0 alone writes."""
    return folder if world.rank == 0 else ReadOnlyFolder(folder.path)


def _create_folder(config: TrainConfig, content: dict[str, Fingerprint], world: World) -> RunFolder:
    if world.rank == 0:
        return RunFolder.create(config.out, config.to_dict(), content)
    return ReadOnlyFolder(config.out)


def _push(config: TrainConfig, folder: RunFolder, observer: Observer) -> None:
    """Upload the finished model where a repository is named; the run's folder is complete in any case."""
    if config.push_to_hub is None:
        return
    problem = push_folder(folder.model, config.push_to_hub)
    if problem is None:
        observer.message(f"Pushed {folder.model} to {config.push_to_hub} on the hub")
        return
    warn(
        f"push_to_hub: {folder.model} was not pushed: {problem}. The run's folder is complete; try again with "
        f"klimb train --resume {config.out} --push-to-hub {config.push_to_hub}"
    )


def _preflight(inputs: PreflightInputs, observer: Observer, *, with_memory: bool = False) -> Preflight:
    with same_random_numbers():
        found = run_preflight(inputs)
        observer.preflight_finished(found, with_memory=with_memory)
    found.require_passed()
    return found


class _Run:
    """A trainer with its folder, its evaluations, its checkpoints and its observers.

    Args:
        trainer: Takes the steps.
        evaluator: Evaluates the policy.
        folder: Where the run's files are.
        observer: Receives each event, after the run's own recorder.
    """

    def __init__(self, trainer: Trainer, evaluator: Evaluator, folder: RunFolder, observer: Observer) -> None:
        self._trainer, self._folder, self._config = trainer, folder, trainer.config
        self._world = evaluator.world
        is_first = self._world.rank == 0
        self._observer = Observers(Recorder(folder, observer.message), observer) if is_first else observer
        self._checkpoints = Checkpoints(folder, trainer, trainer.config)
        self._evaluations = EvaluationLoop(evaluator, self._checkpoints, folder, self._observer)
        self._num_recorded = 0  # steps whose lines are written

    def restore(self, resumption: Resumption) -> None:
        """Take up the state of an interrupted run."""
        if resumption.checkpoint is not None:
            self._checkpoints.restore(resumption.checkpoint)
            self._num_recorded = self._trainer.step

    def finish(self, before: Rows | None, evaluations: Sequence[Rows]) -> Summary:
        """Run to the end, or raise with a message that says how to resume.

        Args:
            before: The evaluation of the policy before its run; None where the run is resumed.
            evaluations: The evaluations of an interrupted run, the start first.
        """
        folder, trainer = self._folder, self._trainer
        try:
            with (
                listening(
                    f"resume with: klimb train --resume {self._config.out}", is_quiet=self._world.rank > 0
                ) as interruption,
                asking(trainer.reward, interruption),
            ):
                if before is None:
                    self._evaluations.rebuild(evaluations)
                else:
                    self._evaluations.start(before)
                self._take_steps(interruption)
            self._world.gather("last evaluation written", [None])
            summary = summary_of(self._config, folder, self._evaluations.best)
            self._observer.run_finished(folder, summary)
            self._world.gather("run finished", [None])
        except KlimbError as error:
            self._checkpoints.save_and_annotate(error, self._num_recorded)
            note_last_good(error, folder, trainer.step)
            raise
        except OSError as error:
            raise self._checkpoints.translate(error, self._num_recorded) from error
        finally:
            self._observer.steps_stopped()
            self._observer.run_closed()
        return summary

    def _take_steps(self, interruption: Interruption) -> None:
        """Take the steps that are left, write the model, and evaluate it.

        Raises:
            RunInterrupted: A signal came; the step was finished and a checkpoint was written.
        """
        trainer, evaluations = self._trainer, self._evaluations
        continues = evaluations.evaluate_if_due(trainer.step)
        while continues and trainer.step < self._config.num_steps:
            with contextlib.suppress(WaitStoppedError):
                self._train_step()
            self._leave_if_asked(interruption)
            continues = evaluations.evaluate_if_due(trainer.step)
            self._leave_if_asked(interruption)
        self._observer.steps_stopped()
        self._checkpoints.save()
        kept = evaluations.restore_best(trainer.step)
        self._folder.save_model(trainer.policy.save)
        if self._is_asked_to_stop(interruption):
            self._leave(interruption)
        evaluations.final_evaluation(kept)

    def _train_step(self) -> None:
        """Take a step, record it, act on what guards found, and write a checkpoint when one is due."""
        result, guards = self._trainer.train_step(), self._trainer.guards
        self._observer.step_finished(result.metrics, result.rollout)
        self._num_recorded = self._trainer.step
        self._observer.guards_alarmed(guards.new(result.findings), guards.act(result.findings))
        self._checkpoints.save_if_due()

    def _leave_if_asked(self, interruption: Interruption) -> None:
        if self._is_asked_to_stop(interruption):
            self._observer.steps_stopped()
            self._checkpoints.save()
            self._leave(interruption)

    def _is_asked_to_stop(self, interruption: Interruption) -> bool:
        """Whether a signal has come to any rank, as all ranks see it."""
        signals = self._world.gather("signals", [interruption.signum])
        return interruption.agree(next(filter(None, signals), None))

    def _leave(self, interruption: Interruption) -> NoReturn:
        self._observer.run_interrupted(self._trainer.step)
        interruption.leave(self._trainer.step)


def summary_of(config: TrainConfig, folder: RunFolder, best: BestSoFar | None = None) -> Summary:
    """What a run changed, from its evaluations.

    Args:
        config: Its options.
        folder: Its folder.
        best: Which of its weights are the best; read from the folder where None.

    Raises:
        RunFolderError: It has not been evaluated yet.
    """
    return summarise(
        folder.read("evaluations"),
        are_held_out=config.eval_prompts is not None,
        judges=config.judges,
        best=best or folder.read_best(),
    )
