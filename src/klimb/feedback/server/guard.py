"""Access control of the comparison page's server.

On this machine everything is allowed, but only to pages of the server itself; elsewhere raters and owner each come with
a link, whose token becomes a cookie. What is not listed here as a rater's is the owner's.
"""

import hmac
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klimb.config.serving import ServeOptions
from klimb.feedback.server.pages import ASSETS, fill_page

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every answer."""

MAX_BODY = 64 * 1024
"""Bytes of a request that are read."""

COOKIE_AGE = 30 * 24 * 3600
"""Seconds for which a browser keeps a cookie."""

_ENTRANCES = ("/", "/results")  # pages that a link with a token may lead to
_FOR_RATERS = frozenset({"/", "/api/next", "/api/judgements", "/api/undo", "/api/rater"})
_FOR_ALL = frozenset(f"/static/{name}" for name in ASSETS)
_ASK_FOR_LINK = "Open the link that you were given; it ends in ?token= and a long word."


class Guard:
    """ASGI middleware that refuses what is not allowed, and puts `HEADERS` on every answer.

    Args:
        app: What is guarded.
        options: Who may do what; with its tokens.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app = app
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                kept = [pair for pair in message["headers"] if pair[0] not in dict(own)]
                message = {**message, "headers": kept + own}
            await send(message)

        request = Request(scope)
        answer = self._refusal(request) or self._entry(request)
        body = b""
        if answer is None:
            read = await _read_body(receive)
            body = read or b""
            answer = _too_large(request) if read is None else None
        if answer is not None:
            await answer(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, _replay(body, receive), send_with_headers)
        except Exception:  # said to the browser here, with the headers, and to the log further up
            if not has_started:
                failure = refuse(request, 500, "Something went wrong", "The server's log says what.")
                await failure(scope, receive, send_with_headers)
            raise

    def _refusal(self, request: Request) -> Response | None:
        if not self._options.needs_tokens and not self._is_own_host(request):
            return refuse(
                request,
                421,
                "Not this address",
                "This page is served only to this machine: open it by the address http://127.0.0.1 or localhost.",
            )
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return _too_large(request)
        if request.method not in ("GET", "HEAD") or request.scope["path"].startswith("/api/"):
            return _foreign(request)
        return None

    def _is_own_host(self, request: Request) -> bool:
        """Against DNS rebinding: a stranger's name that leads to this machine."""
        try:
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname
        except ValueError:
            return False
        return name in {"localhost", "127.0.0.1", "::1", self._options.host.lower()}

    def _entry(self, request: Request) -> Response | None:
        """Let in by cookie or link; None where the request may go on."""
        path = request.scope["path"]
        if not self._options.needs_tokens or path in _FOR_ALL:
            return None
        token = request.query_params.get("token")
        is_link = token is not None and path in _ENTRANCES and request.method == "GET"
        role = self._role_of(token if is_link else request.cookies.get(self._cookie, ""))
        if role is None:
            return refuse(request, 401, "A link is needed", _ASK_FOR_LINK)
        if role == "rater" and path not in _FOR_RATERS:
            return refuse(
                request,
                403,
                "Not for raters",
                "Only the person who runs the study can open results and exports.",
            )
        return self._exchange(request, str(token), path) if is_link else None

    def _exchange(self, request: Request, token: str, path: str) -> Response:
        """Trade a link's token for a cookie, and lead on to the path without it."""
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # A strict cookie does not travel on a redirect that another site's link has begun.
            page = fill_page("notice.html.jinja", title="Welcome", text="One moment.", refresh=path)
            answer: Response = HTMLResponse(page)
        else:
            answer = RedirectResponse(path, 303)
        set_cookie(request, answer, self._cookie, token)
        return answer

    @property
    def _cookie(self) -> str:
        return f"klimb-access-{self._options.port}"

    def _role_of(self, token: str | None) -> str | None:
        roles = (("owner", self._options.owner_token), ("rater", self._options.rater_token))
        given = (token or "").encode(errors="replace")
        for role, known in roles:
            if known is not None and hmac.compare_digest(given, known.encode()):
                return role
        return None


def refuse(request: Request, status: int, title: str, text: str) -> Response:
    """Say no: to the page's script in JSON, to a person on a page."""
    if request.scope["path"].startswith("/api/"):
        return JSONResponse({"error": f"{title}. {text}"}, status)
    return HTMLResponse(fill_page("notice.html.jinja", title=title, text=text, refresh=""), status)


def set_cookie(request: Request, answer: Response, name: str, value: str) -> None:
    """Set a cookie that no script reads and no other site sends."""
    is_encrypted = request.scope["scheme"] == "https"
    answer.set_cookie(
        name, value, max_age=COOKIE_AGE, httponly=True, samesite="strict", secure=is_encrypted, path="/"
    )


def _foreign(request: Request) -> Response | None:
    """Refuse what another site's page sends, and forms, which any site could send."""
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site") or not _is_own_origin(request):
        return refuse(request, 403, "Refused", "This was sent by a page of another site.")
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if request.method == "POST" and media_type != "application/json":
        return refuse(request, 415, "Refused", "Expected the content type application/json.")
    return None


def _is_own_origin(request: Request) -> bool:
    origin = request.headers.get("origin")
    if origin is None:
        return True
    _, _, place = origin.partition("://")
    return place.lower() == request.headers.get("host", "").lower()


def _too_large(request: Request) -> Response:
    return refuse(request, 413, "Too large", f"At most {MAX_BODY // 1024} KiB are taken.")


async def _read_body(receive: Receive) -> bytes | None:
    """Read a request's body; None where it is larger than is taken."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give out a body that was read, and then whatever else comes."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
