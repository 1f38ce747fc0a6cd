"""Make the pictures of the README from real runs: the label page, a report and the terminal.

    python tools/pictures.py

The runs are the demo's (`runs/demo`) and the README's (`runs/plain`, `runs/pictures`); together they take
some ten minutes on two cores, and while they are there, only the pictures are made again.
Needs the dev extra and Chromium.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console
from rich.text import Text

from klimb.config.train import TrainConfig
from klimb.demo.demo import run_demo
from klimb.demo.model import fetch_model
from klimb.reward.vader import vader
from klimb.training.report.console import Display
from klimb.training.run import train

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
WORK = ROOT / "runs" / "pictures"
DEMO = ROOT / "runs" / "demo"
MOST_BYTES = 200_000  # of one picture
_COLUMNS = 112  # of the terminal
_COMMAND = r"""$ klimb train --model SmolLM2-135M-Instruct.Q4_1.gguf --prompts examples/openers.jsonl \
    --reward examples/brevity.py:plain_words \
    --num-trainable-layers 6 --lr 3e-4 --num-steps 10 --max-new-tokens 24 --out runs/plain"""
_CRITERION = "cheerful, happy / gloomy, sad"
_NUM_JUDGED = 34  # pairs, before the page is taken; the next reads well
_SECONDS_A_PAIR = 2.0  # the page shows how fast its rater is
_LABEL_VIEW: Any = {"width": 1100, "height": 715}
_MARGIN = 8  # below what is shown, in pixels of the page
_SCALE = 1.5  # pixels of a picture to one of the page
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def run_example(work: Path) -> None:
    """Take the README's training run, with all that its terminal shows kept as text with styles."""
    config = TrainConfig(
        model=str(fetch_model()),
        prompts=Path("examples/openers.jsonl"),
        reward=("examples/brevity.py:plain_words",),
        num_trainable_layers=6,
        lr=3e-4,
        num_steps=10,
        max_new_tokens=24,
        out=Path("runs/plain"),
    )
    console = _recording()
    train(config, Display(console))
    work.mkdir(parents=True, exist_ok=True)
    (work / "train.ansi").write_text(console.export_text(styles=True), encoding="utf-8")


def _recording() -> Console:
    return Console(record=True, file=io.StringIO(), width=_COLUMNS, highlight=False)


def draw_terminal() -> None:
    """The command, what it optimises, its steps and its result; "…" stands for what is left out."""
    console = _recording()
    console.print(_COMMAND, style="bold", markup=False)
    for line in _excerpt((WORK / "train.ansi").read_text(encoding="utf-8").split("\n")):
        console.print(Text.from_ansi(line))
    svg = console.export_svg(title="klimb train")
    # A picture on a page of GitHub may load nothing, so the fonts that rich names there would never come.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono")
    _keep(PICTURES / "terminal.svg", svg.encode())


def _excerpt(lines: list[str]) -> Iterator[str]:
    """The objective's first sentence and its formulas, the steps, and the result without sample texts."""
    plain = [Text.from_ansi(line).plain.rstrip() for line in lines]

    def part(first: str, end: str) -> list[str]:
        start = next(place for place, line in enumerate(plain) if line.startswith(first))
        stop = next(place for place, line in enumerate(plain) if place > start and line.startswith(end))
        return lines[start:stop]

    yield ""
    yield from part("What is optimised", "  The KL is")
    yield "  …"
    yield from part("    maximise", "With")
    yield from (line for line, text in zip(lines, plain, strict=True) if text.startswith("step "))
    yield ""
    yield from part("16 training prompts", "The movie")
    yield from (line for line, text in zip(lines, plain, strict=True) if text.startswith(("Model", "Report")))


