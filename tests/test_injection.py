"""What models, data files and raters wrote stays text: on every page, in a real browser, and on the terminal."""

import contextlib
import io
import json
import runpy
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from klimb.cli.main import main
from klimb.config.pairwise import CompareConfig
from klimb.config.reward import RewardConfig
from klimb.config.train import TrainConfig
from klimb.feedback.console import show_store
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.sources import import_files
from klimb.feedback.store.store import Store
from klimb.pairwise.console import show_comparison
from klimb.pairwise.report import draw_report
from klimb.pairwise.results import ComparisonResult, Example, Side
from klimb.pairwise.tally import opinions_of_scores, tally
from klimb.reward.learn.evaluation import evaluate
from klimb.reward.learn.report import draw_report as draw_reward_report
from klimb.reward.learn.results import RewardResult
from klimb.training.report.console import Display
from klimb.training.report.report import write_report
from klimb.training.storage.folder import RunFolder

PAYLOADS = runpy.run_path(str(Path(__file__).with_name("injection.py")))["PAYLOADS"]
PLAIN = [payload for payload in PAYLOADS if len(payload) < 1000]
TOUCH = """() => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const element of document.querySelectorAll("body *")) {
    for (const kind of ["mouseover", "focus", "toggle", "load", "error"]) element.dispatchEvent(new Event(kind));
  }
  for (const link of document.querySelectorAll("a[href^='javascript:']")) link.click();
}"""
SHAPES = ["{}", '{{"prompt": "a", {}: 1}}', '{{"prompt": {}, "x": 1', '{{"prompt": [{}]}}', "[{}]"]
OWN = ('<script src="/static/keep.js"', '<script src="/static/label.js"', '<form id="name-form"')
FOREIGN = """() => [...document.querySelectorAll("*")].flatMap((element) => [
  ...(/^(script|iframe|object|embed|base|form|video|math)$/i.test(element.tagName) ? [element.outerHTML] : []),
  ...[...element.attributes].filter((attribute) => /^on/i.test(attribute.name)).map((attribute) => attribute.name),
]).map((found) => found.slice(0, 120))"""


@pytest.fixture
def visit(chromium):
    """Open a page, touch all that is on it, and note whatever went out or went wrong."""
    contexts = []

    def start(address, own):
        context = chromium.new_context()
        contexts.append(context)
        page = context.new_page()
        noted = SimpleNamespace(trouble=[])
        page.on("dialog", lambda dialog: (noted.trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: noted.trouble.append(f"error {error}"))
        page.on("console", lambda line: noted.trouble.append(f"console {line.text}"))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((own, "data:")) else noted.trouble.append(request.url)
            ),
        )
        page.goto(address)
        page.evaluate(TOUCH)
        page.wait_for_timeout(200)
        return page, noted

    yield start
    for context in contexts:
        context.close()


def require_harmless(page, noted, own=()):
    assert noted.trouble == []
    assert page.evaluate("window.hacked") is None
    foreign = page.evaluate(FOREIGN)
    assert [found for found in foreign if not found.startswith(OWN)] == []
    assert len(foreign) == len(own)


def shown_of(payload):
    """How a browser has a payload in its text: without null bytes, and with line feeds for carriage returns."""
    return payload.replace("\r", "\n").replace("\0", "")


def evaluation(when, index, text, name):
    row = {"when": when, "step": 0, "prompt_index": index, "prompt": text, "completion": text, "reward": 1.0}
    return row | {"rewards": {name: 1.0, "vader": 0.5}, "kl": 0.5, "length": 4, "finish_reason": "end"}


@pytest.fixture
def run(tmp_path):
    """A run's folder in which every text is hostile."""
    judge = PLAIN[0] + PLAIN[24]
    config = TrainConfig(
        model=f"a/{PLAIN[3]}",
        prompts=tmp_path / "p.jsonl",
        reward=("vader", PLAIN[7]),
        judges=(judge,),
        out=tmp_path / "run",
    )
    folder = RunFolder.create(tmp_path / "run", config.to_dict())
    for step in range(2):
        row = {
            "step": step,
            "reward": 0.1,
            "reward_std": 0.1,
            "kl": float(step),
            "entropy": 2.0,
            "length": 5.0,
        }
        row |= {
            "rewards": {"vader": 0.1, PLAIN[7]: 0.0, judge: 0.2},
            "grad_norm": 1.0,
            "lr": 1e-5,
            "eos_rate": 1.0,
        }
        row |= {"seconds": {"sampling": 1.0}, "completions_per_second": 3.0, "peak_memory_bytes": 10**9}
        folder.append("metrics", [row])
    for when in ("before", "after"):
        folder.append("evaluations", [evaluation(when, i, text, judge) for i, text in enumerate(PAYLOADS)])
    return folder


