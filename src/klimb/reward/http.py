"""A reward that is an HTTP service, asked as OpenRLHF asks its remote reward models.

POST {"query": […], "prompts": […], "labels": […]} → {"rewards": […]}, or {"scores": […]}, one entry a completion.
"""

import json
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from secrets import SystemRandom
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import httpx
import tenacity
from anyio.from_thread import start_blocking_portal

from klimb.config.address import TOKEN_VARIABLE, refuse_secrets
from klimb.errors import ConfigError, RewardError
from klimb.reward.failures import Answer, Failed, answers
from klimb.reward.reward import Batch

_AT_ONCE = 64  # completions in a request
_LARGEST = 1 << 24  # bytes of an answer: 64 numbers take a few hundred
_LONGEST_EXCERPT = 100  # characters of an answer in a message
_COULD_BE_ONE = (400, 413, 422, 500)  # statuses that one text may be the reason of
_PASSING = (408, 425, 429)  # statuses that may pass, besides 500 and above
_HIDDEN = "***"

_Ask: TypeAlias = Callable[[bytes], "_Response"]


@dataclass(frozen=True)
class Patience:
    """How long a service is waited for.

    Attributes:
        timeout: Seconds from connecting to the end of the answer.
        num_attempts: How often the same is asked before it has failed.
        first_wait: Seconds before the second attempt, doubled before each one after it; half of it to all of it is
            waited, by chance, so that several runs do not come back at once.
        longest_wait: Seconds that are never waited longer than, also where the service asks for more (`Retry-After`).
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
    are not followed; proxies and passwords that the environment or ~/.netrc name are not used. Connections are kept
    for the requests of a batch and closed at its end.

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
        # Nothing compressed is asked for: a small answer could become a large one.
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": "klimb",
            "Accept-Encoding": "identity",
        }
        if token is not None:
            if not token or not _is_visible(token):
                raise ConfigError(f"{TOKEN_VARIABLE}: expected visible ASCII characters without spaces")
            self._headers["Authorization"] = f"Bearer {token}"
        _require_address(url)
        self._trust = ssl.create_default_context()

    def __call__(self, batch: Batch) -> list[Answer]:
        """Judge a batch; what cannot be judged is `Failed`.

        Raises:
            RewardError: Prompts are chat messages, and there is no policy whose chat template makes them text.
        """
        if batch.rendered is None and not all(isinstance(prompt, str) for prompt in batch.prompts):
            raise RewardError(
                f"reward {self.name}: a service is sent text, and chat messages become text by a policy's chat "
                "template, which is not available here: use prompts that are text"
            )
        # A loop in a thread of its own: the whole exchange has one deadline, wherever this is called from.
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._client()) as client:
            return self._judge_in_parts(batch, lambda body: portal.call(self._post, client, body))

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(headers=self._headers, verify=self._trust, timeout=None, trust_env=False)  # noqa: S113

    def _judge_in_parts(self, batch: Batch, ask: _Ask) -> list[Answer]:
        said: list[Answer] = []
        num_attempts = self._patience.num_attempts
        for first in range(0, len(batch.texts), _AT_ONCE):
            part = batch.rows(first, _AT_ONCE)
            try:
                said += self._judge(part, ask, num_attempts)
                num_attempts = self._patience.num_attempts
            except _ServiceError as error:
                said += self._judge_singly(part, ask, error)
                num_attempts = 1
        return said

    def _judge(self, batch: Batch, ask: _Ask, num_attempts: int) -> list[Answer]:
        """Ask until there is an answer, so many times at most."""

        def attempt() -> list[Answer]:
            response = ask(_question(batch))
            self._check_status(response)
            return self._read(response.content, len(batch.texts))

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, _ServiceError) and error.may_pass
            ),
            stop=tenacity.stop_after_attempt(num_attempts),
            wait=self._wait,
            sleep=self._pause,
            reraise=True,
        )
        return retrying(attempt)

    def _judge_singly(self, batch: Batch, ask: _Ask, error: "_ServiceError") -> list[Answer]:
        """Ask about each completion alone, as long as one text may be the reason for what goes wrong."""
        said: list[Answer] = []
        num_texts = len(batch.texts)
        while error.may_be_one and num_texts > 1 and len(said) < num_texts:
            try:
                said += self._judge(batch.rows(len(said), 1), ask, 1)
            except _ServiceError as latest:
                error = latest
                said.append(Failed(str(latest)))
        return said + [Failed(str(error))] * (num_texts - len(said))

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt: half to all of a time that doubles, or as long as the service asks for."""
        patience = self._patience
        doubling = tenacity.wait_exponential(multiplier=patience.first_wait, max=patience.longest_wait)
        seconds = doubling(state) * SystemRandom().uniform(0.5, 1.0)
        error = state.outcome.exception() if state.outcome else None
        asked_for = error.retry_after if isinstance(error, _ServiceError) else 0.0
        return max(seconds, min(asked_for, patience.longest_wait))

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> "_Response":
        """Send a request and return the whole answer to it."""
        content = bytearray()
        is_whole = True
        try:
            with anyio.fail_after(self._patience.timeout):
                async with client.stream("POST", self.name, content=body) as response:
                    try:
                        async for chunk in response.aiter_raw():
                            content += chunk
                            if len(content) > _LARGEST:
                                break
                    except httpx.RemoteProtocolError:
                        is_whole = False
        except (TimeoutError, httpx.TimeoutException) as error:
            raise self._error(
                f"no complete response within {self._patience.timeout:g} s; raise --reward-timeout"
            ) from error
        except httpx.RemoteProtocolError as error:
            raise self._error(
                f"connection closed, or not an HTTP server; check the address: {error}"
            ) from error
        except (OSError, httpx.HTTPError) as error:
            raise self._error(_explain(error)) from error
        retry_after = _seconds_asked_for(response.headers.get("Retry-After", ""))
        return _Response(response.status_code, response.reason_phrase, bytes(content), is_whole, retry_after)

    def _check_status(self, response: "_Response") -> None:
        status = response.status
        if 300 <= status < 400:
            raise self._error(f"answered {status}, a redirect, which is not followed", may_pass=False)
        if not 200 <= status < 300:
            raise self._error(
                f"answered {status} {response.reason}: {self._excerpt(response.content)}",
                may_pass=status >= 500 or status in _PASSING,
                may_be_one=status in _COULD_BE_ONE,
                retry_after=response.retry_after,
            )
        if len(response.content) > _LARGEST:
            raise self._error(f"gave an answer of more than {_LARGEST:,} bytes", may_be_one=True)
        if not response.is_whole:
            raise self._error(
                f"gave an answer that is not JSON, it was cut short: {self._excerpt(response.content)}",
                may_be_one=True,
            )

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
                f"expected {num_completions} numbers, one per completion, got {len(given)}", may_be_one=True
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

    def _error(
        self, what: str, *, may_pass: bool = True, may_be_one: bool = False, retry_after: float = 0.0
    ) -> "_ServiceError":
        return _ServiceError(f"reward {self.name}: {self._hide(what)}", may_pass, may_be_one, retry_after)


