"""Where a run or a reward may be published: the trackers by name, and names of repositories on the hub."""

import re

from klimb.errors import ConfigError

TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow")
"""Names of the trackers; each is also the name of its extra and of its library."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST = 96  # characters of a repository's name


def require_repository(name: str) -> None:
    """Raise unless a name is one that a repository on the hub may have: OWNER/NAME.

    Raises:
        ConfigError: It is not.
    """
    is_plain = "--" not in name and ".." not in name and not name.endswith((".", "-", ".git"))
    if not (_REPOSITORY.fullmatch(name) and is_plain and len(name) <= _LONGEST):
        raise ConfigError(f"push_to_hub: expected the name of a repository, OWNER/NAME, got {name!r}")
