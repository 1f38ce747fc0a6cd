"""Kill a run again and again, resume it each time, and compare it with one that was left alone.

A run is a process of its own, which SIGKILL ends: at a random instant, or aimed at a moment that matters, such as
while a checkpoint is written. When it gets to its end its weights, optimiser state, metrics but for their timings,
completions and evaluations are compared by SHA-256, and another begins, until there were so many kills. Exit code 1
if anything differs. Processes are killed, not the machine; a loss of power is what `power` tests.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.crashlab.tiny import make_data, make_model

_PHASES = (
    "elsewhere",
    "preflight",
    "loading the model",
    "sampling",
    "update",
    "lines",
    "checkpoint",
    "removing a checkpoint",
    "evaluation",
    "best.json",
    "restoring",
    "rewinding",
    "model",
    "report",
)
_AIMED = (
    "checkpoint",
    "lines",
    "removing a checkpoint",
    "evaluation",
    "best.json",
    "rewinding",
    "model",
    "report",
)
_TIMED = {"seconds", "completions_per_second", "peak_memory_bytes"}
_FEW = 3  # times in a run
_SHARE_AT_RANDOM = 0.4  # of the kills; of the others half are aimed at checkpoints
_GLANCE = 2e-4  # seconds from one look at the trace to the next
_LOADED = (
    "klimb.cli.main",
    "klimb.training.run",
    "klimb.reward.function",
    "matplotlib.backends.backend_svg",
    "peft",
)
_NOTE = struct.Struct("=Bq")  # the phase, and how many were entered until then


class Trace:
    """Tells another process what this one is doing, through a page of memory that both have."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._number = 0

    def enter(self, phase: str) -> str:
        """Say that a phase begins, and return the one before it."""
        before = self.now()[0]
        self._number += 1
        _NOTE.pack_into(self._page, 0, _PHASES.index(phase), self._number)
        return before

    def now(self) -> tuple[str, int]:
        """The phase, and how many were entered until then."""
        phase, number = _NOTE.unpack_from(self._page, 0)
        return _PHASES[phase], number

    def clear(self) -> None:
        """Forget what was told."""
        self._number = 0
        _NOTE.pack_into(self._page, 0, 0, 0)

    def during(self, phase: str, holder: Any, name: str) -> None:
        """Let a function tell that it is at work."""
        function = getattr(holder, name)

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            before = self.enter(phase)
            try:
                return function(*arguments, **options)
            finally:
                self.enter(before)

        setattr(holder, name, call)


def trace_a_run(trace: Trace) -> None:
    """Let the parts of a run tell when they are at work."""
    from klimb.rl import step
    from klimb.rl.optimizer import PolicyOptimizer
    from klimb.training import recorder, run, setup
    from klimb.training.evaluate.evaluator import Evaluator
    from klimb.training.storage.checkpoints import Checkpoints
    from klimb.training.storage.folder import RunFolder
    from klimb.training.storage.resume import Resumption

    trace.during("loading the model", setup, "load_policy")
    trace.during("preflight", run, "run_preflight")
    trace.during("sampling", step, "rollout")
    trace.during("update", PolicyOptimizer, "step")
    trace.during("lines", RunFolder, "append")
    trace.during("checkpoint", RunFolder, "save_checkpoint")
    trace.during("removing a checkpoint", RunFolder, "remove_checkpoint")
    trace.during("evaluation", Evaluator, "evaluate")
    trace.during("best.json", RunFolder, "write_best")
    trace.during("restoring", Checkpoints, "restore")
    trace.during("rewinding", Resumption, "rewind")
    trace.during("model", RunFolder, "save_model")
    trace.during("report", recorder, "write_report")


@dataclass(frozen=True)
class Aim:
    """When to kill.

    Attributes:
        phase: The phase to wait for; None for any instant.
        skip: How many of these to let pass.
        seconds: How long after its beginning, or after that of the process.
    """

    phase: str | None
    skip: int
    seconds: float


