"""The options of the comparison page."""

import pytest

from klimb.config.serving import ServeOptions
from klimb.errors import ConfigError

EVERYWHERE = "0.0.0.0"  # noqa: S104
TOKEN = "t" * 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 0}, r"port: expected a number from 1 to 65535, got 0"),
        ({"per_pair": 0}, r"per_pair: expected at least 1, got 0"),
        ({"rater": "\n"}, r"rater: expected 1 to 80 printable"),
        ({"rater": "anna", "host": EVERYWHERE}, r"rater: expected no name if others may open the page"),
        ({"rater_token": "short"}, r"rater_token: expected 16 to 200"),
        ({"owner_token": "with a space in it"}, r"owner_token: expected 16 to 200"),
        ({"rater_token": TOKEN, "owner_token": TOKEN}, r"owner_token: must differ"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        ServeOptions(**options)


def test_tokens_that_are_made_up_are_long_and_new_each_time():
    made = [ServeOptions(host=EVERYWHERE).with_tokens() for _ in range(2)]
    tokens = {token for options in made for token in (options.rater_token, options.owner_token)}
    assert len(tokens) == 4
    assert min(len(token) for token in tokens if token) >= 40
    assert ServeOptions().with_tokens().rater_token is None


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True),
     (EVERYWHERE, False), ("::", False), ("192.168.1.2", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_only_loopback_addresses_are_local(host, is_local):
    options = ServeOptions(host=host)
    assert options.is_local == is_local
    assert options.needs_tokens == (not is_local)
