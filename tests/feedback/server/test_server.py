"""The comparison page's server: what it answers, and how it starts and ends."""

import json
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import httpx
import pytest
import uvicorn

from klimb import KlimbError
from klimb.errors import ConfigError, StoreError
from klimb.feedback.records import Candidate
from klimb.feedback.server import app
from klimb.feedback.server.serve import ServeOptions, serve
from klimb.feedback.store.store import Store

RATER_TOKEN, OWNER_TOKEN = "rater-" + "r" * 20, "owner-" + "o" * 20
MODEL = "a-model-that-nobody-may-see"
EVERYWHERE = "0.0.0.0"  # noqa: S104


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_judgement_of_the_left_answer_is_of_the_completion_shown_there(store, visit, said):
    client = visit(store, per_pair=8)
    sides = set()
    for rater in ("anna", "bob", "carla", "dora"):
        client.post("/api/rater", json={"name": rater})
        for number in range(6):
            question = client.get("/api/next").json()["question"]
            preferred = ("left", "right", "tie", "both_bad", "skip")[number % 5]
            key = f"{rater}-{number}-0000"
            assert client.post("/api/judgements", json=said(question, preferred, key)).status_code == 200
            judgement = store.judgements()[-1]
            left, right = question["left"], question["right"]
            chosen = {"left": left, "right": right}.get(preferred)
            if chosen:
                side = judgement.first if judgement.preferred == "first" else judgement.second
                assert side.text in chosen
            else:
                assert judgement.preferred == preferred
            shown_left = judgement.first if judgement.shown_left == "first" else judgement.second
            assert shown_left.text in left
            assert (judgement.rater, judgement.seconds) == (rater, 2.5)
            sides.add(judgement.shown_left)
    assert sides == {"first", "second"}


def test_sides_are_the_same_after_a_reload_and_a_restart_and_differ_between_raters(store, visit):
    seen = {}
    for rater in [f"rater {i}" for i in range(12)]:
        client = visit(store, name=rater, per_pair=20)
        first = client.get("/api/next").json()["question"]
        assert client.get("/api/next").json()["question"] == first
        assert visit(store, name=rater, per_pair=20).get("/api/next").json()["question"] == first
        seen[rater] = first["left"]
    assert len(set(seen.values())) == 2


def test_nothing_that_is_sent_tells_the_source(store, visit, said):
    client = visit(store)
    question = client.get("/api/next").json()["question"]
    answers = [client.get("/api/next"), client.post("/api/judgements", json=said(question)), client.get("/")]
    answers.append(client.post("/api/undo", json={}))
    for answer in answers:
        assert MODEL not in answer.text
        assert '"first"' not in answer.text
        assert '"second"' not in answer.text
    assert set(question) == {"pair_id", "shown", "prompt", "left", "right"}


