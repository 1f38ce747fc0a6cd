"""The trackers by name, and the extras that have their libraries."""

import importlib
import importlib.util
from collections.abc import Sequence

from klimb.errors import MissingExtraError
from klimb.training.trackers.tracker import Tracker

_CLASSES = {
    "trackio": "TrackioTracker",
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandbTracker",
    "mlflow": "MlflowTracker",
}


def require_trackers(names: Sequence[str]) -> None:
    """Raise unless the libraries of these trackers are installed; none is imported.

    Raises:
        MissingExtraError: Some are not; the message has the command that installs them.
    """
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"track: {', '.join(missing)}: not installed: pip install 'klimb[{','.join(missing)}]'"
        )


def make_tracker(name: str) -> Tracker:
    """Make a tracker, which imports its library."""
    return getattr(importlib.import_module(f"klimb.training.trackers.{name}"), _CLASSES[name])()


def _is_installed(library: str) -> bool:
    # A folder ./wandb of earlier runs looks like a package without an origin.
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None
