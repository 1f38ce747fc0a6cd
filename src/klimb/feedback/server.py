"""The comparison page's server: people judge pairs in a browser, and see a judgement saved when it is on the disk."""

import contextlib
import errno
import socket
import threading
import time
import urllib.parse
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from klimb.errors import AlreadyJudgedError, ConfigError, StoreError
from klimb.feedback.blind import left_of, mark_of, show_question
from klimb.feedback.closing import closing_when
from klimb.feedback.export import FORMS, export_content
from klimb.feedback.guard import Guard, refuse, set_cookie
from klimb.feedback.markdown import show_markdown
from klimb.feedback.pages import ASSETS, read_page
from klimb.feedback.records import Agreement, Answer, Choice
from klimb.feedback.results import show_results
from klimb.feedback.serving import ServeOptions, clean_name
from klimb.feedback.store import Store

__all__ = ["ServeOptions", "create_app", "serve"]

_AGREEMENT_AGE = 10.0  # seconds for which a measured agreement is shown
_LARGEST_ID = 2**31 - 1
_GRACE = 5  # seconds that requests under way are given at the end
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  every address, and this machine's own


Stage = Literal["open", "coming", "paused", "over"]
"""For a rater with no pair left: open, a pair that another rater skips may still come; coming, the run will add pairs;
paused, it was stopped and adds pairs once it is resumed; over, no pair will come."""


@dataclass(frozen=True)
class Notes:
    """What the page shows beside the pairs, and what it lets raters do.

    Attributes:
        rest: The message for a rater with no pair left, and whether more pairs may come.
        learned: How good a reward is that is learned from the judgements so far; "" hides it.
        guidelines: What raters should look for, in Markdown; "" hides it.
        undo: Takes back a rater's newest judgement, and returns whether it did, and if not the reason; the store does
            where None.
    """

    rest: Callable[[], tuple[str, Stage]] = lambda: ("All that you said is saved.", "open")
    learned: Callable[[], str] = lambda: ""
    guidelines: str = ""
    undo: Callable[[str], tuple[bool, str]] | None = None


class _Said(BaseModel):
    """A judgement as the page sends it."""

    model_config = ConfigDict(extra="forbid")

    pair_id: Annotated[int, Field(ge=1, le=_LARGEST_ID)]
    preferred: Literal["left", "right", "tie", "both_bad", "skip"]
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    note: Annotated[str, Field(max_length=4000)] = ""
    shown: Annotated[str, Field(max_length=64)] | None = None  # the question's own `shown`


class _Name(BaseModel):
    """Who is judging."""

    model_config = ConfigDict(extra="forbid")

    name: str


