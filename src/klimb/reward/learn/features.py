"""What a head sees of texts: read once for the same model and texts, then taken from the cache.

Axes: n texts, D features.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from klimb.io.atomic import cache_folder, make_folder, write_file
from klimb.io.progress import Progress, Say
from klimb.reward.scorer import Scorer


def read_features(
    scorer: Scorer, encoded: list[list[list[int]]], say: Callable[[str], None]
) -> list[Float[np.ndarray, "n D"]]:
    """Computed once for the same model and texts, however these are split, then taken from the cache."""
    texts = sorted({tuple(ids) for side in encoded for ids in side})
    shape = {key: value for key, value in scorer.model.config.to_dict().items() if key != "_name_or_path"}
    digest = hashlib.sha256(json.dumps([texts, shape], default=str, sort_keys=True).encode())
    for name, weight in scorer.model.named_parameters():  # of each weight a few numbers stand for all
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu().numpy()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + sample.tobytes())
    file = cache_folder() / "features" / f"{digest.hexdigest()[:32]}.npy"
    if file.is_file():
        found = np.load(file, allow_pickle=False)
    else:
        say(f"Reading {len(texts):,} texts, {sum(map(len, texts)):,} tokens …")
        with watched(scorer, "reading", sum(map(len, texts)), say):
            found = scorer.features([list(ids) for ids in texts])
        make_folder(file.parent)
        write_file(file, _npy(found))
    row_of = {ids: row for row, ids in enumerate(texts)}
    return [found[[row_of[tuple(ids)] for ids in side]] for side in encoded]


@contextlib.contextmanager
def watched(scorer: Scorer, what: str, num_tokens: int, say: Say) -> Iterator[None]:
    """Say now and then how many tokens have gone through the model."""
    progress = Progress(what, num_tokens, "tokens", say)

    def advance(_module: Any, _inputs: Any, named: dict[str, Any], _outputs: Any) -> None:
        progress.advance(int(named["attention_mask"].sum()))

    handle = scorer.model.register_forward_hook(advance, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
