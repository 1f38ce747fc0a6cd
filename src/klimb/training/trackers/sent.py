"""Records which points were sent to a tracker, so that a resumed run does not send them twice."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klimb.rl.metrics import TIMED

SENT = "tracked.jsonl"
"""The file in a run's folder with a line for each step and each evaluation that was sent to a tracker."""


class SentPoints:
    """The points that one tracker has of a run.

    A crash loses the steps since the last checkpoint, and the resumed run takes them again. Most trackers cannot take
    a point back, so a point with the same numbers is not sent again; one with other numbers is, since it is what the
    run really did.

    Args:
        folder: The run's folder.
        tracker: The tracker's name.
    """

    def __init__(self, folder: Path, tracker: str) -> None:
        self._file, self._tracker = folder / SENT, tracker
        self._digests = _read(self._file, tracker)

    def has(self, point: str, content: object) -> bool:
        """Whether a point of this name and content was sent.

        Args:
            point: Its name, one for each step and each evaluation.
            content: Its numbers, as JSON types.
        """
        return self._digests.get(point) == _digest(content)

    def add(self, point: str, content: object) -> None:
        """Record that a point was sent."""
        self._digests[point] = _digest(content)
        line = {"tracker": self._tracker, "point": point, "sha256": self._digests[point]}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def reproducible(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a step that are the same when it is taken again.

    Example:
        >>> reproducible({"step": 3, "reward": 0.5, "seconds": {"sampling": 1.5}})
        {'step': 3, 'reward': 0.5}
    """
    return {name: value for name, value in metrics.items() if name not in TIMED}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Path, tracker: str) -> dict[str, str]:
    """Read the last digest of each point; a line that a crash cut off counts as not there."""
    digests: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return digests
    for line in lines:
        try:
            found = json.loads(line)
            if found["tracker"] == tracker:
                digests[str(found["point"])] = str(found["sha256"])
        except (ValueError, TypeError, KeyError):
            continue
    return digests
