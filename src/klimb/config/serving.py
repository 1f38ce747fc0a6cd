"""The options of the comparison page, checked before anything is served."""

import ipaddress
import os
import re
import secrets
import unicodedata
from dataclasses import dataclass, replace

from klimb.errors import ConfigError

_RATER_TOKEN, _OWNER_TOKEN = "KLIMB_RATER_TOKEN", "KLIMB_OWNER_TOKEN"  # of the environment
_MAX_NAME = 80  # characters; as wide as the store's column
_TOKEN = re.compile(r"[A-Za-z0-9_.~-]{16,200}")  # goes into a link as it stands


@dataclass(frozen=True)
class ServeOptions:
    """Where the comparison page is served, and to whom."""

    host: str = "127.0.0.1"
    """Address to listen on. On any but a loopback one, raters and owner need the links that are printed."""

    port: int = 8321
    """Port to listen on."""

    rater: str | None = None
    """Rater's name, if only one person judges, on this machine; by default the page asks for a name."""

    per_pair: int = 1
    """Number of different people who judge each pair."""

    rater_token: str | None = None
    """What the raters' link ends in, at least 16 letters and digits; made up where one is needed."""

    owner_token: str | None = None
    """What the owner's link ends in, for results and exports; made up where one is needed."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port: expected a number from 1 to 65535, got {self.port}")
        if self.per_pair < 1:
            raise ConfigError(f"per_pair: expected at least 1, got {self.per_pair}")
        for name in ("rater_token", "owner_token"):
            token = getattr(self, name)
            if token is not None and not _TOKEN.fullmatch(token):
                raise ConfigError(f"{name}: expected 16 to 200 letters, digits, and any of - _ . ~")
        if self.rater_token is not None and self.rater_token == self.owner_token:
            raise ConfigError("owner_token: must differ from rater_token, or raters would see the results")
        if self.rater is not None and clean_name(self.rater) is None:
            raise ConfigError(f"rater: expected 1 to {_MAX_NAME} printable characters, got {self.rater!r}")
        if self.rater is not None and self.needs_tokens:
            raise ConfigError(
                "rater: expected no name if others may open the page; leave it out, and the page asks each rater for "
                "a name"
            )

    @property
    def is_local(self) -> bool:
        """Whether no other machine can reach the address."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_tokens(self) -> bool:
        """Whether nobody is let in without a link: on the network, or where a token was chosen."""
        return not self.is_local or self.rater_token is not None or self.owner_token is not None

    def with_environment(self) -> "ServeOptions":
        """Take tokens that were not given from the environment, so that links survive a restart.

        Where one person with a name judges on this machine, there are no links, and nothing is taken.
        """
        if self.rater is not None:
            return self
        return replace(
            self,
            rater_token=self.rater_token or os.environ.get(_RATER_TOKEN) or None,
            owner_token=self.owner_token or os.environ.get(_OWNER_TOKEN) or None,
        )

    def with_tokens(self) -> "ServeOptions":
        """Make up the tokens that are needed and were not given."""
        if not self.needs_tokens:
            return self
        return replace(
            self,
            rater_token=self.rater_token or secrets.token_urlsafe(32),
            owner_token=self.owner_token or secrets.token_urlsafe(32),
        )


def clean_name(name: str) -> str | None:
    """A rater's name in the one form in which it is kept; None where it cannot be one."""
    name = unicodedata.normalize("NFC", name.strip())
    return name if 1 <= len(name) <= _MAX_NAME and name.isprintable() else None
