"""A reward that is an HTTP service, asked as OpenRLHF asks its remote reward models.

POST {"query": […], "prompts": […], "labels": […]} → {"rewards": […]}, or {"scores": […]}, one entry a completion.
"""

import http.client
import json
import math
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from secrets import SystemRandom
from threading import Event, Timer
from typing import Any
from urllib.parse import urlsplit

from klimb.errors import ConfigError, RewardError
from klimb.reward.address import TOKEN_VARIABLE, refuse_secrets
from klimb.reward.failures import Answer, Failed, answers
from klimb.reward.reward import Batch

_AT_ONCE = 64  # completions in a request
_LARGEST = 1 << 24  # bytes of an answer: 64 numbers take a few hundred
_LONGEST_EXCERPT = 100  # characters of an answer in a message
_COULD_BE_ONE = (400, 413, 422, 500)  # statuses that one text may be the reason of
_PASSING = (408, 425, 429)  # statuses that may pass, besides 500 and above
_HIDDEN = "***"


@dataclass(frozen=True)
class Patience:
    """How long a service is waited for.

    Attributes:
        timeout: Seconds from connecting to the end of the answer.
        num_attempts: How often the same is asked before it has failed.
        first_wait: Seconds before the second attempt, doubled before each one after it; half of it to all of it is
            waited, by chance, so that several runs do not come back at once.
        longest_wait: Seconds that are never waited longer than.
    """

    timeout: float = 60.0
    num_attempts: int = 4
    first_wait: float = 1.0
    longest_wait: float = 30.0


