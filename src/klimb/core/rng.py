"""A counter-based random number generator.

Each number is a pure function of what it is for. Nothing is stored between draws, so the
size of a batch, the number of workers, or a stop and a resume cannot change which numbers a
completion gets. The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3"): its key is (seed, step), its counter (block, stream, completion, prompt).
"""

from enum import IntEnum

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


class Stream(IntEnum):
    """What numbers are for; streams never overlap."""

    TRAIN = 0
    EVALUATE = 1
    SHUFFLE = 2
    LABEL = 3
    PREFLIGHT = 4
    MINIBATCH = 5


def uniforms(
    *, seed: int, step: int, prompt: int, completion: int, count: int, stream: Stream = Stream.TRAIN
) -> Float[np.ndarray, " count"]:
    """Draw the uniform numbers of one completion, one per token.

    Args:
        seed: The run's seed, 0 ≤ seed < 2⁶⁴.
        step: The run's step, from 0.
        prompt: Index of the prompt in its data set.
        completion: Index of the completion among those of its prompt.
        count: How many numbers; a longer draw begins with the same numbers.
        stream: What they are for.

    Returns:
        Numbers in [0, 1), multiples of 2⁻⁵³, (count,).
    """
    counter = np.array([0, stream, completion, prompt], dtype=np.uint64)
    key = np.array([seed, step], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


def uniform_rows(
    *, seed: int, step: int, prompts: list[int], completions_per_prompt: int, count: int, stream: Stream
) -> Float[np.ndarray, "N count"]:
    """Draw the numbers of every completion of several prompts, rows ordered by prompt."""
    rows = [
        uniforms(seed=seed, step=step, prompt=prompt, completion=completion, count=count, stream=stream)
        for prompt in prompts
        for completion in range(completions_per_prompt)
    ]
    return np.stack(rows)


def permutation(*, seed: int, epoch: int, count: int) -> Int[np.ndarray, " count"]:
    """Shuffle 0 … count − 1 for one pass over a data set."""
    keys = uniforms(seed=seed, step=epoch, prompt=0, completion=0, count=count, stream=Stream.SHUFFLE)
    order: NDArray[np.int64] = np.argsort(keys, kind="stable")
    return order
