"""The display of a run in a notebook: a progress bar, live curves, and sample completions."""

import html
from collections.abc import Sequence
from typing import Any

from klimb.config.train import TrainConfig
from klimb.io.progress import show_seconds
from klimb.io.show import printable
from klimb.rl.declaration import Declaration
from klimb.rl.guards import Finding
from klimb.rl.rollout import Rollout
from klimb.training.evaluate.summary import Summary, show_prompt
from klimb.training.observer import Observer
from klimb.training.preflight.preflight import Preflight
from klimb.training.storage.folder import RunFolder

_WIDTH, _HEIGHT, _MARGIN = 360, 120, 14
_CURVES = (("reward", "reward"), ("kl", "KL, nats per completion"), ("entropy", "entropy, nats per token"))
_LONGEST = 160  # characters of a prompt or completion


def is_in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, which shows HTML."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


class NotebookDisplay(Observer):
    """Shows a run in one output of a notebook, which is updated as the run proceeds."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._num_steps = 0
        self._lines: list[str] = []
        self._metrics: list[dict[str, Any]] = []
        self._declaration: list[str] = []
        self._sample = ""

    def message(self, line: str) -> None:
        """Show a line about what takes long."""
        self._lines = [*self._lines[-4:], line]
        self._show()

    def model_loading(self, model: str) -> None:
        """Say that the model is loaded."""
        self.message(f"Loading {model} …")

    def run_resumed(self, sentences: Sequence[str]) -> None:
        """Say from where the run resumes, and what differs."""
        for sentence in sentences:
            self.message(sentence)

    def run_started(self, config: TrainConfig, declaration: Declaration, facts: dict[str, str]) -> None:
        """Show the objective, and what to know of model and device."""
        self._declaration = [*declaration.words, *declaration.formulas, *facts.values()]
        self._num_steps = config.num_steps
        self.message(f"folder {config.out}")

    def preflight_finished(self, preflight: Preflight, *, with_memory: bool = False) -> None:  # noqa: ARG002
        """Show the checks that warned."""
        for result in preflight.results:
            if result.outcome != "passed":
                self.message(f"{result.name}: {result.words} {result.remedy or ''}")

    def evaluation_started(self, when: str, num_prompts: int) -> None:
        """Say that the policy is evaluated."""
        self.message(f"Evaluating the model {when} training, on {num_prompts} prompts …")

    def step_finished(self, metrics: dict[str, Any], rollout: Rollout) -> None:
        """Extend the curves."""
        self._metrics.append(metrics)
        prompt, text = show_prompt(rollout.rows[0].prompt), rollout.texts[0]
        self._sample = f"<b>{_short(prompt)}</b> {_short(text)}"
        self._show()

    def guards_alarmed(self, findings: Sequence[Finding], measure: str | None) -> None:
        """Show what guards found."""
        for line in [*map(str, findings), *([measure] if measure else [])]:
            self.message(f"! {line}")

    def run_interrupted(self, num_steps: int) -> None:
        """Say that the run was interrupted."""
        self.message(f"Interrupted after {num_steps} steps; klimb.Run(folder).resume() resumes it.")

    def run_finished(self, folder: RunFolder, summary: Summary) -> None:
        """Show what changed."""
        if summary.has_reward:
            self.message(f"reward {summary.before} → {summary.after}, change {summary.gain}")
        self.message(f"model {folder.model}")

    def _show(self) -> None:
        from IPython.core.display import HTML
        from IPython.display import display

        page = HTML(self.html())
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def html(self) -> str:
        """The output as it is now."""
        done, parts = len(self._metrics), []
        if self._metrics:
            done = self._metrics[-1]["step"] + 1
            seconds = [sum(row["seconds"].values()) for row in self._metrics[-20:]]
            left = show_seconds(sum(seconds) / len(seconds) * (self._num_steps - done))
            parts.append(
                f'<progress value="{done}" max="{self._num_steps}" style="width:{_WIDTH}px"></progress> '
                f"step {done} of {self._num_steps}, about {left} left<br>"
            )
            curves = ((label, [row.get(name) for row in self._metrics]) for name, label in _CURVES)
            parts += [curve(label, values) for label, values in curves]
            parts.append(f'<div style="color:gray">{self._sample}</div>')
        parts.append("".join(f"<div>{html.escape(printable(line))}</div>" for line in self._lines))
        if self._declaration:
            words = "<br>".join(map(html.escape, self._declaration))
            parts.append(
                f"<details><summary>The objective, the model and the device</summary>{words}</details>"
            )
        return "".join(parts)


def curve(label: str, values: Sequence[float | None]) -> str:
    """Draw numbers, one per step, as a line in SVG; nothing where there are none.

    Args:
        label: What they are.
        values: The numbers; None where a step has none.
    """
    points = [(step, value) for step, value in enumerate(values) if value is not None]
    if not points:
        return ""
    low, high = min(value for _, value in points), max(value for _, value in points)
    across, up = max(len(values) - 1, 1), (high - low) or 1.0
    places = " ".join(
        f"{_MARGIN + step / across * (_WIDTH - 2 * _MARGIN):.1f},"
        f"{_HEIGHT - _MARGIN - (value - low) / up * (_HEIGHT - 3 * _MARGIN):.1f}"
        for step, value in points
    )
    title = html.escape(f"{label}: {points[-1][1]:.3g} (from {low:.3g} to {high:.3g})")
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{title}">'
        f'<text x="{_MARGIN}" y="{_MARGIN}" font-size="12" fill="gray">{title}</text>'
        f'<polyline points="{places}" fill="none" stroke="#2a6fb0" stroke-width="1.5"/></svg>'
    )


def _short(text: str) -> str:
    flat = printable(" ".join(text.split()))
    return html.escape(flat if len(flat) <= _LONGEST else flat[:_LONGEST] + "…")
