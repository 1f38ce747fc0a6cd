"""A reward that is an HTTP service: what it is sent, and everything that a service may do instead of answering."""

import io
import json
import math
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from klimb import KlimbError
from klimb.config.train import TrainConfig
from klimb.errors import ConfigError, RewardError
from klimb.reward import http
from klimb.reward.failures import Failed
from klimb.reward.http import HttpReward, Patience
from klimb.reward.load import load_rewards
from klimb.reward.reward import Batch, WeightedSum
from klimb.training.report.console import Display
from klimb.training.run import train

QUICK = Patience(timeout=5.0, num_attempts=3, first_wait=1.0, longest_wait=3.0)
TOKEN = "s3cret-t0ken"  # noqa: S105  of nothing
BATCH = Batch(["p "] * 3, ["a", "bb", "ccc"])


@dataclass(frozen=True)
class Seen:
    path: str
    headers: dict[str, str]
    question: dict


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """A client that has gone is no news."""


@pytest.fixture
def serve():
    """Start a service on this machine; each request meets the next of the behaviours, and the last one for ever."""
    servers = []

    def start(*behaviours):
        seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                seen.append(Seen(self.path, dict(self.headers), json.loads(body)))
                behaviours[min(len(seen), len(behaviours)) - 1](self, seen[-1].question)

            def log_message(self, *_):
                pass

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/get_reward", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def end():
    """Set at the end of the test: what a service that hangs waits for."""
    event = threading.Event()
    yield event
    event.set()


def answering(content, status=200, **headers):
    def answer(handler, _question):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | named).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def lengths(handler, question):
    answering({"rewards": [len(query) for query in question["query"]]})(handler, question)


def hanging(end):
    return lambda _handler, _question: end.wait()


def dribbling(end, start):
    """Send something at once, and then a byte now and then."""

    def answer(handler, _question):
        handler.wfile.write(start)
        with suppress(OSError):
            while not end.wait(0.01):
                handler.wfile.write(b" ")

    return answer


def hanging_up(handler, _question):
    handler.connection.shutdown(socket.SHUT_RDWR)


def make(url, **options):
    """A reward that does not really wait, and what it would have waited."""
    pauses = []
    return HttpReward(url, patience=options.pop("patience", QUICK), pause=pauses.append, **options), pauses


def reasons(reward, batch=BATCH):
    said = reward(batch)
    assert all(isinstance(answer, Failed) for answer in said)
    return [answer.reason for answer in said]


def test_it_is_asked_as_openrlhf_asks(serve):
    url, seen = serve(lengths)
    reward, pauses = make(f"{url}?model=small")
    batch = Batch(["p ", "q"], ["a\ud800", "β"], {"label": [{"x": 1}, math.nan], "other": [1, 2]})
    assert reward(batch) == [4.0, 2.0]
    (request,) = seen
    assert request.path == "/get_reward?model=small"
    assert request.headers["Content-Type"] == "application/json"
    assert "Authorization" not in request.headers
    assert request.question == {
        "query": ["p a\ud800", "qβ"],
        "prompts": ["p ", "q"],
        "labels": [{"x": 1}, None],
    }
    assert pauses == []


def test_chat_messages_are_sent_as_the_text_that_the_policy_reads(serve):
    url, seen = serve(lengths)
    chat = [{"role": "user", "content": "hi"}]
    reward, _ = make(url)
    assert reward(Batch([chat], ["ok"], rendered=["<user>hi"])) == [10.0]
    assert seen[0].question == {"query": ["<user>hiok"], "prompts": ["<user>hi"], "labels": [None]}
    with pytest.raises(RewardError, match="a policy's chat template, which is not available here"):
        reward(Batch([chat], ["ok"]))


def test_scores_stand_in_for_rewards_and_each_value_is_taken_for_itself(serve):
    url, _ = serve(answering(b'{"scores": [null, NaN, 1.5], "extra_logs": {}}'))
    none, not_finite, number = make(url)[0](BATCH)
    assert none is None
    assert "expected a finite number, got nan" in not_finite.reason
    assert number == 1.5


def test_a_large_batch_is_asked_about_in_parts(serve):
    url, seen = serve(lengths)
    count = 130
    batch = Batch([""] * count, ["x" * index for index in range(count)], {"labels": list(range(count))})
    assert make(url)[0](batch) == [float(index) for index in range(count)]
    assert [len(request.question["query"]) for request in seen] == [64, 64, 2]
    assert seen[2].question["labels"] == [128, 129]


