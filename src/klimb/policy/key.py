"""The key of a batch's random numbers: seed and step."""

from dataclasses import dataclass

from klimb.core.rng import Stream


@dataclass(frozen=True)
class SampleKey:
    """What the random numbers of a batch are counted by.

    Attributes:
        seed: The run's seed.
        step: The run's step, from 0.
        prompts: Index of each prompt of the batch in its data set, (B,); no index twice.
        stream: What the numbers are for.
    """

    seed: int
    step: int
    prompts: list[int]
    stream: Stream = Stream.TRAIN
