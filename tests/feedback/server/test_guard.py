"""Whom the comparison page's server answers, and what it puts on every answer."""

import socket
import threading

import pytest
import uvicorn
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from klimb.config.serving import ServeOptions
from klimb.feedback.server.app import create_app
from klimb.feedback.server.guard import HEADERS

RATER_TOKEN, OWNER_TOKEN = "rater-" + "r" * 20, "owner-" + "o" * 20
MODEL = "a-model-that-nobody-may-see"
EVERYWHERE = "0.0.0.0"  # noqa: S104


def visit_by_link(store, token, path="/"):
    app = create_app(store, ServeOptions(host=EVERYWHERE, rater_token=RATER_TOKEN, owner_token=OWNER_TOKEN))
    client = TestClient(app, base_url="http://label.example:8321", follow_redirects=False)
    return client, client.get(path, params={"token": token} if token else None)


def test_every_answer_has_the_headers_errors_too(store, monkeypatch, visit):
    client = visit(store)
    quiet = TestClient(client.app, base_url="http://127.0.0.1:8321", raise_server_exceptions=False)
    monkeypatch.setattr(store, "agreement", lambda: 1 / 0)
    answers = {
        200: client.get("/"),
        404: client.get("/nothing"),
        405: client.put("/api/next", json={}),
        413: client.post("/api/undo", content=b"x" * 70_000, headers={"content-type": "application/json"}),
        415: client.post("/api/undo", content=b"{}"),
        421: client.get("/", headers={"host": "evil.example"}),
        422: client.post("/api/judgements", json={}),
        500: quiet.get("/results"),
    }
    assert {status: answer.status_code for status, answer in answers.items()} == {s: s for s in answers}
    for answer in answers.values():
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert len(answer.headers.get_list("content-security-policy")) == 1
    assert "script-src 'self'" in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_there_is_no_description_of_the_interface(store, visit):
    client = visit(store)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404


def test_pages_have_no_inline_script_or_style_and_nothing_from_elsewhere(store, visit):
    client = visit(store)
    for path in ("/", "/results", "/static/label.js", "/static/label.css", "/static/page.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "//cdn" not in answer.text
        assert "http://" not in answer.text
        assert "https://" not in answer.text
        assert "@import" not in answer.text
        if answer.headers["content-type"].startswith("text/html"):
            assert "<style" not in answer.text
            assert "style=" not in answer.text
            assert "onclick" not in answer.text
            assert answer.text.count("<script") == answer.text.count('<script src="/static/')
    for name in ("label.html", "../server.py", "__init__.py", "%2e%2e/server.py"):
        assert client.get(f"/static/{name}").status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8321", 200),
        ("localhost", 200),
        ("LOCALHOST:99", 200),
        ("[::1]:8321", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8321", 421),
        ("127.0.0.1.evil.example", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_on_this_machine_only_its_own_names_are_answered(store, host, status, visit):
    client = visit(store)
    assert client.get("/api/next", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8321", "sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_what_another_site_sends_is_refused(store, headers, status, visit, said):
    client = visit(store)
    question = client.get("/api/next").json()["question"]
    client.post("/api/judgements", json=said(question))
    answer = client.post("/api/undo", content=b"{}", headers={"content-type": "application/json"} | headers)
    assert answer.status_code == status
    assert len(store.judgements()) == (0 if status == 200 else 1)


def test_a_large_body_is_refused_also_without_a_length(store, visit):
    client = visit(store)
    as_json = {"content-type": "application/json"}
    assert client.post("/api/undo", content=b" " * 65_537, headers=as_json).status_code == 413
    pieces = client.post("/api/undo", content=iter([b" " * 40_000] * 3), headers=as_json)
    assert "content-length" not in pieces.request.headers
    assert pieces.status_code == 413
    allowed = client.post("/api/undo", content=iter([b" " * 30_000] * 2), headers=as_json)
    assert allowed.status_code == 200
    assert (
        client.post("/api/undo", content=b"{}", headers=as_json | {"content-length": "x"}).status_code == 413
    )


def test_on_the_network_nothing_is_told_without_a_link(store):
    for token in (None, "wrong-token-of-some-length", RATER_TOKEN + "x", "ü" * 20):
        client, answer = visit_by_link(store, token)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        paths = ("/", "/api/next", "/results", "/results%0A", "/export/comparisons", "/nothing")
        assert [client.get(path).status_code for path in paths] == [401] * 6
        assert client.post("/api/rater", json={"name": "anna"}).status_code == 401
        assert client.get("/static/label.css").status_code == 200
        client.cookies.set("klimb-access-8321", "x" * 20)
        assert client.get("/api/next").status_code == 401


def test_a_link_becomes_a_cookie_and_leaves_the_address(store):
    client, answer = visit_by_link(store, RATER_TOKEN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/").status_code == 200
    assert client.post("/api/rater", json={"name": "anna"}).status_code == 200
    assert client.get("/api/next").json()["question"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_link_followed_from_another_site_arrives_too(store, site):
    client, _ = visit_by_link(store, None)
    headers = {"sec-fetch-site": site}
    answer = client.get("/results", params={"token": OWNER_TOKEN}, headers=headers)
    assert answer.status_code == 200
    assert 'content="0;url=/results"' in answer.text
    assert MODEL not in answer.text
    assert client.get("/results").status_code == 200


def test_raters_may_not_see_results_and_exports(store):
    client, _ = visit_by_link(store, RATER_TOKEN)
    for path in (
        "/results",
        "/results%0A",
        "/results/",
        "/export/comparisons",
        "/export/comparisons%0A",
    ):
        answer = client.get(path)
        assert answer.status_code == 403
        assert MODEL not in answer.text
    direct = client.get("/results", params={"token": RATER_TOKEN})
    assert direct.status_code == 403


def test_the_owner_sees_results_and_may_judge(store):
    client, answer = visit_by_link(store, OWNER_TOKEN, "/results")
    assert (answer.status_code, answer.headers["location"]) == (303, "/results")
    assert [client.get(path).status_code for path in ("/results", "/export/comparisons", "/")] == [200] * 3


def test_tokens_on_this_machine_are_demanded_where_they_are_chosen(store, visit):
    client = visit(store, name=None, rater_token=RATER_TOKEN)
    assert client.get("/api/next").status_code == 401
    client.get("/", params={"token": RATER_TOKEN})
    assert client.get("/api/next").status_code == 200


def test_a_socket_of_the_web_kind_is_closed(store, visit):
    client = visit(store)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/next"):
        pass


def test_a_body_in_endless_pieces_is_cut_off_by_the_real_server(store):
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = create_app(store, ServeOptions(port=port, rater="anna"))
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            head = (
                f"POST /api/undo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
                "Transfer-Encoding: chunked\r\n\r\n"
            )
            connection.sendall(head.encode())
            for _ in range(5):  # of many more, and no end is sent
                connection.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
            answer = connection.recv(65_536)
    finally:
        running.should_exit = True
        thread.join(30)
        listening.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"content-security-policy" in answer.lower()
