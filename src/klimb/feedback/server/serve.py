"""Serving the comparison page: its address and links, the start, and the end."""

import contextlib
import errno
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from klimb.config.serving import ServeOptions
from klimb.errors import ConfigError
from klimb.feedback.server.app import Notes, Stage, create_app
from klimb.feedback.server.closing import closing_when
from klimb.feedback.store.store import Store

__all__ = [
    "Notes",
    "ServeOptions",
    "create_app",
    "listen",
    "page_address",
    "page_links",
    "quiet_config",
    "serve",
]

_GRACE = 5  # seconds that requests under way are given at the end
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  every address, and this machine's own


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
    """What the page tells raters when a program waits for them and continues once all pairs are judged."""
    if is_done():
        return (
            "All that you said is saved, and the program continues in its terminal. You may close this page.",
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
        raise ConfigError(f"{flags}host {options.host}: no such address ({error.strerror})") from error
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
        "everyone who has a link can open the page; nothing is encrypted, so outside a network that you trust put a "
        "proxy with TLS in front",
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
