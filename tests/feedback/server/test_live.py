"""The page beside a run: what is learned from stays, and pages that are left open go on when the run is resumed."""

import threading

import httpx
import pytest

from klimb.config.serving import ServeOptions
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.server.live import LivePage
from klimb.feedback.store.store import Store
from klimb.io.progress import ignore
from robot import free_port


@pytest.fixture
def open_live(tmp_path, monkeypatch):
    """Open the page of a live run, again and again at one address."""
    monkeypatch.setattr("klimb.feedback.server.live._FAREWELL", 0.0)
    serve = ServeOptions(port=free_port(), rater="ann")
    opened = []

    def start(*pairs):
        page = LivePage(Store.open(tmp_path / "people.db"), serve, ignore)
        opened.append(page)
        return page, page.store.ask([("p", Candidate(a), Candidate(b)) for a, b in pairs])

    start.address = f"http://127.0.0.1:{serve.port}"
    yield start
    for page in opened:
        page.close("over", is_over=True)


def say(page, number, preferred="first"):
    return page.store.judge(Answer(number, "ann", preferred, f"key-{number:08}"))


def is_answered(choices):
    return bool(choices)


def test_an_answer_is_taken_back_until_the_run_has_learned_from_it_and_then_the_page_says_why_not(open_live):
    page, numbers = open_live(("a", "b"), ("c", "d"))
    say(page, numbers[0][0])
    assert page.settle(numbers, is_answered)[1] == 1  # the other pair is open, nothing is settled
    answer = httpx.post(f"{open_live.address}/api/undo", json={}).json()
    assert (answer["undone"], answer["reason"]) == (True, "")
    for number, _ in numbers:
        page.store.judge(Answer(number, "ann", "first", f"again-{number:08}"))
    assert page.settle(numbers, is_answered) == ([["first"], ["first"]], 0)
    answer = httpx.post(f"{open_live.address}/api/undo", json={}).json()
    assert not answer["undone"]
    assert "learned from your last answer already" in answer["reason"]
    assert page.store.choices(numbers) == [["first"], ["first"]]


def test_the_page_says_in_words_that_an_answer_stays(open_live, chromium):
    page, numbers = open_live(("a", "b"))
    say(page, numbers[0][0])
    page.settle(numbers, is_answered)
    shown = chromium.new_page()
    shown.goto(open_live.address)
    shown.wait_for_selector("#finished:not([hidden])")
    shown.keyboard.press("u")
    shown.wait_for_selector("#saved:has-text('The model has learned from your last answer already')")
    shown.close()


def test_a_page_left_open_goes_on_when_the_run_is_resumed(open_live, chromium, monkeypatch):
    page, numbers = open_live(("a", "b"))
    shown = chromium.new_page()
    shown.goto(open_live.address)
    shown.wait_for_selector("#asking[data-state=ready]")
    shown.keyboard.press("1")
    shown.wait_for_selector("#finished:not([hidden])")
    monkeypatch.setattr("klimb.feedback.server.live._FAREWELL", 4.0)  # as long as the page needs to look once
    closing = threading.Thread(target=lambda: page.close("The run was stopped.", is_over=False))
    closing.start()
    shown.wait_for_selector("#finished-heading:has-text('the run has stopped for now')")
    assert shown.inner_text("#rest") == "The run was stopped."
    closing.join()
    shown.wait_for_selector("#problem:has-text('does not answer')")
    monkeypatch.setattr("klimb.feedback.server.live._FAREWELL", 0.0)
    again, more = open_live(("c", "d"))
    shown.wait_for_selector("#asking[data-state=ready]:not([hidden])", timeout=40_000)
    shown.keyboard.press("1")
    shown.wait_for_selector("#finished:not([hidden])")
    assert all(again.store.choices([*numbers, *more]))
    shown.close()


def test_an_answer_that_met_no_run_is_kept_on_the_page_and_sent_when_it_is_resumed(open_live, chromium):
    page, numbers = open_live(("a", "b"))
    shown = chromium.new_page()
    shown.goto(open_live.address)
    shown.wait_for_selector("#asking[data-state=ready]")
    page.close("gone", is_over=False)
    shown.keyboard.press("t")
    shown.wait_for_selector("#problem:has-text('Not saved yet, but kept here')")
    again, _ = open_live(("a", "b"))
    assert again.store.choices(numbers) == [[]]
    shown.wait_for_selector("#finished:not([hidden])", timeout=40_000)
    assert again.store.choices(numbers) == [["tie"]]
    shown.close()
