"""What goes over the wire to a reward service, seen from a bare socket: connections, proxies, compression, waits."""

import asyncio
import gzip
import json
import socket
import threading

import pytest

from klimb.errors import ConfigError
from klimb.reward.failures import Failed
from klimb.reward.http import HttpReward, Patience
from klimb.reward.reward import Batch

BATCH = Batch(["p "] * 3, ["a", "bb", "ccc"])
THREE = b'{"rewards": [1, 2, 3]}'


def http_answer(content, *headers, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", *headers]
    if not any(header.startswith("Transfer-Encoding") for header in headers):
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class Service(threading.Thread):
    """Answers requests with bytes as they are given, the last for ever; notes requests and connections."""

    def __init__(self, answers, family=socket.AF_INET):
        super().__init__(daemon=True)
        self.listening = socket.create_server(
            ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family
        )
        self.answers = answers
        self.requests, self.num_connections, self.num_closed = [], 0, 0
        self.has_closed = threading.Event()
        self.port = self.listening.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                connected, _ = self.listening.accept()
            except OSError:
                return
            self.num_connections += 1
            threading.Thread(target=self.serve, args=(connected,), daemon=True).start()

    def serve(self, connected):
        with connected, connected.makefile("rb") as stream:
            while head := self.read_head(stream):
                length = int(head["content-length"])
                self.requests.append((head, json.loads(stream.read(length))))
                answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                connected.sendall(answer(self.requests[-1][1]) if callable(answer) else answer)
                if b"Connection: close" in (b"" if callable(answer) else answer):
                    return
        self.num_closed += 1
        self.has_closed.set()

    def read_head(self, stream):
        lines = []
        while line := stream.readline().strip():
            lines.append(line.decode())
        return (
            {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            if lines
            else {}
        )


@pytest.fixture
def service():
    services = []

    def start(*answers, **options):
        services.append(Service(answers, **options))
        return services[-1]

    yield start
    for one in services:
        one.listening.close()


def make(service, host="127.0.0.1", **options):
    pauses = []
    options = {"patience": Patience(timeout=5.0, num_attempts=3, first_wait=0.5, longest_wait=8.0)} | options
    return HttpReward(f"http://{host}:{service.port}/", pause=pauses.append, **options), pauses


def test_proxies_and_passwords_of_the_environment_are_not_used(service, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password s3cret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    asked = service(http_answer(THREE))
    assert make(asked)[0](BATCH) == [1.0, 2.0, 3.0]
    ((head, _),) = asked.requests
    assert "authorization" not in head


def test_nothing_compressed_is_asked_for_or_unpacked(service):
    packed = gzip.compress(b" " * 50_000_000)
    asked = service(http_answer(packed, "Content-Encoding: gzip"))
    answers = make(asked)[0](BATCH)
    assert all("gave an answer that is not JSON" in answer.reason for answer in answers)
    assert {head["accept-encoding"] for head, _ in asked.requests} == {"identity"}


def test_the_requests_of_a_batch_share_a_connection_which_is_closed_at_its_end(service):
    asked = service(
        lambda question: http_answer(json.dumps({"rewards": [0.5] * len(question["query"])}).encode())
    )
    num_threads = threading.active_count()
    assert make(asked)[0](Batch([""] * 130, ["x"] * 130)) == [0.5] * 130
    assert len(asked.requests) == 3
    assert asked.num_connections == 1
    assert asked.has_closed.wait(5)
    assert threading.active_count() <= num_threads  # the service's own thread of the connection is gone, too


def test_a_connection_that_the_service_closes_between_requests_is_made_anew(service):
    def closing(count):
        return http_answer(json.dumps({"rewards": [0.5] * count}).encode(), "Connection: close")

    asked = service(closing(64), closing(6))
    assert make(asked)[0](Batch([""] * 70, ["x"] * 70)) == [0.5] * 70
    assert asked.num_connections == 2


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("3", 3.0, 3.0),
        ("0", 0.25, 0.5),
        ("600", 8.0, 8.0),  # never longer than the longest wait
        ("soon", 0.25, 0.5),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 8.0, 8.0),
        ("Thu, 01 Jan 2015 00:00:00 GMT", 0.25, 0.5),
    ],
)
def test_a_service_is_left_alone_as_long_as_it_asks(value, least, most, service):
    busy = http_answer(b"{}", f"Retry-After: {value}", status="429 Too Many Requests")
    reward, pauses = make(service(busy, http_answer(THREE)))
    assert reward(BATCH) == [1.0, 2.0, 3.0]
    (pause,) = pauses
    assert least <= pause <= most


def test_it_can_be_asked_where_an_event_loop_is_running(service):
    reward, _ = make(service(http_answer(THREE)))

    async def in_a_notebook():
        return reward(BATCH)

    assert asyncio.run(in_a_notebook()) == [1.0, 2.0, 3.0]


def test_several_threads_may_ask_at_once(service):
    reward, _ = make(service(http_answer(THREE)))
    found = []
    threads = [threading.Thread(target=lambda: found.append(reward(BATCH))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1.0, 2.0, 3.0]] * 4


def test_chunks_are_put_together_and_an_answer_without_its_last_chunk_is_none(service):
    chunked = "Transfer-Encoding: chunked"
    first = b"8\r\n" + THREE[:8] + b"\r\n"
    rest = f"{len(THREE) - 8:x}".encode() + b"\r\n" + THREE[8:] + b"\r\n"
    assert make(service(http_answer(first + rest + b"0\r\n\r\n", chunked)))[0](BATCH) == [1.0, 2.0, 3.0]
    cut = service(
        http_answer(first + rest, chunked, "Connection: close")
    )  # whole JSON, but its end is missing
    answers = make(cut)[0](BATCH)
    assert all(isinstance(answer, Failed) and "it was cut short" in answer.reason for answer in answers)


def test_what_does_not_speak_http_is_named(service):
    answers = make(service(b"\x15\x03\x01\x00\x02\x02\x0a"))[0](BATCH)  # TLS
    assert ["connection closed, or not an HTTP server" in answer.reason for answer in answers] == [True] * 3


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_an_address_of_ipv6_is_reached(service):
    asked = service(http_answer(THREE), family=socket.AF_INET6)
    assert make(asked, host="[::1]")[0](BATCH) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "url", ["http://", "ftp://h/x", "http://h:99999/", "http://[::1/", "http://h/ü", "http://h/a b"]
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url):
    with pytest.raises(ConfigError, match="not an address"):
        HttpReward(url)


def test_names_as_containers_have_them_are_addresses():
    assert HttpReward("http://reward_server:5000/get_reward").name == "http://reward_server:5000/get_reward"
