"""`klimb update`: the weight update on arrays in files."""

import io
import sys
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from klimb.core.stream import streamed_weight_update
from klimb.core.update import rlhf_weight_update
from klimb.data.blocks import find_matrix, row_blocks
from klimb.errors import DataError
from klimb.io.atomic import write_file

PER_SAMPLE = ("weights", "rewards", "policy_log_probs", "ref_log_probs")
"""The small arrays of an update, named as the arguments of `rlhf_weight_update`."""

_BETWEEN_REDRAWS = 0.1  # seconds


def update_file(
    step: Path, beta: float, lr: float, output: Path, log_prob_grads: Path | None = None
) -> Float[np.ndarray, " P"]:
    """Read the arrays of one update and write the new weights.

    Args:
        step: A .npz file whose arrays have the names of `rlhf_weight_update`'s arguments.
        beta: KL coefficient, reward units a nat.
        lr: Learning rate.
        output: The .npy file to write; one that exists is replaced, all at once, at the very end.
        log_prob_grads: A .npy or .safetensors file of the gradients, which may be larger than memory;
            they are in `step` where None.

    Returns:
        The new weights, (P,).

    Raises:
        DataError: A file is missing, not of its kind, or lacks an array.
        ArgumentError: The arrays do not fit each other; nothing is written.
    """
    if log_prob_grads is None:
        updated = rlhf_weight_update(**_read(step, (*PER_SAMPLE, "log_prob_grads")), beta=beta, lr=lr)
    else:
        num_rows = find_matrix(log_prob_grads).shape[0]
        blocks = _shown(row_blocks(log_prob_grads), num_rows, sys.stderr)
        updated = streamed_weight_update(**_read(step, PER_SAMPLE), log_prob_grads=blocks, beta=beta, lr=lr)
    buffer = io.BytesIO()
    np.save(buffer, updated, allow_pickle=False)
    try:
        write_file(output, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{output}: cannot write the weights: {error.strerror}") from error
    return updated


def _shown(blocks: Iterable[np.ndarray], num_rows: int, screen: Any) -> Iterator[np.ndarray]:
    """Pass blocks on and show, in a terminal, how far they have come."""
    done, drawn, start = 0, 0.0, time.monotonic()
    for block in blocks:
        yield block
        done += len(block)
        now = time.monotonic()
        if screen.isatty() and (now - drawn > _BETWEEN_REDRAWS or done == num_rows):
            drawn = now
            left = (now - start) * (num_rows - done) / done
            bar = "━" * (30 * done // num_rows)
            screen.write(f"\r{bar:<30} {done:,}/{num_rows:,} samples, {left:.0f} s left ")
            screen.flush()
    if screen.isatty():
        screen.write("\n")


def _read(step: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        archive = np.load(step, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{step}: cannot read: {error.strerror or error}") from error
    except (ValueError, SyntaxError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{step}: not a .npz file") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{step}: expected a .npz file of several arrays, got a single array")
    with archive:
        missing = [name for name in names if name not in archive.files]
        if missing:
            raise DataError(
                f"{step}: lacks {', '.join(missing)}; expected the arrays {', '.join(names)}, "
                f"got {', '.join(archive.files) or 'none'}"
            )
        try:
            return {name: archive[name] for name in names}
        except (ValueError, SyntaxError, zipfile.BadZipFile, zlib.error, OSError, MemoryError) as error:
            raise DataError(f"{step}: an array in it cannot be read: {error}") from error
