"""Rewards named by a URL, and what a URL must not contain."""

from collections.abc import Sequence

from klimb.errors import ConfigError
from klimb.io.show import redact

TOKEN_VARIABLE = "KLIMB_REWARD_TOKEN"  # noqa: S105  the variable's name
"""The environment variable whose value is sent to a reward's service as `Authorization: Bearer …`."""


def is_address(reward: str) -> bool:
    """Whether a reward is named by an address, of whatever kind: something with `://`."""
    return "://" in reward


def refuse_secrets(rewards: Sequence[str]) -> None:
    """Raise if a reward is named by an address with a secret in it: names are written to files and shown.

    Raises:
        ConfigError: One is; it is not repeated as it was given.
    """
    for reward in filter(is_address, rewards):
        shown = redact(reward.partition("#")[0])
        if shown != reward:
            raise ConfigError(
                f"reward {shown} has a password, token or fragment in its address, which would be written to "
                f"config.json, metrics and logs: take it out; what is set as {TOKEN_VARIABLE} in the environment is "
                "sent as 'Authorization: Bearer …' and never written"
            )