@pytest.mark.usefixtures("drawn_figures")
def test_the_report_of_a_run(run, visit):
    page, noted = visit(write_report(run).as_uri(), run.report.as_uri())
    require_harmless(page, noted)
    texts = page.eval_on_selector_all("td.text", "cells => cells.map((cell) => cell.textContent)")
    assert [payload[:80] for payload in PAYLOADS if shown_of(payload) not in texts] == []


@pytest.mark.usefixtures("drawn_figures")
def test_the_page_of_a_comparison(tmp_path, visit):
    page, noted = visit(comparison(tmp_path).page.as_uri(), (tmp_path / "c.html").as_uri())
    require_harmless(page, noted)
    texts = page.eval_on_selector_all("bdi", "cells => cells.map((cell) => cell.textContent)")
    assert [payload[:80] for payload in PAYLOADS if texts.count(shown_of(payload)) != 2] == []


def comparison(tmp_path):
    judges = (PLAIN[0], PLAIN[28])
    config = CompareConfig(
        model_a=PLAIN[3], model_b=PLAIN[5], prompts=tmp_path / "p", by=judges, out=tmp_path / "c.html"
    )
    scores = [[1.0], [0.0], [1.0]]
    said = [opinions_of_scores(judge, scores, [[0.0], [1.0], [0.5]], 0.0) for judge in judges]
    lengths = np.ones((3, 1))
    sides = [Side(model, model, 4.0, 9.0, 1) for model in (config.model_a, config.model_b)]
    examples = [Example(text, text, text, dict.fromkeys(judges, "A")) for text in PAYLOADS]
    result = ComparisonResult(
        *sides, len(PAYLOADS), 1, [tally(each, lengths, lengths, 0) for each in said], examples, config.out,
        tmp_path / "c.json",
    )  # fmt: skip
    config.out.write_text(draw_report(result, config), encoding="utf-8")
    return result


@pytest.mark.usefixtures("drawn_figures")
def test_the_page_of_a_learned_reward(tmp_path, visit):
    from klimb.feedback.pairs import Pairs

    pairs = Pairs(
        [""] * 4, list("abcd"), np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([1.0, 1.0, -1.0])
    )
    found = evaluate(np.array([3.0, 2.0, 1.0, 0.0]), pairs, 0.0, 0)
    facts = {str(number): text for number, text in enumerate(PAYLOADS)}
    result = RewardResult(tmp_path, tmp_path / "r.html", found, found, [], 1.0, 0.0, False, facts)
    config = RewardConfig(feedback=("f",), base=f"x/{PLAIN[0]}", out=tmp_path / PLAIN[3].replace("/", ""))
    result.report.write_text(draw_reward_report(result, config), encoding="utf-8")
    page, noted = visit(result.report.as_uri(), result.report.as_uri())
    require_harmless(page, noted)
    facts_shown = page.eval_on_selector_all("li", "items => items.map((item) => item.textContent)")
    assert [payload[:80] for payload in PAYLOADS if shown_of(payload) not in facts_shown] == []


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "feedback.db") as store:
        pairs = [
            (text, Candidate(text, {"model": text[:60]}), Candidate("other", {"model": "m"}))
            for text in PAYLOADS
        ]
        store.add_pairs(pairs)
        for number, payload in enumerate(PAYLOADS):
            question = store.next_question(
                rater := PLAIN[number % len(PLAIN)][:80].replace("\0", ""), per_pair=99
            )
            note = payload.replace("\0", "")[:4000]
            store.judge(Answer(question.pair_id, rater, "first", f"key-{number:08}", "first", 1.0, note))
        yield store


@contextlib.contextmanager
def serving(store):
    import uvicorn

    from klimb.config.serving import ServeOptions
    from klimb.feedback.server.app import create_app

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = create_app(store, ServeOptions(port=port, rater="ann", per_pair=99))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