class HttpReward:
    """Asks a service in requests of at most 64 completions.

    What goes wrong in passing (no connection, no answer in time, a status of 429 or of 500 and above, an answer that
    makes no sense) is asked again. Where one text may be the reason, the completions of the request are then asked
    about one by one, once. When a request has failed for good, the rest of the batch is asked about once. Redirects
    are not followed, and no proxy is used.

    Args:
        url: The service's address, without any secret.
        token: Is sent as `Authorization: Bearer …`.
        patience: How long it is waited for.
        pause: Waits for so many seconds; `time.sleep` where None.

    Raises:
        ConfigError: The address has a secret in it or is none, or the token cannot be sent.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        patience: Patience | None = None,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        refuse_secrets([url])
        self.name = url
        self._patience = patience or Patience()
        self._pause = pause or time.sleep
        self._token = token
        self._headers = {"Content-Type": "application/json", "User-Agent": "klimb"}
        if token is not None:
            if not token or not _is_visible(token):
                raise ConfigError(f"{TOKEN_VARIABLE}: expected visible ASCII characters without spaces")
            self._headers["Authorization"] = f"Bearer {token}"
        self._is_secure, self._host, self._port, self._target = _address(url)
        self._trust = ssl.create_default_context() if self._is_secure else None

    def __call__(self, batch: Batch) -> list[Answer]:
        """Judge a batch; what cannot be judged is `Failed`.

        Raises:
            RewardError: Prompts are chat messages, and there is no policy whose chat template makes them text.
        """
        if batch.rendered is None and not all(isinstance(prompt, str) for prompt in batch.prompts):
            raise RewardError(
                f"reward {self.name}: a service is sent text, and chat messages become text by a policy's chat "
                "template, which is not at hand here: use prompts that are text"
            )
        said: list[Answer] = []
        num_attempts = self._patience.num_attempts
        for first in range(0, len(batch.texts), _AT_ONCE):
            part = batch.rows(first, _AT_ONCE)
            try:
                said += self._judge(part, num_attempts)
                num_attempts = self._patience.num_attempts
            except _ServiceError as error:
                said += self._judge_singly(part, error)
                num_attempts = 1
        return said

    def _judge(self, batch: Batch, num_attempts: int) -> list[Answer]:
        """Ask until there is an answer, so many times at most."""
        attempt = 1
        while True:
            try:
                return self._read(self._post(_question(batch)), len(batch.texts))
            except _ServiceError as error:
                if not error.may_pass or attempt == num_attempts:
                    raise
            self._pause(self._wait(attempt))
            attempt += 1

    def _judge_singly(self, batch: Batch, error: "_ServiceError") -> list[Answer]:
        """Ask about each completion alone, as long as one text may be the reason for what goes wrong."""
        said: list[Answer] = []
        num_texts = len(batch.texts)
        while error.may_be_one and num_texts > 1 and len(said) < num_texts:
            try:
                said += self._judge(batch.rows(len(said), 1), 1)
            except _ServiceError as latest:
                error = latest
                said.append(Failed(str(latest)))
        return said + [Failed(str(error))] * (num_texts - len(said))

    def _wait(self, attempt: int) -> float:
        longest = min(self._patience.first_wait * 2 ** (attempt - 1), self._patience.longest_wait)
        return longest * SystemRandom().uniform(0.5, 1.0)

    def _post(self, body: bytes) -> bytes:
        """Send a request and return the whole answer to it."""
        connection = self._connection()
        until = time.monotonic() + self._patience.timeout
        is_late = Event()
        try:
            connection.connect()
            with _shut_down_at(connection.sock, until, is_late):
                connection.request("POST", self._target, body, self._headers)
                with connection.getresponse() as response:
                    content = response.read(_LARGEST + 1)
        except TimeoutError as error:
            raise self._late() from error
        except (OSError, http.client.HTTPException) as error:
            raise (
                self._late() if is_late.is_set() else self._error(f"{type(error).__name__}: {error}")
            ) from error
        finally:
            connection.close()
        if is_late.is_set():
            raise self._late()
        self._check_status(response, content)
        return content

    def _connection(self) -> http.client.HTTPConnection:
        timeout = self._patience.timeout
        if self._trust is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._trust)

    def _check_status(self, response: http.client.HTTPResponse, content: bytes) -> None:
        status = response.status
        if 300 <= status < 400:
            raise self._error(f"answered {status}, a redirect, which is not followed", may_pass=False)
        if not 200 <= status < 300:
            raise self._error(
                f"answered {status} {response.reason}: {self._excerpt(content)}",
                may_pass=status >= 500 or status in _PASSING,
                may_be_one=status in _COULD_BE_ONE,
            )
        if len(content) > _LARGEST:
            raise self._error(f"gave an answer of more than {_LARGEST:,} bytes", may_be_one=True)

    def _read(self, content: bytes, num_completions: int) -> list[Answer]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._error(
                f"gave an answer that is not JSON: {self._excerpt(content)}", may_be_one=True
            ) from error
        given = answer.get("rewards", answer.get("scores")) if isinstance(answer, dict) else None
        if not isinstance(given, list):
            raise self._error(
                f'expected an answer of {{"rewards": […]}}, got {self._excerpt(content)}', may_be_one=True
            )
        if len(given) != num_completions:
            raise self._error(
                f"expected {num_completions} numbers, one a completion, got {len(given)}", may_be_one=True
            )
        is_plain = (value is None or isinstance(value, int | float) for value in given)
        shown = [
            value if plain else self._hide(str(value)) for value, plain in zip(given, is_plain, strict=True)
        ]
        return answers(self.name, shown, num_completions)

    def _excerpt(self, content: bytes) -> str:
        text = self._hide(content.decode("utf-8", errors="replace"))
        return repr(text[:_LONGEST_EXCERPT]) + ("…" if len(text) > _LONGEST_EXCERPT else "")

    def _hide(self, text: str) -> str:
        """A service may repeat the token that it was sent."""
        return text if self._token is None else text.replace(self._token, _HIDDEN)

    def _late(self) -> "_ServiceError":
        return self._error(f"gave no whole answer within {self._patience.timeout:g} s")

    def _error(self, what: str, *, may_pass: bool = True, may_be_one: bool = False) -> "_ServiceError":
        return _ServiceError(f"reward {self.name}: {self._hide(what)}", may_pass, may_be_one)


class _ServiceError(Exception):
    """What a service did instead of answering; whether it may pass, and whether one of the texts may be the reason."""

    def __init__(self, reason: str, may_pass: bool, may_be_one: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.may_be_one = may_be_one


@contextmanager
def _shut_down_at(connected: socket.socket, moment: float, is_late: Event) -> Iterator[None]:
    """Shut a connection down at a moment, so that whoever waits for it wakes up: a trickle is no answer."""

    def shut_down() -> None:
        is_late.set()
        with suppress(OSError):  # it was closed meanwhile
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = Timer(max(moment - time.monotonic(), 0.0), shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _address(url: str) -> tuple[bool, str, int | None, str]:
    """Take an address apart: whether it is https, the host, the port, and what is asked for there."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"reward {url}: not an address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not _is_visible(url):
        raise ConfigError(
            f"reward {url}: not an address: expected http://host:port/path, all but ASCII characters written as %XX"
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme == "https", parts.hostname, port, target


def _is_visible(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def _question(batch: Batch) -> bytes:
    prompts = batch.prompts if batch.rendered is None else batch.rendered
    queries = [f"{prompt}{text}" for prompt, text in zip(prompts, batch.texts, strict=True)]
    labels = batch.columns.get("labels", batch.columns.get("label", [None] * len(queries)))
    question = {"query": queries, "prompts": prompts, "labels": [_plain(label) for label in labels]}
    return json.dumps(question, default=str).encode()


def _plain(label: Any) -> Any:
    """A label as JSON has it, which has no number that is not finite."""
    return None if isinstance(label, float) and not math.isfinite(label) else label