def test_a_judgement_sent_twice_counts_once(store, visit, said):
    client = visit(store)
    question = client.get("/api/next").json()["question"]
    first, second = (client.post("/api/judgements", json=said(question, note=" good ")) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert [(j.note, j.id) for j in store.judgements()] == [("good", first.json()["saved"])]


def test_a_second_opinion_under_another_key_is_a_conflict_with_the_next_question(store, visit, said):
    client = visit(store)
    question = client.get("/api/next").json()["question"]
    following = client.post("/api/judgements", json=said(question)).json()["question"]
    answer = client.post("/api/judgements", json=said(question, "right", "key-00000002"))
    assert answer.status_code == 409
    assert "before" in answer.json()["error"]
    assert answer.json()["question"] == following
    assert len(store.judgements()) == 1


def test_undo_asks_the_same_question_again(store, visit, said):
    client = visit(store)
    question = client.get("/api/next").json()["question"]
    client.post("/api/judgements", json=said(question))
    answer = client.post("/api/undo", json={}).json()
    assert (answer["undone"], answer["question"]) == (True, question)
    assert store.judgements() == []
    assert client.post("/api/undo", json={}).json()["undone"] is False
    again = client.post("/api/judgements", json=said(question, "right", "key-00000002"))
    assert again.status_code == 200


def test_a_pair_shown_to_another_rater_is_not_judged_by_this_one(store, visit, said):
    anna = visit(store, name="anna", per_pair=2)
    question = anna.get("/api/next").json()["question"]
    anna.post("/api/rater", json={"name": "bob"})  # in another tab, say
    answer = anna.post("/api/judgements", json=said(question, shown=question["shown"]))
    assert answer.status_code == 409
    assert answer.json()["rater"] == "bob"
    assert store.judgements() == []
    mine = answer.json()["question"]
    assert anna.post("/api/judgements", json=said(mine, shown=mine["shown"])).status_code == 200


def test_a_pair_of_another_store_is_not_judged(store, tmp_path, visit, said):
    question = visit(store).get("/api/next").json()["question"]
    with Store.open(tmp_path / "other.db") as other:
        other.add_pairs([("another prompt", Candidate("x"), Candidate("y"))])
        client = visit(other)
        assert client.post("/api/judgements", json=said(question, shown=question["shown"])).status_code == 409
        gone = client.post("/api/judgements", json=said({"pair_id": 6}))
        assert gone.status_code == 409
        assert "no pair 6" in gone.json()["error"]
        assert other.judgements() == []


def test_progress_pace_and_the_end_are_told(store, visit, said):
    client = visit(store)
    answer = client.get("/api/next").json()
    for number, seconds in enumerate([1.0, 2.0, 9.0, 4.0, 5.0, 6.0]):
        assert answer["progress"]["num_done"] == number
        question = answer["question"]
        sent = said(question, key=f"key-{number:08}") | {"seconds": seconds}
        answer = client.post("/api/judgements", json=sent).json()
    assert answer["question"] is None
    assert answer["progress"]["num_own"] == answer["progress"]["num_pairs"] == 6
    assert answer["progress"]["median_seconds"] == 4.5
    assert answer["progress"]["agreement"] is None


def test_agreement_is_told_where_two_judged_the_same(store, monkeypatch, visit, said):
    monkeypatch.setattr(app, "_AGREEMENT_AGE", -1.0)
    for name, preferred in (("anna", "tie"), ("bob", "tie"), ("carla", "both_bad")):
        client = visit(store, name=name, per_pair=3)
        question = client.get("/api/next").json()["question"]
        answer = client.post("/api/judgements", json=said(question, preferred, f"key-of-{name}"))
    progress = answer.json()["progress"]
    assert progress["agreement"] == pytest.approx(1 / 3)
    assert progress["num_compared"] == 1


def test_chat_prompts_come_turn_by_turn(tmp_path, visit):
    with Store.open(tmp_path / "chat.db") as chat:
        turns = [{"role": "system", "content": "Be *brief*."}, {"role": "user", "content": "Hi <b>"}]
        chat.add_pairs([(turns, Candidate("a"), Candidate("b"))])
        question = visit(chat).get("/api/next").json()["question"]
    assert question["prompt"] == [
        {"role": "system", "html": "<p>Be <em>brief</em>.</p>\n"},
        {"role": "user", "html": "<p>Hi &lt;b&gt;</p>\n"},
    ]


def test_a_name_is_asked_for_and_kept_in_a_cookie_that_no_script_reads(store, visit, said):
    client = visit(store, name=None)
    assert client.get("/api/next").json() == {"rater": None, "question": None}
    refused = client.post("/api/judgements", json=said({"pair_id": 1}))
    assert refused.status_code == 403
    assert "who you are" in refused.json()["error"]
    answer = client.post("/api/rater", json={"name": "  Żółć; 山田 "})
    assert answer.json() == {"rater": "Żółć; 山田"}
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/api/next").json()["rater"] == "Żółć; 山田"


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\nb", "a\x00b", "a\u202eb", "a\ud800"])
def test_a_name_that_cannot_be_shown_is_refused(store, name, visit):
    answer = visit(store, name=None).post(
        "/api/rater", content=json.dumps({"name": name}), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["error"]


def test_a_name_given_at_the_start_is_the_only_one(store, visit):
    client = visit(store, name=None, rater="owner")
    answer = client.get("/api/next").json()
    assert (answer["rater"], answer["may_rename"]) == ("owner", False)
    assert client.post("/api/rater", json={"name": "bob"}).status_code == 409


@pytest.mark.parametrize(
    "change",
    [
        {"preferred": "first"},
        {"key": "short"},
        {"key": "k" * 65},
        {"key": "key 00000001"},
        {"pair_id": 0},
        {"pair_id": 2**63},
        {"pair_id": "one"},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"note": "x" * 4001},
        {"note": "half \ud800 a pair"},
        {"rater": "bob"},
    ],
)
def test_a_malformed_judgement_is_refused_by_name(store, change, visit, said):
    client = visit(store)
    sent = json.dumps(said({"pair_id": 1}) | change)
    answer = client.post("/api/judgements", content=sent, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert next(iter(change)) in answer.json()["error"]
    assert store.judgements() == []


def test_a_store_that_fails_is_told_and_not_hidden(store, monkeypatch, visit, said):
    client = visit(store)
    question = client.get("/api/next").json()["question"]

    def fail(*_, **__):
        raise StoreError("feedback.db: the disk is full")

    monkeypatch.setattr(store, "judge", fail)
    answer = client.post("/api/judgements", json=said(question))
    assert (answer.status_code, answer.json()) == (503, {"error": "feedback.db: the disk is full"})
    monkeypatch.setattr(store, "judgements", fail)
    page = client.get("/results")
    assert page.status_code == 503
    assert "the disk is full" in page.text


def test_a_port_in_use_is_told_with_the_way_out(store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is in use; choose another with --port"):
            serve(store, ServeOptions(port=port), say=lambda _: None)


def test_an_address_of_another_machine_is_told(store):
    with pytest.raises(KlimbError, match=r"--host 192\.0\.2\.7: this machine does not have that address"):
        serve(store, ServeOptions(host="192.0.2.7", port=free_port()), say=lambda _: None)


def test_the_links_that_are_printed_are_the_ones_that_let_in(store, monkeypatch):
    lines, opened = [], []
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    monkeypatch.setattr("webbrowser.open", opened.append)
    options = ServeOptions(
        host=EVERYWHERE, port=free_port(), rater_token=RATER_TOKEN, owner_token=OWNER_TOKEN
    )
    serve(store, options, lines.append, open_browser=True)
    text = "\n".join(lines)
    assert f":{options.port}/?token={RATER_TOKEN}" in text
    assert f":{options.port}/results?token={OWNER_TOKEN}" in text
    assert EVERYWHERE not in text
    deadline = time.monotonic() + 10
    while not opened and time.monotonic() < deadline:
        time.sleep(0.01)
    assert opened == [f"http://127.0.0.1:{options.port}/?token={OWNER_TOKEN}"]


def test_control_c_ends_the_server_cleanly_with_what_was_judged(tmp_path, said):
    port = free_port()
    program = f"""
        from klimb.feedback.records import Candidate
        from klimb.feedback.server.serve import ServeOptions, serve
        from klimb.feedback.store.store import Store
        with Store.open({str(tmp_path / "feedback.db")!r}) as store:
            store.add_pairs([("p", Candidate("a"), Candidate("b"))])
            serve(store, ServeOptions(port={port}, rater="anna"), lambda line: print(line, flush=True))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    guard = threading.Timer(60, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        while f"http://127.0.0.1:{port}/results" not in process.stdout.readline():
            assert process.poll() is None
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            question = client.get("/api/next", timeout=30).json()["question"]
            assert client.post("/api/judgements", json=said(question)).status_code == 200
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=30)
    finally:
        guard.cancel()
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "stopped" in out
    with Store.open(tmp_path / "feedback.db") as store:
        assert len(store.judgements()) == 1
