"""TensorBoard: event files in the run's folder, written by PyTorch's writer."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from klimb.training.trackers.tracker import Outcome, Table, TrackedRun, Tracker

FOLDER = "tensorboard"
"""Where the event files are, in the run's folder."""


class TensorBoardTracker(Tracker):
    """Writes `RUN/tensorboard/`; a resumed run adds a file there, and steps that are taken again replace the earlier.

    TensorBoard has no tables and no artifacts: completions are a table in Markdown under Text, and the report is named
    by its place.
    """

    purges = True
    keeps_points = False

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._last_step = 0

    def open(self, run: TrackedRun) -> str:
        """Open an event file; points from `run.step` on of earlier ones are purged."""
        purge = None if run.run_id is None else run.step
        self._writer = SummaryWriter(str(run.folder / FOLDER), purge_step=purge)
        options = Table(("option", "value"), [(name, str(value)) for name, value in run.options.items()])
        self._writer.add_text("run/options", markdown(options), run.step)
        self._writer.add_text(
            "run/objective", "\n".join(f"    {line}" for line in run.notes.splitlines()), run.step
        )
        self._writer.flush()
        return FOLDER

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a scalar for each metric."""
        for name, value in metrics.items():
            self._open_writer.add_scalar(name, value, step)
        self._last_step = max(self._last_step, step)
        self._open_writer.flush()

    def log_table(self, step: int, name: str, table: Table) -> None:
        """Add a table in Markdown, under Text."""
        self._open_writer.add_text(name, markdown(table), step)
        self._open_writer.flush()

    def log_report(self, report: Path, numbers: Mapping[str, float]) -> None:
        """Add the numbers, and where the report is."""
        rows = [(name, f"{value:.6g}") for name, value in numbers.items()]
        text = f"{markdown(Table(('', ''), rows))}\n\nReport: {report.name}, in the run's folder"
        self._open_writer.add_text("run/report", text, self._last_step)

    def close(self, outcome: Outcome) -> None:  # noqa: ARG002  event files have no such field
        """Close the event file."""
        self._open_writer.close()

    @property
    def _open_writer(self) -> SummaryWriter:
        if self._writer is None:
            raise RuntimeError("the event file is not open")
        return self._writer


def markdown(table: Table) -> str:
    r"""Write a table as Markdown, with cells that cannot end a cell or a line.

    Example:
        >>> print(markdown(Table(("prompt", "reward"), [("a|b\nc", 0.25), ("<i>", None)])))
        | prompt | reward |
        |---|---|
        | a&#124;b ↵ c | 0.25 |
        | &lt;i&gt; |  |
    """
    head = [_line(table.columns), "|" + "---|" * len(table.columns)]
    return "\n".join([*head, *map(_line, table.rows)])


def _line(cells: Sequence[str | float | None]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(value: str | float | None) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return html.escape(" ↵ ".join(text.splitlines()), quote=False).replace("|", "&#124;")