@dataclass
class Measured:
    """How long the phases of an undisturbed run take, in seconds.

    Attributes:
        whole: The whole run.
        phases: Each time that a phase was seen.
    """

    whole: float = 0.0
    phases: dict[str, list[float]] = field(default_factory=dict)

    def aim(self, chance: random.Random) -> Aim:
        """Choose when to kill next."""
        kind = chance.random()
        if kind < _SHARE_AT_RANDOM:
            return Aim(None, 0, chance.uniform(0, 0.6 * self.whole))
        is_checkpoint = kind < (1 + _SHARE_AT_RANDOM) / 2
        phase = "checkpoint" if is_checkpoint else chance.choice(_AIMED)
        usual = statistics.median(self.phases.get(phase, [0.01]))
        skip = chance.randrange(3) if len(self.phases.get(phase, [])) > _FEW else 0
        return Aim(phase, skip, chance.uniform(0, usual))


@dataclass(frozen=True)
class Job:
    """What is run, and watched.

    Attributes:
        options: Of klimb train, but for the folder.
        log: Where what it prints goes.
        trace: What it tells.
    """

    options: list[str]
    log: Path
    trace: Trace

    @contextlib.contextmanager
    def started(self, folder: Path) -> Iterator[int]:
        """Begin a run in this folder, or go on with it, in a process of its own; none is left behind."""
        is_begun = (folder / "config.json").is_file()
        arguments = ["--resume", str(folder)] if is_begun else [*self.options, "--out", str(folder)]
        self.trace.clear()
        process = os.fork()
        if process == 0:
            _become(["train", *arguments], self)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)

    def measure(self, folder: Path) -> Measured:
        """Run undisturbed, and see how long everything takes."""
        found, start = Measured(), time.perf_counter()
        with self.started(folder) as process:
            (phase, number), since = self.trace.now(), start
            while not (finished := os.waitpid(process, os.WNOHANG))[0]:
                now = self.trace.now()
                if now[1] != number:
                    found.phases.setdefault(phase, []).append(time.perf_counter() - since)
                    (phase, number), since = now, time.perf_counter()
                time.sleep(_GLANCE)
        self.require_success(finished[1])
        found.whole = time.perf_counter() - start
        return found

    def kill(self, folder: Path, aim: Aim) -> str | None:
        """Run and kill; return the phase that this fell into, or None where the run came to its end before."""
        with self.started(folder) as process:
            start, left, number, hit = time.perf_counter(), aim.skip, 0, aim.phase is None
            while not (finished := os.waitpid(process, os.WNOHANG))[0]:
                phase, entered = self.trace.now()
                if not hit and entered != number:
                    number = entered
                    if phase == aim.phase:
                        hit, left, start = left == 0, left - 1, time.perf_counter()
                if hit and time.perf_counter() - start >= aim.seconds:
                    os.kill(process, signal.SIGKILL)
                    status = os.waitpid(process, 0)[1]
                    return self.trace.now()[0] if os.WIFSIGNALED(status) else None
                time.sleep(_GLANCE)
        self.require_success(finished[1])
        return None

    def require_success(self, status: int) -> None:
        """Raise unless a process that ended by itself did so well."""
        if status != 0:
            raise SystemExit(f"the run failed ({status}):\n{self.log.read_text()[-4000:]}")


