"""The page closes by itself once all is judged, and not before."""

import socket
import threading

import httpx
import pytest

from klimb.config.serving import ServeOptions
from klimb.errors import StoreError
from klimb.feedback.server import closing
from klimb.feedback.server.closing import closing_when
from klimb.feedback.server.serve import serve
from klimb.feedback.store.store import Store


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(closing, "_POLL", 0.005)
    monkeypatch.setattr(closing, "_GRACE", 0.05)


def test_what_is_done_for_a_while_is_closed():
    closed = threading.Event()
    with closing_when(lambda: True, closed.set):
        assert closed.wait(10)


def test_a_judgement_that_is_undone_in_time_keeps_the_page_open(monkeypatch):
    monkeypatch.setattr(closing, "_GRACE", 0.2)
    looks, closed = [], threading.Event()

    def is_done():
        looks.append(len(looks) % 4 != 3)  # done three looks long, undone at the fourth
        return looks[-1]

    with closing_when(is_done, closed.set):
        assert not closed.wait(0.5)
    assert looks.count(False) > 1


def test_a_store_that_fails_for_a_moment_is_asked_again():
    answers, closed = [StoreError("locked"), True], threading.Event()

    def is_done():
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    with closing_when(is_done, closed.set):
        assert closed.wait(10)


def test_nothing_watches_a_page_without_an_end():
    before = threading.active_count()
    with closing_when(None, lambda: pytest.fail("closed")):
        assert threading.active_count() == before


def is_answered(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_real_page_ends_and_says_where_the_judgements_are(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    said = []
    with Store.open(tmp_path / "feedback.db") as store:
        serve(store, ServeOptions(port=port), said.append, until=lambda: is_answered(port))
    assert said[-1] == f"stopped; the judgements are in {tmp_path / 'feedback.db'}"