class _Desk:
    """What the routes do with a store.

    Args:
        store: Where the pairs and the judgements are.
        options: With the tokens.
        notes: Text that the page shows beside the pairs.
    """

    def __init__(self, store: Store, options: ServeOptions, notes: Notes) -> None:
        self._notes = notes
        self._guidelines = show_markdown(notes.guidelines) if notes.guidelines else ""
        self._store = store
        self._options = options
        self._agreement: Agreement | None = None
        self._measured_at = float("-inf")
        self._measuring = threading.Lock()

    def page(self) -> Response:
        """The page on which pairs are judged."""
        return HTMLResponse(read_page("label.html"))

    def asset(self, name: str) -> Response:
        """A style or script."""
        if name not in ASSETS:
            raise HTTPException(404, f"there is no {name}")
        package, media_type = ASSETS[name]
        return Response(read_page(name, package), media_type=media_type)

    def next(self, request: Request) -> Response:
        """What the rater is asked now; no question where nothing is left, no rater where a name is needed."""
        rater = self._rater_of(request)
        return JSONResponse(self._state(rater) if rater else {"rater": None, "question": None})

    def rater(self, request: Request, name: _Name) -> Response:
        """Take a rater's name."""
        if self._options.rater is not None:
            raise HTTPException(409, f"this page was opened for {self._options.rater}")
        rater = clean_name(name.name)
        if rater is None:
            raise HTTPException(422, "expected a name of 1 to 80 printable characters")
        answer = JSONResponse({"rater": rater})
        set_cookie(request, answer, self._cookie, urllib.parse.quote(rater, safe=""))
        return answer

    def judge(self, request: Request, said: _Said) -> Response:
        """Write a judgement down, and ask the next question."""
        rater = self._require_rater(request)
        question = self._store.question(said.pair_id)
        if question is None:
            return self._conflict(rater, f"there is no pair {said.pair_id} any more; nothing was saved")
        if said.shown not in (None, mark_of(question, rater)):
            return self._conflict(
                rater, "that pair was shown to another rater or from another store; nothing was saved"
            )
        left = left_of(question, rater)
        sides: dict[str, Choice] = {"left": left, "right": "second" if left == "first" else "first"}
        neither: dict[str, Choice] = {"tie": "tie", "both_bad": "both_bad", "skip": "skip"}
        answer = Answer(
            pair_id=said.pair_id,
            rater=rater,
            preferred=(sides | neither)[said.preferred],
            key=said.key,
            shown_left=left,
            seconds=said.seconds,
            note=said.note.strip(),
        )
        try:
            number = self._store.judge(answer)
        except AlreadyJudgedError as error:
            return self._conflict(rater, str(error))
        return JSONResponse({"saved": number} | self._state(rater))

    def undo(self, request: Request) -> Response:
        """Take the rater's newest judgement back, and ask about its pair again."""
        rater = self._require_rater(request)
        if self._notes.undo is None:
            is_undone, reason = self._store.undo(rater) is not None, ""
        else:
            is_undone, reason = self._notes.undo(rater)
        return JSONResponse({"undone": is_undone, "reason": reason} | self._state(rater))

    def results(self, page: Annotated[int, Query(ge=1, le=_LARGEST_ID)] = 1) -> Response:
        """All that was said, for the owner."""
        return HTMLResponse(show_results(self._store, self._options.per_pair, page))

    def export(self, form: str) -> Response:
        """All that was said, as a file."""
        if form not in FORMS:
            raise HTTPException(404, f"there is no export {form!r}; there are {', '.join(FORMS)}")
        _, suffix = FORMS[form]
        media_type = "application/json" if suffix == ".json" else "application/jsonl"
        attached = {"Content-Disposition": f'attachment; filename="klimb-{form}{suffix}"'}
        content = export_content(self._store, form)
        return Response(content, media_type=media_type, headers=attached)

    @property
    def _cookie(self) -> str:
        return f"klimb-rater-{self._options.port}"

    def _rater_of(self, request: Request) -> str | None:
        if self._options.rater is not None:
            return clean_name(self._options.rater)
        return clean_name(urllib.parse.unquote(request.cookies.get(self._cookie, "")))

    def _require_rater(self, request: Request) -> str:
        rater = self._rater_of(request)
        if rater is None:
            raise HTTPException(403, "say who you are first; reload the page to be asked")
        return rater

    def _conflict(self, rater: str, message: str) -> Response:
        return JSONResponse({"error": message} | self._state(rater), 409)

    def _state(self, rater: str) -> dict[str, Any]:
        per_pair = self._options.per_pair
        note, stage = self._notes.rest()
        question = (
            None if stage in ("paused", "over") else self._store.next_question(rater, per_pair=per_pair)
        )
        progress = self._store.progress(rater, per_pair=per_pair)
        agreement = self._measured_agreement()
        return {
            "rest": {"note": note, "stage": stage},
            "learned": self._notes.learned(),
            "guidelines": self._guidelines,
            "rater": rater,
            "may_rename": self._options.rater is None,
            "question": None if question is None else show_question(question, rater),
            "progress": {
                "num_pairs": progress.num_pairs,
                "num_done": progress.num_done,
                "num_own": progress.num_own,
                "median_seconds": progress.median_seconds,
                "agreement": None if agreement is None else agreement.share,
                "num_compared": 0 if agreement is None else agreement.num_pairs,
            },
        }

    def _measured_agreement(self) -> Agreement | None:
        """Measured anew every few seconds only, by one thread: it reads all judgements."""
        if time.monotonic() - self._measured_at > _AGREEMENT_AGE and self._measuring.acquire(blocking=False):
            try:
                self._agreement = self._store.agreement()
                self._measured_at = time.monotonic()
            finally:
                self._measuring.release()
        return self._agreement


