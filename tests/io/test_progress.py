"""How far a long piece of work is: few lines, right numbers, nothing that steers a terminal."""

import subprocess
import sys

import pytest

from klimb.io import progress
from klimb.io.progress import Progress, show_seconds
from klimb.pairwise.console import watched


def progress_at(moments, total=1000):
    """A progress whose clock shows the given seconds one after the other, and the lines that it says."""
    lines, times = [], iter(moments)
    return Progress("reading", total, "texts", lines.append, lambda: next(times)), lines


def test_a_line_says_how_much_is_done_how_fast_and_what_is_left():
    reading, lines = progress_at([100.0, 120.0])
    reading.advance(250)
    # 250 in 20 s are 12.5 a second; the other 750 take 60 s.
    assert lines == ["  reading: 250 of 1,000 texts (25%), 12 texts/s, about 60 s left"]


def test_lines_are_ten_seconds_apart_and_none_follows_the_end():
    reading, lines = progress_at([0.0, *range(1, 101)])
    for _ in range(100):
        reading.advance(10)
    assert [line.split()[1] for line in lines] == [
        "100",
        "200",
        "300",
        "400",
        "500",
        "600",
        "700",
        "800",
        "900",
    ]


def test_work_that_is_soon_done_says_nothing():
    reading, lines = progress_at([0.0, 4.0, 9.9])
    reading.advance(500)
    reading.advance(499)
    assert lines == []


def test_slow_work_shows_parts_of_a_unit():
    reading, lines = progress_at([0.0, 40.0], total=201)
    reading.advance(1)
    assert lines == ["  reading: 1 of 201 texts (0%), 0.03 texts/s, about 2 h 13 min left"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1 h 40 min")]
)
def test_times_are_shown_in_units_that_can_be_read(seconds, shown):
    assert show_seconds(seconds) == shown


def test_sampling_shows_lines_without_control_codes_where_no_terminal_is(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert list(watched(range(0, 10, 4))) == [0, 4, 8]
    shown = capsys.readouterr().err
    first, second = shown.splitlines()
    assert first.startswith("  sampling: 4 of 10 prompts (40%), ")
    assert second.startswith("  sampling: 8 of 10 prompts (80%), ")
    assert "\r" not in shown
    assert "\x1b" not in shown


def test_a_line_is_in_a_file_as_soon_as_it_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    program = "import os\nfrom klimb.io.progress import tell\ntell('half')\nos._exit(0)"  # flushes nothing
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "half\n"
