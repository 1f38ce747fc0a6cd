"""The card of a saved model, and its upload to a stand-in for the hub."""

import base64
import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard, close_session, constants

TOKEN = "hf_" + "a" * 20


class Hub(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks for when a folder is uploaded, and keeps the files."""

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self._answer(200, {"url": f"http://{self.headers['Host']}/me/tuned"})
        if self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            return self._answer(200, {"files": [f | {"shouldIgnore": False} for f in files]})
        if "/commit/main" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid, host = "0" * 40, self.headers["Host"]
            answer = {"success": True, "commitOid": oid, "commitUrl": f"http://{host}/me/tuned/commit/{oid}"}
            return self._answer(200, answer)
        return self._answer(200, {"errors": [], "warnings": []})

    def do_GET(self):
        self.server.asked.append(self.path)
        self._answer(
            200, {"id": "me/tuned", "modelId": "me/tuned", "sha": "0" * 40, "siblings": [], "private": True}
        )

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked, server.made = {}, [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_card_is_in_the_hubs_format_and_says_what_was_done(make_options, run, model_folder):
    config = make_options(judges=("vader",))
    run(config)
    text = (config.out / "model" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "klimb" in card.data.tags
    assert "| reward | " in card.content
    assert "| vader | " in card.content
    assert "KL(π‖π_ref)" in card.content
    assert "| `beta` | 0.05 |" in card.content
    assert "`prompts.jsonl`" in card.content
    assert str(config.out.parent) not in text
    assert str(model_folder.parent) not in text


def test_base_model_and_licence_are_those_that_the_bases_card_states(
    make_options, run, tmp_path, model_folder
):
    base = shutil.copytree(model_folder, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: ann/small\n---\n# Small\n")
    config = make_options(model=str(base))
    run(config)
    data = ModelCard((config.out / "model" / "README.md").read_text()).data
    assert (data.base_model, data.license) == ("ann/small", "apache-2.0")


@pytest.fixture
def push(monkeypatch, capsys, run):
    """Push a finished run's model to an address with a token; returns what is printed, and the warnings."""

    def push(config, address, token):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", token)
        close_session()  # which was made for no network
        try:
            shown = run(replace(config, push_to_hub="me/tuned"), resume=True)
        finally:
            close_session()
        return shown, capsys.readouterr().err

    return push


def test_a_finished_model_is_pushed_to_a_private_repository(make_options, run, hub, push):
    config = make_options()
    run(config)
    shown, warnings = push(config, f"http://127.0.0.1:{hub.server_port}", TOKEN)
    assert warnings == ""
    assert "to me/tuned on the hub" in shown
    assert hub.files == {path.name: path.read_bytes() for path in (config.out / "model").iterdir()}
    (made,) = hub.made
    assert made.get("private") is True or made.get("visibility") == "private"


@pytest.mark.parametrize("wrong", ["token", "address"])
def test_a_push_that_fails_is_a_sentence_and_the_folder_is_complete(
    wrong, make_options, run, hub, tree, push
):
    config = make_options()
    run(config)
    before = tree(config.out)
    address = "http://127.0.0.1:9" if wrong == "address" else f"http://127.0.0.1:{hub.server_port}"
    _, warnings = push(config, address, "hf_" + "b" * 20)
    reason = "the hub refused the token" if wrong == "token" else "the hub was not reached"
    assert warnings.count("klimb: warning:") == 1
    assert f"model was not pushed: {reason}" in warnings
    assert "The run's folder is complete" in warnings
    assert "b" * 20 not in warnings
    assert tree(config.out) == before
