"""What a run prints while it runs: a live line in a terminal, plain lines elsewhere."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from klimb.config.train import TrainConfig
from klimb.io.progress import show_seconds
from klimb.io.show import safe
from klimb.rl.declaration import Declaration
from klimb.rl.guards import Finding
from klimb.rl.rollout import Rollout
from klimb.training.evaluate.best import BestSoFar
from klimb.training.evaluate.estimates import REWARD, Rows, point, short_name
from klimb.training.evaluate.summary import Summary, show_prompt
from klimb.training.observer import Observer
from klimb.training.preflight.memory import show_bytes
from klimb.training.preflight.preflight import Preflight
from klimb.training.storage.folder import RunFolder

_SAMPLE_EVERY = 5  # steps between samples shown
_LONGEST_SAMPLE = 140  # characters of a prompt, or of a completion
_NUM_EXAMPLES = 3
_STEPS_OF_AN_ESTIMATE = 20  # of the time that is left
_MARKS = {"passed": ("✓", ""), "warned": ("!", "yellow"), "failed": ("✗", "bold red")}


class Display(Observer):
    """Shows a run on a console: a live line in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._config: TrainConfig | None = None
        self._num_steps = 0
        self._seconds: deque[float] = deque(maxlen=_STEPS_OF_AN_ESTIMATE)
        self._told = ""

    def message(self, line: str) -> None:
        """Something takes long, and is so far."""
        self.console.print(Text(safe(line)))

    def model_loading(self, model: str) -> None:
        """The model is about to be loaded."""
        hint = (
            " (a GGUF file is converted the first time, which takes a moment)"
            if model.endswith(".gguf")
            else ""
        )
        self.console.print(f"Loading {escape(safe(model))}{hint} …")

    def run_started(self, config: TrainConfig, declaration: Declaration, facts: dict[str, str]) -> None:
        """The run is about to begin."""
        print_ = self.console.print
        print_("\n[bold]What is optimised[/]")
        for sentence in declaration.words:
            print_(f"  {escape(safe(sentence))}")
        print_()
        for formula in declaration.formulas:
            print_(f"    [cyan]{escape(safe(formula))}[/]")
        print_("\n[bold]With[/]")
        for name, fact in facts.items():
            print_(f"  {name:<7} {escape(safe(fact))}")
        print_(f"  {'folder':<7} {escape(str(config.out))}\n")
        self._config, self._num_steps = config, config.num_steps

    def preflight_finished(self, preflight: Preflight, *, with_memory: bool = False) -> None:
        """The checks before the first step were made."""
        self.console.print(f"[bold]Checked[/] in {preflight.seconds:.1f} s")
        for result in preflight.results:
            mark, style = _MARKS[result.outcome]
            self.console.print(Text(safe(f"  {mark} {result.name:<9} {result.words}"), style=style))
            if result.remedy:
                self.console.print(Text(safe(f"    {'':<9} → {result.remedy}"), style=style))
        if with_memory:
            for name, size in preflight.memory.terms.items():
                self.console.print(Text(f"    {show_bytes(size):>9}  {name}"))
            self.console.print(Text(f"    {show_bytes(preflight.memory.peak):>9}  in all, at most"))
        self.console.print()

    def guards_alarmed(self, findings: Sequence[Finding], measure: str | None) -> None:
        """Guards found something new, or something was done about what they found."""
        for finding in findings:
            self.console.print(Text(safe(f"    ! {finding}"), style="yellow"))
        if measure is not None:
            self.console.print(Text(f"    ! {measure}", style="bold yellow"))

    def run_resumed(self, sentences: Sequence[str]) -> None:
        """An interrupted run resumes."""
        for sentence in sentences:
            self.console.print(Text(safe(sentence)))

    def evaluation_started(self, when: str, num_prompts: int) -> None:
        """The policy is about to be evaluated."""
        self.console.print(f"Evaluating the model {when} training on {num_prompts} prompts …")

    def policy_evaluated(self, rows: Rows, *, is_best: bool = False) -> None:
        """The policy was evaluated along the run."""
        if self._config is None or self._config.eval_every is None or rows[0]["when"] == "after":
            return
        found = point(rows, self._config.judges)
        opinions = [
            f"{name if name == REWARD else short_name(name)} "
            + ("no opinion" if math.isnan(mean.mean) else f"{mean.mean:+.3f}")
            for name, mean in found.means.items()
        ]
        failed = [f"failed {found.num_failed}"] if found.num_failed else []
        kl = [] if found.kl is None else [f"KL {found.kl.mean:.2f}"]
        line = "  ".join([f"evaluated after {found.step} steps:", *opinions, *kl, *failed])
        self.console.print(Text(line + ("  ★ the best so far" if is_best else ""), style="bold"))

    def best_chosen(self, best: BestSoFar, num_steps: int) -> None:
        """It was decided which weights are kept."""
        for sentence in best.sentences(num_steps):
            self.console.print(Text(sentence))

    def step_finished(self, metrics: dict[str, Any], rollout: Rollout) -> None:
        """A step was taken."""
        failed = f"  failed {metrics['reward_failures']}" if metrics["reward_failures"] else ""
        kl = f"  KL {metrics['kl']:.2f}" if "kl" in metrics else ""
        line = (
            f"reward {_signed(metrics['reward'], 3)}{kl}  entropy {metrics['entropy']:.2f}  "
            f"length {metrics['length']:.0f}  {metrics['completions_per_second']:.1f}/s{failed}"
        )
        done = metrics["step"] + 1
        if self.console.is_terminal:
            if self._progress is None:
                self._progress = _progress(self.console)
                self._progress.start()
                self._progress.add_task("train", total=self._num_steps, line="")
            self._progress.update(self._progress.task_ids[0], completed=done, line=line)
        else:
            self._seconds.append(sum(metrics["seconds"].values()))
            left = show_seconds(statistics.fmean(self._seconds) * (self._num_steps - done))
            self.console.print(f"step {done}/{self._num_steps}  {line}  about {left} left")
        self._tell_of_failures(rollout)
        if metrics["step"] % _SAMPLE_EVERY == 0:
            self._sample(rollout)

    def steps_stopped(self) -> None:
        """No more steps are coming."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def run_finished(self, folder: RunFolder, summary: Summary) -> None:
        """Everything is written."""
        self.console.print()
        self.console.print(_table(summary))
        if not summary.has_reward:
            self.console.print(
                "no reward was asked about these; to ask people, blind: klimb compare --by people"
            )
        elif summary.num_failed:
            self.console.print(f"{summary.num_failed} completions got no reward and are left out")
        for example in summary.examples[:_NUM_EXAMPLES]:
            self.console.print(Text(f"\n{_one_line(example.prompt)} …", style="bold"))
            self.console.print(
                Text(f"  before {_signed(example.reward_before)}  {_one_line(example.before)}")
            )
            self.console.print(Text(f"  after  {_signed(example.reward_after)}  {_one_line(example.after)}"))
        self.console.print(f"\n[bold]Model[/]   {escape(str(folder.model))}")
        self.console.print(f"[bold]Report[/]  {escape(str(folder.report))}  (open it in a browser)")

    def _tell_of_failures(self, rollout: Rollout) -> None:
        """Print what went wrong with rewards, unless the last message was the same."""
        failures = rollout.rewards.failures
        if not rollout.valid:
            self.console.print(
                Text("    ! no completion has a reward: nothing was learned", style="bold yellow")
            )
        if failures and failures[0].reason != self._told:
            self._told = failures[0].reason
            self.console.print(Text(f"    ! {failures[0]}", style="yellow"))

    def _sample(self, rollout: Rollout) -> None:
        prompt = show_prompt(rollout.rows[0].prompt)
        sample = Text("    e.g. ", style="dim")
        sample.append(f"{_one_line(prompt)} → {_one_line(rollout.texts[0])}", style="italic")
        sample.append(f"  ({_signed(rollout.rewards.total[0])})")
        self.console.print(sample)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[line]}"),
        console=console,
    )


def _table(summary: Summary) -> Table:
    kind = "held-out prompts" if summary.are_held_out else "training prompts (none were held out)"
    table = Table(
        title=f"{summary.num_prompts} {kind} × {summary.completions_per_prompt} completions, "
        "mean ± 95 % interval over prompts",
        title_justify="left",
    )
    after = "after" if summary.best is None else f"after {summary.best.step} steps"
    for column in ("", "before", after, "change"):
        table.add_column(column, justify="left" if not column else "right")
    if summary.has_reward:
        table.add_row("reward", str(summary.before), str(summary.after), str(summary.gain))
    for name, change in summary.judges.items():
        table.add_row(
            f"judge {escape(short_name(name))}", str(change.before), str(change.after), str(change.gain)
        )
    if summary.kl is not None:
        table.add_row("KL, nats per completion", "0", str(summary.kl), "")
    table.add_row("length, tokens", f"{summary.length_before:.1f}", f"{summary.length_after:.1f}", "")
    return table


def _signed(value: float | None, num_digits: int = 2) -> str:
    """A reward with its sign, where there is one."""
    return "none" if value is None else f"{value:+.{num_digits}f}"


def _one_line(text: str) -> str:
    """Put a text on one line, without characters that would steer the terminal."""
    flat = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    return flat if len(flat) <= _LONGEST_SAMPLE else flat[:_LONGEST_SAMPLE] + "…"