@pytest.mark.parametrize(
    "fault",
    [answering({}, 500), answering({}, 503), answering({}, 429), answering(b"<html>"), hanging_up],
)
def test_what_passes_is_waited_for(fault, serve):
    url, seen = serve(fault, lengths)
    reward, pauses = make(url)
    assert reward(BATCH) == [3.0, 4.0, 5.0]
    assert len(seen) == 2
    assert len(pauses) == 1


def test_waits_double_up_to_a_limit_and_are_not_the_same_twice(serve):
    url, seen = serve(answering({}, 503))
    patience = Patience(timeout=5.0, num_attempts=6, first_wait=1.0, longest_wait=5.0)
    reward, pauses = make(url, patience=patience)
    reward(BATCH)
    assert len(seen) == 6
    for pause, longest in zip(pauses, [1.0, 2.0, 4.0, 5.0, 5.0], strict=True):
        assert longest / 2 <= pause <= longest
    assert (
        len({pause / longest for pause, longest in zip(pauses, [1.0, 2.0, 4.0, 5.0, 5.0], strict=True)}) == 5
    )


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_what_does_not_pass_is_asked_once(status, serve):
    url, seen = serve(answering({"detail": "no"}, status))
    said = reasons(make(url)[0])
    assert f"answered {status} " in said[0]
    assert '{"detail": "no"}' in said[0]
    assert len(seen) == 1


def test_a_redirect_is_not_followed(serve):
    elsewhere, seen_elsewhere = serve(lengths)
    url, seen = serve(answering(b"", 307, Location=elsewhere))
    assert "answered 307, a redirect, which is not followed" in reasons(make(url, token=TOKEN)[0])[0]
    assert len(seen) == 1
    assert seen_elsewhere == []


@pytest.mark.parametrize("status", [500, 400])
def test_one_text_that_a_service_cannot_take_costs_the_others_nothing(status, serve):
    def fragile(handler, question):
        is_bad = any("bb" in query for query in question["query"])
        (answering({}, status) if is_bad else lengths)(handler, question)

    url, seen = serve(fragile)
    first, bad, last = make(url)[0](BATCH)
    assert (first, last) == (3.0, 5.0)
    assert f"answered {status}" in bad.reason
    num_together = 3 if status == 500 else 1
    assert [len(request.question["query"]) for request in seen] == [3] * num_together + [1, 1, 1]


def test_a_service_that_is_down_is_not_asked_about_each_completion(serve):
    url, seen = serve(*[answering({}, 500)] * 3, lengths, answering({}, 502))
    said = make(url)[0](BATCH)
    assert said[0] == 3.0
    assert all("answered 502" in answer.reason for answer in said[1:])
    assert (
        len(seen) == 5
    )  # three times together, one alone, and none after the one that met a service that is down


def test_when_a_request_has_failed_for_good_the_rest_is_asked_about_once(serve):
    url, seen = serve(answering({}, 503))
    reasons(make(url)[0], Batch([""] * 150, ["x"] * 150))
    assert [len(request.question["query"]) for request in seen] == [64, 64, 64, 64, 22]


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b'HTTP/1.1 200 OK\r\n\r\n{"rewards": [1, 2, 3]}',
    ],
)
def test_a_service_that_answers_too_slowly_has_not_answered(start, serve, end):
    url, seen = serve(dribbling(end, start))
    reward, _ = make(url, patience=Patience(timeout=0.4, num_attempts=2))
    assert reasons(reward) == [f"reward {url}: no complete response within 0.4 s; raise --reward-timeout"] * 3
    assert len(seen) == 2


def test_a_service_that_does_not_answer_at_all_is_given_up(serve, end):
    url, seen = serve(hanging(end))
    reward, pauses = make(url, patience=Patience(timeout=0.4, num_attempts=3))
    assert "no complete response within 0.4 s; raise --reward-timeout" in reasons(reward)[0]
    assert len(seen) == 3
    assert len(pauses) == 2


def test_where_nobody_listens_it_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reward, pauses = make(f"http://127.0.0.1:{port}/")
    assert "ConnectionRefusedError" in reasons(reward)[0]
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Service is starting", "gave an answer that is not JSON: 'Service is starting'"),
        (b"\xff\x00\x1b[2J", "gave an answer that is not JSON: '�\\x00\\x1b[2J'"),
        (b"[" * 100_000, "gave an answer that is not JSON: '[[["),
        ([1.0, 2.0, 3.0], "expected an answer of {\"rewards\": […]}, got '[1.0, 2.0, 3.0]'"),
        ({"reward": [1.0]}, 'expected an answer of {"rewards": […]}, got \'{"reward": [1.0]}\''),
        ({"rewards": 1.0}, 'expected an answer of {"rewards": […]}'),
    ],
)
def test_garbage_is_told_of_as_what_it_is(content, reason, serve):
    url, _ = serve(answering(content))
    assert reasons(make(url)[0])[0].startswith(f"reward {url}: {reason}")