@dataclass(frozen=True)
class _Response:
    """What came back: the status in numbers and words, the content, whether it is whole, the wait that is asked for."""

    status: int
    reason: str
    content: bytes
    is_whole: bool
    retry_after: float


class _ServiceError(Exception):
    """What a service did instead of answering.

    Attributes:
        may_pass: Whether the same may be answered later.
        may_be_one: Whether one of the texts may be the reason.
        retry_after: Seconds that the service asks us to wait.
    """

    def __init__(self, reason: str, may_pass: bool, may_be_one: bool, retry_after: float) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.may_be_one = may_be_one
        self.retry_after = retry_after


def _explain(error: BaseException) -> str:
    """Name what the system said where it said something, such as that nobody listens; the client's words else."""
    inner: BaseException | None = error
    found = error
    while inner is not None:
        if isinstance(inner, OSError):
            found = inner
        first = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else None
        inner = first or inner.__cause__ or inner.__context__
    return f"{type(found).__name__}: {found}"


def _seconds_asked_for(value: str) -> float:
    """Read what stands in `Retry-After`, seconds or a date; 0 where it cannot be read."""
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    # A date without a zone counts as UTC, which is what HTTP writes.
    seconds = moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)
    return max(seconds.total_seconds(), 0.0)


def _require_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port, httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"reward {url}: not an address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not _is_visible(url):
        raise ConfigError(
            f"reward {url}: not an address: expected http://host:port/path, all but ASCII characters written as %XX"
        )


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