def create_app(store: Store, options: ServeOptions, notes: Notes | None = None) -> FastAPI:
    """Make the server of the comparison page.

    Args:
        store: Where the pairs are, and the judgements go.
        options: Tokens that it needs and lacks are made up; `serve` makes them before, to print the links.
        notes: Text that the page shows beside the pairs.
    """
    options = options.with_tokens()
    desk = _Desk(store, options, notes or Notes())
    app = FastAPI(title="klimb", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    routes: list[tuple[str, str, Callable[..., Response]]] = [
        ("GET", "/", desk.page),
        ("GET", "/static/{name}", desk.asset),
        ("GET", "/api/next", desk.next),
        ("POST", "/api/rater", desk.rater),
        ("POST", "/api/judgements", desk.judge),
        ("POST", "/api/undo", desk.undo),
        ("GET", "/results", desk.results),
        ("GET", "/export/{form}", desk.export),
    ]
    for method, path, endpoint in routes:
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    app.add_exception_handler(StoreError, _store_failed)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(AnyHTTPException, _not_possible)
    app.add_middleware(Guard, options=options)
    return app


def serve(
    store: Store,
    options: ServeOptions,
    say: Callable[[str], None] = print,
    *,
    open_browser: bool = False,
    until: Callable[[], bool] | None = None,
    notes: Notes | None = None,
) -> None:
    """Serve the comparison page until Ctrl-C, or until all that is wanted is judged.

    Args:
        store: Where the pairs are, and the judgements go.
        options: Where to listen, and who is let in.
        say: Told the links, and the end.
        open_browser: Whether to show the page in this machine's browser.
        until: Says whether all is judged; the page is closed a few seconds after, in which the last may be undone.
        notes: Text that the page shows beside the pairs.

    Raises:
        ConfigError: The address cannot be listened on, or the port is in use.
    """
    options = options.with_tokens()
    notes = notes or Notes()
    if until is not None:
        notes = replace(notes, rest=lambda: _until(until))
    app = create_app(store, options, notes)
    with listen(options) as listening:
        progress = store.progress("", per_pair=options.per_pair)
        say(f"{store.where}: {progress.num_done:,} of {progress.num_pairs:,} pairs judged")
        for line in page_links(options):
            say(line)
        say("Ctrl-C ends it; what the page shows as saved is in the store")
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(page_address(options),), daemon=True).start()
        server = uvicorn.Server(quiet_config(app))
        with (
            contextlib.suppress(KeyboardInterrupt),  # uvicorn raises it once more when it has shut down
            closing_when(until, lambda: setattr(server, "should_exit", True)),
        ):
            server.run(sockets=[listening])
    say(f"stopped; the judgements are in {store.where}")


def _until(is_done: Callable[[], bool]) -> tuple[str, Stage]:
    """What raters are told where a program waits for them, and goes on by itself once all is judged."""
    if is_done():
        return (
            "All that you said is saved, and the program goes on in its terminal. You may close this page.",
            "over",
        )
    return "All that you said is saved.", "open"


def listen(options: ServeOptions, flags: str = "--") -> socket.socket:
    """Take the address of the page.

    Args:
        options: With host and port.
        flags: What the command's own options for these begin with, for messages.

    Raises:
        ConfigError: It cannot be listened on, or the port is in use.
    """
    try:
        family, *_, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=256)
    except socket.gaierror as error:
        raise ConfigError(
            f"{flags}host {options.host}: there is no such address ({error.strerror})"
        ) from error
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: f"port {options.port} is in use; choose another with {flags}port",
            errno.EACCES: f"port {options.port} may not be used; choose one above 1023 with {flags}port",
            errno.EADDRNOTAVAIL: f"{flags}host {options.host}: this machine does not have that address",
        }
        if error.errno not in reasons:
            raise
        raise ConfigError(reasons[error.errno]) from error


def page_links(options: ServeOptions) -> list[str]:
    """The links to the page, in lines for whoever started it."""
    if not options.needs_tokens:
        return [
            f"judge:   {_address(options, options.host)}/",
            f"results: {_address(options, options.host)}/results",
        ]
    address = _address(options, _reachable_name() if options.host in _EVERYWHERE else options.host)
    return [
        f"for raters:            {address}/{_ending(options.rater_token)}",
        f"for you, with results: {address}/results{_ending(options.owner_token)}",
        "whoever has a link is let in; nothing is encrypted, so outside a network that you trust put a proxy with "
        "TLS in front",
    ]


def page_address(options: ServeOptions) -> str:
    """The page's address in this machine's browser, with the owner's token."""
    return f"{_address(options, _EVERYWHERE.get(options.host, options.host))}/{_ending(options.owner_token)}"


def quiet_config(app: FastAPI) -> uvicorn.Config:
    """How the page is served: without a line for each request."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE,
    )


def _ending(token: str | None) -> str:
    return "" if token is None else f"?token={token}"


def _address(options: ServeOptions, host: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{options.port}"


def _reachable_name() -> str:
    """This machine's address on its network; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _store_failed(request: Request, error: Exception) -> Response:
    return _tell(request, 503, str(error))


def _not_understood(request: Request, error: Exception) -> Response:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    said = [f"{'.'.join(map(str, problem['loc'][1:])) or 'body'}: {problem['msg']}" for problem in problems]
    return _tell(request, 422, "; ".join(said))


def _not_possible(request: Request, error: Exception) -> Response:
    status, detail = (error.status_code, error.detail) if isinstance(error, AnyHTTPException) else (500, "")
    return _tell(request, status, detail)


def _tell(request: Request, status: int, message: str) -> Response:
    if request.scope["path"].startswith("/api/"):
        return JSONResponse({"error": message}, status)
    return refuse(request, status, "That did not work", message)