def _become(arguments: list[str], job: Job) -> None:
    """Be klimb, and never return."""
    code = 70
    try:
        output = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        from klimb.cli.main import main as klimb

        trace_a_run(job.trace)
        code = klimb(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


def essence(folder: Path) -> dict[str, str]:
    """SHA-256 of all of a finished run that does not depend on the clock."""
    last = sorted((folder / "checkpoints").iterdir())[-1]
    files = [*last.iterdir(), *(folder / "model").iterdir(), folder / "best.json"]
    files += [folder / f"{name}.jsonl" for name in ("completions", "evaluations")]
    found = {str(file.relative_to(folder)): _sha256(file.read_bytes()) for file in files}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in row.items() if name not in _TIMED} for row in rows]
    found["metrics.jsonl"] = _sha256(json.dumps(metrics).encode())
    hidden = [path for path in folder.rglob(".*") if path.is_dir() or path.suffix != ".gitattributes"]
    found["leftovers"] = ", ".join(sorted(map(str, hidden)))
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def options_of(model: str, folder: Path, seed: int) -> list[str]:
    """Options of a run in which everything that has a state has some."""
    prompts, rules = make_data(folder)
    sizes = ["--num-steps", "12", "--checkpoint-every", "2", "--eval-every", "3", "--max-new-tokens", "8"]
    if model == "tiny":
        place = folder / "model"
        _in_a_process(lambda: make_model(place))
        weights = [str(place), "--lr", "5e-3", "--lora-rank", "4"]
    else:
        from klimb.demo.model import fetch_model

        place = fetch_model() if model == "smollm2" else Path(model)
        weights = [str(place), "--lr", "1e-4", "--num-trainable-layers", "2"]
        sizes = ["--num-steps", "6", "--checkpoint-every", "2", "--eval-every", "3", "--max-new-tokens", "12"]
    schedule = ["--warmup-steps", "2", "--lr-schedule", "cosine", "--kl-target", "0.5", "--kl-horizon", "50"]
    judge = f"{rules}:one_e"
    best = ["--judges", judge, "--keep-best", judge, "--keep-checkpoints", "2", "--seed", str(seed)]
    batch = ["--prompts-per-step", "4", "--completions-per-prompt", "4", "--micro-batch-size", "6"]
    reward = ["--prompts", str(prompts), "--reward", f"{rules}:vowels", "--eval-completions-per-prompt", "2"]
    return ["--model", *weights, *reward, *sizes, *schedule, *best, *batch]


def _in_a_process(work: Callable[[], None]) -> None:
    """Leave this process without threads of PyTorch's, which a fork would not have."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(process, 0)[1] != 0:
        raise SystemExit("the model could not be made")


def crash(job: Job, folder: Path, num_kills: int, chance: random.Random) -> bool:
    """Kill so many times, print what came of it, and return whether every run ended as it should."""
    start = time.perf_counter()
    usual = job.measure(folder / "undisturbed")
    expected = essence(folder / "undisturbed")
    print(f"undisturbed: {usual.whole:.1f} s, {len(expected) - 1} files compared", flush=True)
    fell: Counter[str] = Counter()
    num_runs, is_same = 0, True
    while fell.total() < num_kills or num_runs == 0:
        run = folder / f"run-{num_runs}"
        in_this = 0
        while fell.total() < num_kills:
            phase = job.kill(run, usual.aim(chance))
            if phase is None:
                break
            fell[phase] += 1
            in_this += 1
        else:
            with job.started(run) as process:
                job.require_success(os.waitpid(process, 0)[1])
        found = essence(run)
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        is_same = is_same and not differing
        num_runs += 1
        print(
            f"run {num_runs}: {in_this} kills, "
            + (f"DIFFERS in {', '.join(differing)}" if differing else "the same bits"),
            flush=True,
        )
        if not differing:
            shutil.rmtree(run)
    print(
        f"{fell.total()} kills over {num_runs} runs in {time.perf_counter() - start:.0f} s; they fell into:"
    )
    for phase, count in fell.most_common():
        print(f"  {count:>4}  {phase}")
    return is_same


def main(argv: Sequence[str]) -> int:
    """Run the test and return an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.crashlab kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a model's folder")
    parser.add_argument("--seed", type=int, default=0, help="of the kills and of the run")
    parser.add_argument("--out", type=Path, help="where the runs go; a temporary folder by default")
    arguments = parser.parse_args(argv)
    for module in _LOADED:  # here, once, and not in every process that begins
        importlib.import_module(module)

    folder = arguments.out or Path(tempfile.mkdtemp(prefix="klimb-crash-"))
    folder.mkdir(parents=True, exist_ok=True)
    options = options_of(arguments.model, folder, arguments.seed)
    job = Job(options, folder / "log.txt", Trace())
    is_same = crash(job, folder, arguments.kills, random.Random(arguments.seed))  # noqa: S311  no secret
    if is_same and arguments.out is None:
        shutil.rmtree(folder)
    else:
        print(f"files: {folder}")
    print("every run ended in the same bits" if is_same else "RUNS DIFFER")
    return 0 if is_same else 1