@contextlib.contextmanager
def _browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if program is None:
        raise SystemExit(f"pictures: no browser: none of {', '.join(_BROWSERS)} is installed")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def draw_label_page(browser: "Browser", work: Path) -> None:
    """The page of `klimb label` with the demo's model, after some pairs were judged as VADER would."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    store = work / "feedback.db"
    command = [sys.executable, "-m", "klimb", "label", "--model", str(fetch_model()), "--store", str(store)]
    command += ["--prompts", str(ROOT / "examples" / "openers.jsonl"), "--num-pairs-per-prompt", "4"]
    command += ["--max-new-tokens", "24", "--criterion", _CRITERION, "--rater", "Ann", "--no-browser"]
    served = subprocess.Popen([*command, "--port", str(port)])
    try:
        address = f"http://127.0.0.1:{port}/"
        _wait_for(address)
        page = browser.new_page(viewport=_LABEL_VIEW, device_scale_factor=_SCALE, bypass_csp=True)
        page.goto(address)
        page.wait_for_selector("#asking[data-state=ready]")
        while int(page.inner_text("#count").split()[0]) < _NUM_JUDGED:
            _judge(page)
        _wait_for_learned(page)
        _keep(PICTURES / "label.png", _shrunk(page.screenshot()))
        page.close()
    finally:
        served.send_signal(signal.SIGINT)
        served.wait(timeout=600)  # it first finishes the completions that it is sampling


def _wait_for_learned(page: "Page", seconds: float = 300) -> None:
    """Until the page says how good the reward is that is learned along; it hears of it with each pair."""
    deadline = time.monotonic() + seconds
    while not page.inner_text("#learned"):
        if time.monotonic() > deadline:
            raise SystemExit("pictures: the page says nothing of a learned reward")
        time.sleep(2)
        page.reload()
        page.wait_for_selector("#asking[data-state=ready]")


def _judge(page: "Page") -> None:
    """Prefer the text that VADER finds happier."""
    left, right = (page.inner_text(side) for side in ("#left", "#right"))
    first, second = vader([left, right])
    before = page.inner_text("#count")
    time.sleep(_SECONDS_A_PAIR)
    page.keyboard.press("t" if first == second else "1" if first > second else "2")
    page.wait_for_function("before => document.querySelector('#count').textContent !== before", arg=before)
    page.wait_for_selector("#asking[data-state=ready]")


def _wait_for(address: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):  # noqa: S310  our own
            return
        time.sleep(0.5)
    raise SystemExit(f"pictures: nothing answers at {address}")


def draw_report(browser: "Browser", work: Path) -> None:
    """The upper part of a run's report: the result, and the first row of curves."""
    page = browser.new_page(viewport={"width": 1100, "height": 900}, device_scale_factor=_SCALE)
    page.goto((work / "run" / "report.html").as_uri())
    last = page.locator("figure").nth(2).bounding_box()
    assert last is not None, "a report has three figures or more"
    clip: Any = {"x": 0, "y": 0, "width": 1100, "height": last["y"] + last["height"] + _MARGIN}
    _keep(PICTURES / "report.png", _shrunk(page.screenshot(full_page=True, clip=clip)))
    page.close()


def _shrunk(png: bytes) -> bytes:
    """The same picture with a palette, which is a third of the size and looks alike."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    shrunk = io.BytesIO()
    picture.save(shrunk, "PNG", optimize=True)
    return shrunk.getvalue()


def _keep(file: Path, content: bytes) -> None:
    if len(content) >= MOST_BYTES:
        raise SystemExit(f"pictures: {file.name} has {len(content):,} bytes, more than {MOST_BYTES:,}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    print(f"{file.relative_to(ROOT)}: {len(content):,} bytes")


def main() -> None:
    """Make the run where it is missing, and the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    os.chdir(ROOT)
    if not (WORK / "train.ansi").exists():
        run_example(WORK)
    if not (DEMO / "run" / "report.html").exists():
        run_demo(DEMO, seed=0)
    draw_terminal()
    with _browser() as browser:
        draw_report(browser, DEMO)
        draw_label_page(browser, WORK)


if __name__ == "__main__":
    main()
