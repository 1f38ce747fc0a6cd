"""What a person sees while a run goes on: a live line in a terminal, plain lines elsewhere."""

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

from klimb.progress import show_seconds
from klimb.text import safe
from klimb.train.choice import Choice
from klimb.train.config import TrainConfig
from klimb.train.estimates import REWARD, Point, short_name
from klimb.train.folder import RunFolder
from klimb.train.guards import Finding
from klimb.train.memory import show_bytes
from klimb.train.objective import Declaration
from klimb.train.preflight import Preflight
from klimb.train.step import Judged
from klimb.train.summary import Summary, show_prompt

_SAMPLE_EVERY = 5  # steps between samples shown
_LONGEST_SAMPLE = 140  # characters of a prompt, or of a completion
_NUM_EXAMPLES = 3
_STEPS_OF_AN_ESTIMATE = 20  # of the time that is left
_MARKS = {"passed": ("✓", ""), "warned": ("!", "yellow"), "failed": ("✗", "bold red")}


class Display:
    """Shows a run on a console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._num_steps = 0
        self._seconds: deque[float] = deque(maxlen=_STEPS_OF_AN_ESTIMATE)
        self._told = ""

    def tell(self, line: str) -> None:
        """Something takes long, and is so far."""
        self.console.print(Text(safe(line)))

    def loading(self, model: str) -> None:
        """The model is about to be loaded."""
        hint = (
            " (a GGUF file is converted the first time, which takes a moment)"
            if model.endswith(".gguf")
            else ""
        )
        self.console.print(f"Loading {escape(safe(model))}{hint} …")

    def started(self, config: TrainConfig, declaration: Declaration, facts: dict[str, str]) -> None:
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
        self._num_steps = config.num_steps

    def checked(self, preflight: Preflight, *, with_memory: bool = False) -> None:
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

    def alarmed(self, findings: Sequence[Finding], measure: str | None) -> None:
        """Guards found something new, or something was done about what they found."""
        for finding in findings:
            self.console.print(Text(safe(f"    ! {finding}"), style="yellow"))
        if measure is not None:
            self.console.print(Text(f"    ! {measure}", style="bold yellow"))

    def resuming(self, sentences: Sequence[str]) -> None:
        """An interrupted run goes on."""
        for sentence in sentences:
            self.console.print(Text(safe(sentence)))

    def evaluating(self, when: str, num_prompts: int) -> None:
        """The policy is about to be judged."""
        self.console.print(f"Judging the model {when} training, on {num_prompts} prompts …")

    def judged(self, point: Point, *, is_best: bool = False) -> None:
        """The policy was judged along the run."""
        opinions = [
            f"{name if name == REWARD else short_name(name)} "
            + ("no opinion" if math.isnan(found.mean) else f"{found.mean:+.3f}")
            for name, found in point.means.items()
        ]
        failed = [f"failed {point.num_failed}"] if point.num_failed else []
        kl = [] if point.kl is None else [f"KL {point.kl.mean:.2f}"]
        line = "  ".join([f"judged after {point.step} steps:", *opinions, *kl, *failed])
        self.console.print(Text(line + ("  ★ the best so far" if is_best else ""), style="bold"))

    def chosen(self, choice: Choice, num_steps: int) -> None:
        """It was decided which weights are kept."""
        for sentence in choice.sentences(num_steps):
            self.console.print(Text(sentence))

    def stepped(self, metrics: dict[str, Any], judged: Judged) -> None:
        """A step was taken."""
        failed = f"  failed {metrics['failed']}" if metrics["failed"] else ""
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
        self._tell_of_failures(judged)
        if metrics["step"] % _SAMPLE_EVERY == 0:
            self._sample(judged)

    def stopped(self) -> None:
        """No more steps are coming."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def finished(self, folder: RunFolder, summary: Summary) -> None:
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

    def _tell_of_failures(self, judged: Judged) -> None:
        """Say what went wrong with rewards, unless the same was said last."""
        failures = judged.rewards.failures
        if not judged.valid:
            self.console.print(
                Text("    ! no completion has a reward: nothing was learned", style="bold yellow")
            )
        if failures and failures[0].reason != self._told:
            self._told = failures[0].reason
            self.console.print(Text(f"    ! {failures[0]}", style="yellow"))

    def _sample(self, judged: Judged) -> None:
        prompt = show_prompt(judged.rows[0].prompt)
        sample = Text("    e.g. ", style="dim")
        sample.append(f"{_one_line(prompt)} → {_one_line(judged.texts[0])}", style="italic")
        sample.append(f"  ({_signed(judged.rewards.total[0])})")
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
    after = "after" if summary.choice is None else f"after {summary.choice.step} steps"
    for column in ("", "before", after, "change"):
        table.add_column(column, justify="left" if not column else "right")
    if summary.has_reward:
        table.add_row("reward", str(summary.before), str(summary.after), str(summary.gain))
    for name, change in summary.judges.items():
        table.add_row(
            f"judge {escape(short_name(name))}", str(change.before), str(change.after), str(change.gain)
        )
    if summary.kl is not None:
        table.add_row("KL, nats a completion", "0", str(summary.kl), "")
    table.add_row("length, tokens", f"{summary.length_before:.1f}", f"{summary.length_after:.1f}", "")
    return table


def _signed(value: float | None, num_digits: int = 2) -> str:
    """A reward with its sign, where there is one."""
    return "none" if value is None else f"{value:+.{num_digits}f}"


def _one_line(text: str) -> str:
    """Put a text on one line, without characters that would steer the terminal."""
    flat = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    return flat if len(flat) <= _LONGEST_SAMPLE else flat[:_LONGEST_SAMPLE] + "…"