@pytest.mark.usefixtures("drawn_figures")
def test_the_page_of_results(store, visit):
    with serving(store) as served:
        page, noted = visit(f"{served}/results", served)
        require_harmless(page, noted)
        assert "window.hacked" in page.inner_text("main")


def test_the_page_on_which_people_judge(tmp_path, visit):
    texts = ["\n\n".join(PAYLOADS[start : start + 5]) for start in range(0, len(PAYLOADS), 5)]
    with Store.open(tmp_path / "f.db") as store:
        store.add_pairs([(text, Candidate(text), Candidate(text + ".")) for text in texts])
        with serving(store) as served:
            page, noted = visit(served, served)
            for number in range(len(texts)):
                page.wait_for_selector(f"#heading:text('Pair {number + 1}:')")
                page.evaluate(TOUCH)
                require_harmless(page, noted, own=("script", "script", "form"))
                page.wait_for_selector("#asking[data-state=ready]")
                page.keyboard.press("t")
            page.wait_for_selector("#finished:not([hidden])")
        assert len(store.judgements()) == len(texts)


def steers(shown):
    return [c for c in shown if not (c.isprintable() or c in "\n\t\u00a0\u3000\u200c\u200d")]


def console():
    return Console(file=io.StringIO(), highlight=False, soft_wrap=True, width=120)


def test_a_store_and_its_raters_on_the_terminal(store):
    screen = console()
    show_store(store, screen)
    shown = screen.file.getvalue()
    assert steers(shown) == []
    assert "\\x1b[2J" in shown
    assert "[bold]x[/bold]" in shown


def test_a_comparison_on_the_terminal(tmp_path):
    screen = console()
    show_comparison(comparison(tmp_path), screen)
    assert steers(screen.file.getvalue()) == []


def test_samples_of_a_run_on_the_terminal(run):
    from klimb.training.evaluate.summary import summarise

    screen = console()
    summary = summarise(run.read("evaluations"), are_held_out=True)
    for example in range(len(PAYLOADS)):
        shown = [*summary.examples[example:], *summary.examples[:example]]
        Display(screen).run_finished(run, type(summary)(**{**vars(summary), "examples": shown}))
    assert steers(screen.file.getvalue()) == []


def as_letters(payload):
    return json.dumps(payload, ensure_ascii=False)


@pytest.mark.parametrize(
    "form", [json.dumps, *(pytest.param(form, marks=pytest.mark.slow) for form in (as_letters, str))]
)
@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_a_message_about_a_data_file_on_the_terminal(shape, form, tmp_path, capsys):
    hostile = [payload for payload in PLAIN if steers(payload)]
    assert len(hostile) > 5
    for quoted in map(form, hostile):
        (tmp_path / "p.jsonl").write_text(shape.format(quoted), encoding="utf-8")
        assert main(["train", "--model", ".", "--prompts", str(tmp_path / "p.jsonl"), "--reward", "vader",
                     "--out", str(tmp_path / "run")]) == 2  # fmt: skip
        said = capsys.readouterr()
        assert steers(said.out + said.err) == []
        assert "klimb: " in said.err


def test_what_is_said_of_refused_rows(tmp_path):
    rows = [
        {"prompt": payload, "left": payload, "right": payload, "preferred": payload} for payload in PAYLOADS
    ]
    rows += [{payload: 1} for payload in PAYLOADS]
    rows += [
        {"prompt": "p", "left": "a", "right": "b", "preferred": side, "rater": PLAIN[-1]}
        for side in ("left", "right")
    ]
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(tmp_path / "s.db") as store:
        report = import_files(store, [file])
    assert len(report.refused) == len(rows) - 1
    assert steers("\n".join(report.lines())) == []


OUTSIDE = [
    "/static/..%2f..%2f__init__.py",
    "/static/../records.py",
    "/static/%2e%2e/records.py",
    "/static//etc/passwd",
    "/static/label.js%00.html",
    "/export/..%2f..%2fx",
    "/export/preferences%00",
]


def test_no_name_in_an_address_leads_out_of_the_servers_own_files(store):
    from fastapi.testclient import TestClient

    from klimb.config.serving import ServeOptions
    from klimb.feedback.server.app import create_app

    client = TestClient(
        create_app(store, ServeOptions()), base_url="http://127.0.0.1:8321", follow_redirects=False
    )
    for path in OUTSIDE:
        assert client.get(path).status_code == 404, path
