"""Warnings about raters while they judge on the page of klimb label or klimb compare."""

import threading

from klimb.feedback import rater_warnings
from klimb.feedback.rater_warnings import watching_raters
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.server.blind import left_of
from klimb.feedback.store.store import Store


def answer_by_place(store, count):
    store.add_pairs((f"p{n}", Candidate(f"a{n}", {}), Candidate(f"b{n}", {})) for n in range(count))
    for number in range(count):
        question = store.next_question("eve")
        left = left_of(question, "eve")
        store.judge(Answer(question.pair_id, "eve", left, f"eve-key-{number:04}", shown_left=left))


def test_who_answers_by_place_is_named_once_while_the_page_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(rater_warnings, "_POLL", 0.01)
    said, was_told = [], threading.Event()

    def say(line):
        said.append(line)
        was_told.set()

    with Store.open(tmp_path / "feedback.db") as store, watching_raters(store, say):
        answer_by_place(store, 30)
        assert was_told.wait(60)
    (line,) = said
    assert line.startswith("warning: eve prefers answer 1 in ")
    assert line.endswith("; the page stays open")


def test_of_no_answers_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(rater_warnings, "_POLL", 0.01)
    said = []
    with Store.open(tmp_path / "feedback.db") as store, watching_raters(store, said.append):
        answer_by_place(store, 6)
    assert said == []
