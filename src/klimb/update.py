"""The definition for people with files: arrays in, new weights out."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from klimb.core.update import rlhf_weight_update
from klimb.errors import DataError
from klimb.files import write_file

ARRAYS = ("weights", "rewards", "policy_log_probs", "ref_log_probs", "log_prob_grads")
"""The arrays of an update, named as the arguments of `rlhf_weight_update`."""


def update_file(step: Path, beta: float, lr: float, output: Path) -> Float[np.ndarray, " P"]:
    """Read the arrays of one update from a .npz file and write the new weights.

    Args:
        step: A .npz file whose arrays have the names of `rlhf_weight_update`'s arguments.
        beta: KL coefficient, reward units a nat.
        lr: Learning rate.
        output: The .npy file to write; one that exists is replaced, all at once.

    Returns:
        The new weights, (P,).

    Raises:
        DataError: The file is missing, not a .npz file, or lacks an array.
        ArgumentError: The arrays do not fit each other; nothing is written.
    """
    updated = rlhf_weight_update(**_read(step), beta=beta, lr=lr)
    buffer = io.BytesIO()
    np.save(buffer, updated, allow_pickle=False)
    try:
        write_file(output, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{output}: cannot write the weights: {error.strerror}") from error
    return updated


def _read(step: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(step, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{step}: cannot read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{step}: not a .npz file") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{step}: expected a .npz file of several arrays, got a single array")
    with archive:
        missing = [name for name in ARRAYS if name not in archive.files]
        if missing:
            raise DataError(
                f"{step}: lacks {', '.join(missing)}; expected the arrays {', '.join(ARRAYS)}, "
                f"got {', '.join(archive.files) or 'none'}"
            )
        try:
            return {name: archive[name] for name in ARRAYS}
        except (ValueError, zipfile.BadZipFile, zlib.error, OSError) as error:
            raise DataError(f"{step}: an array in it cannot be read: {error}") from error