def test_an_answer_with_a_wrong_count_is_garbage(serve):
    url, seen = serve(answering({"rewards": [1.0, 2.0]}))
    said = reasons(make(url)[0])
    assert said == [f"reward {url}: expected 1 numbers, one per completion, got 2"] * 3
    assert len(seen) == 6  # three times together, then each alone


def test_an_answer_that_never_ends_is_not_read_to_its_end(serve, monkeypatch):
    monkeypatch.setattr(http, "_LARGEST", 1000)
    url, _ = serve(answering(b" " * 5000))
    assert "gave an answer of more than 1,000 bytes" in reasons(make(url)[0])[0]


def test_an_answer_that_is_cut_short_is_garbage(serve):
    url, _ = serve(answering(b'{"rewards": [1, 2', Content_Length="500"))
    assert "not JSON" in reasons(make(url, patience=Patience(5.0, 1))[0])[0]


def test_https_is_spoken_to_an_address_that_says_so(serve):
    url, seen = serve(lengths)
    reward, _ = make(url.replace("http:", "https:"))
    assert "SSL" in reasons(reward)[0]
    assert seen == []


def test_the_token_is_sent_and_never_shown(serve, monkeypatch):
    def repeating(handler, _question):
        token = handler.headers["Authorization"]
        answering({"rewards": [token], "detail": token}, 200 if len(seen) > 1 else 403)(handler, None)

    url, seen = serve(repeating)
    monkeypatch.setenv("KLIMB_REWARD_TOKEN", TOKEN)
    (reward,) = load_rewards([url]).rewards
    batch = Batch(["p"], ["a"])
    for _ in range(2):
        rewards = WeightedSum([reward])(batch)
        assert TOKEN not in rewards.failures[0].reason
        assert "Bearer ***" in rewards.failures[0].reason
    assert [request.headers["Authorization"] for request in seen] == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize("token", ["", "two words", "line\r\nX-Injected: 1", "clé"])
def test_a_token_that_cannot_be_sent_is_refused_unseen(token):
    with pytest.raises(ConfigError, match="KLIMB_REWARD_TOKEN: expected visible ASCII") as caught:
        HttpReward("http://127.0.0.1/", token=token)
    assert not token or token not in str(caught.value)


def test_an_address_is_loaded_as_a_service_with_the_time_limit(serve, end):
    url, _ = serve(hanging(end))
    (reward,) = load_rewards([url], timeout=0.05).rewards
    reward._pause = lambda _seconds: None
    assert "within 0.05 s" in reasons(reward)[0]


def test_a_run_learns_from_a_service_that_fails_now_and_then(
    serve, model_folder, prompts_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("KLIMB_REWARD_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    url, seen = serve(lengths, answering({}, 500), lengths, hanging_up, lengths)
    options = {
        "model": str(model_folder),
        "prompts": prompts_file,
        "reward": (url,),
        "out": tmp_path / "run",
        "prompts_per_step": 2,
        "completions_per_prompt": 2,
        "eval_completions_per_prompt": 1,
        "max_new_tokens": 3,
        "num_steps": 2,
    }
    screen = io.StringIO()
    train(TrainConfig(**options), Display(Console(file=screen, width=200)))
    assert len(seen) >= 6
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["reward_failures"] for row in metrics] == [0, 0]
    assert all(math.isfinite(row["rewards"][url]) for row in metrics)
    written = [file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in content for content in written)
    assert TOKEN not in screen.getvalue()


def test_a_run_whose_service_has_gone_stops_and_says_what_it_met(
    serve, model_folder, prompts_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    url, _ = serve(lengths, lengths, lengths, answering({}, 503))
    config = TrainConfig(
        model=str(model_folder),
        prompts=prompts_file,
        reward=(url,),
        out=tmp_path / "run",
        prompts_per_step=2,
        completions_per_prompt=2,
        eval_completions_per_prompt=1,
        max_new_tokens=3,
        num_steps=20,
    )
    with pytest.raises(KlimbError, match=rf"reward {url}: answered 503 .*, at completion 0 of 4: .*; 4 of 4"):
        train(config, Display(Console(file=io.StringIO())))
    checkpoints = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert len(checkpoints) == 1
