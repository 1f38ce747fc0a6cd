"""What the screen shows of what a model wrote."""

import io

from rich.console import Console

from klimb.training.evaluate.summary import Estimate, Example, Summary
from klimb.training.report.console import Display
from klimb.training.storage.folder import RunFolder


def test_a_completion_cannot_steer_the_terminal(tmp_path):
    screen = io.StringIO()
    example = Example("a\x1b[2J\nprompt", "x\x1b]0;title\x07", "[bold]y[/]\u202e", 0.0, 1.0)
    estimate = Estimate(0.0, 0.1)
    summary = Summary(True, 1, 1, estimate, estimate, estimate, estimate, 1.0, 1.0, [example], {})
    Display(Console(file=screen, width=100)).run_finished(RunFolder(tmp_path), summary)
    shown = screen.getvalue()
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "a�[2J prompt …" in shown
    assert "[bold]y[/]�" in shown
