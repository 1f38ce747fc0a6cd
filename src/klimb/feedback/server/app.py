"""The comparison page's application: its routes, and what they answer."""

import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from klimb.config.serving import ServeOptions, clean_name
from klimb.errors import AlreadyJudgedError, StoreError
from klimb.feedback.export import FORMS, export_content
from klimb.feedback.records import Agreement, Answer, Choice
from klimb.feedback.server.blind import left_of, mark_of, show_question
from klimb.feedback.server.guard import Guard, refuse, set_cookie
from klimb.feedback.server.markdown import show_markdown
from klimb.feedback.server.pages import ASSETS, read_page
from klimb.feedback.server.results import show_results
from klimb.feedback.store.store import Store

_AGREEMENT_AGE = 10.0  # seconds for which a measured agreement is shown
_LARGEST_ID = 2**31 - 1

Stage = Literal["open", "coming", "paused", "over"]
"""For a rater with no pair left: open, a pair that another rater skips may still come; coming, the run will add pairs;
paused, it was stopped and adds pairs once it is resumed; over, no pair will come."""


@dataclass(frozen=True)
class Notes:
    """What the page shows beside the pairs, and what it lets raters do.

    Attributes:
        rest: The message for a rater with no pair left, and whether more pairs may come.
        drawn: How many more pairs are being drawn; "" hides it.
        learned: How good a reward is that is learned from the judgements so far; "" hides it.
        guidelines: What raters should look for, in Markdown; "" hides it.
        undo: Takes back a rater's newest judgement, and returns whether it did, and if not the reason; the store does
            where None.
    """

    rest: Callable[[], tuple[str, Stage]] = lambda: ("All that you said is saved.", "open")
    drawn: Callable[[], str] = lambda: ""
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
        """All judgements, for the owner."""
        return HTMLResponse(show_results(self._store, self._options.per_pair, page))

    def export(self, form: str) -> Response:
        """All judgements, as a file."""
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
        is_closed = stage in ("paused", "over")
        question = None if is_closed else self._store.next_question(rater, per_pair=per_pair)
        progress = self._store.progress(rater, per_pair=per_pair)
        agreement = self._measured_agreement()
        return {
            "rest": {"note": note, "stage": stage},
            "drawn": self._notes.drawn(),
            "learned": self._notes.learned(),
            "guidelines": self._guidelines,
            "rater": rater,
            "store": self._store.mark,
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
