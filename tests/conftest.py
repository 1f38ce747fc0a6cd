"""No network, several host devices for JAX, fixtures of all tests, and a browser where there is one."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import json
import shutil

import pytest
from _pytest.doctest import DoctestModule

FIXTURES = ("matmul_paths", "runs", "tiny_models")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_configure(config):
    """Load the fixtures that load PyTorch, except in the process that only hands tests out to others."""
    if config.getoption("dist", "no") == "no":
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Look for examples to run in klimb alone: looking for them in the tests takes a third of the collection."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


@pytest.fixture(scope="session", autouse=True)
def no_sync():
    """Files need not outlive a power cut of the tests; tools/crashlab, which tests that, runs in other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


class BlankCanvas:
    """Takes a figure's curves and draws none of them: layout and letters take nine tenths of a short run's time."""

    def __init__(self, figure):
        self.figure = figure

    def print_svg(self, buffer, **_):
        buffer.write("<svg></svg>")


@pytest.fixture(scope="session", autouse=True)
def blank_figures():
    """Leave figures of pages blank; a test that looks at them takes `drawn_figures`."""
    from klimb.io import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "FigureCanvasSVG", BlankCanvas)
        yield


@pytest.fixture
def drawn_figures(monkeypatch):
    """Draw the figures of pages as they are."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    from klimb.io import page

    monkeypatch.setattr(page, "FigureCanvasSVG", FigureCanvasSVG)


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows as a JSONL file and return its path."""

    def write(rows, name="prompts.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def prompts_file(write_jsonl):
    """Six short prompts with a column for the reward."""
    words = ["one", "a longer one", "three", "x", "the fifth", "six"]
    return write_jsonl([{"prompt": word, "wanted": "aeiou"[index % 5]} for index, word in enumerate(words)])


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window; skipped with the reason where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=BROWSER_OPTIONS)
        yield browser
        browser.close()
