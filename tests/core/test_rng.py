"""Counted random numbers."""

import numpy as np
import pytest

from klimb.core.rng import Stream, permutation, uniform_rows, uniforms

WHERE = {"seed": 3, "step": 5, "prompt": 7, "completion": 2}


def test_the_same_place_gives_the_same_numbers():
    np.testing.assert_array_equal(uniforms(**WHERE, count=10), uniforms(**WHERE, count=10))


def test_these_numbers_never_change():
    # Philox4x64-10 is a published function: a change here would break every run's reproducibility.
    np.testing.assert_array_equal(
        uniforms(seed=0, step=0, prompt=0, completion=0, count=3),
        (np.random.Philox(key=np.zeros(2, np.uint64), counter=np.zeros(4, np.uint64)).random_raw(3) >> 11)
        / 2**53,
    )
    assert uniforms(seed=0, step=0, prompt=0, completion=0, count=1)[0] == 0.011546754286331562


@pytest.mark.parametrize("name", ["seed", "step", "prompt", "completion"])
def test_every_part_of_the_place_matters(name):
    elsewhere = WHERE | {name: WHERE[name] + 1}
    assert not np.any(uniforms(**WHERE, count=10) == uniforms(**elsewhere, count=10))


def test_streams_do_not_overlap():
    assert not np.any(uniforms(**WHERE, count=10) == uniforms(**WHERE, count=10, stream=Stream.EVALUATE))


def test_a_longer_draw_begins_with_the_shorter_one():
    np.testing.assert_array_equal(uniforms(**WHERE, count=9)[:4], uniforms(**WHERE, count=4))


def test_the_size_of_the_batch_does_not_change_the_numbers():
    together = uniform_rows(
        seed=1, step=2, prompts=[4, 9], completions_per_prompt=3, count=5, stream=Stream.TRAIN
    )
    alone = uniform_rows(seed=1, step=2, prompts=[9], completions_per_prompt=3, count=5, stream=Stream.TRAIN)
    np.testing.assert_array_equal(together[3:], alone)
    np.testing.assert_array_equal(together[4], uniforms(seed=1, step=2, prompt=9, completion=1, count=5))


def test_they_are_uniform():
    numbers = np.concatenate(
        [uniforms(seed=0, step=step, prompt=0, completion=0, count=100) for step in range(200)]
    )
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    # chi-square with 19 degrees of freedom: 43.8 is its 0.999 quantile.
    assert np.sum((counts - 1000) ** 2 / 1000) < 43.8


def test_a_permutation_has_every_index_once_and_differs_by_epoch():
    first, second = (permutation(seed=0, epoch=epoch, count=50) for epoch in (0, 1))
    assert sorted(first) == list(range(50))
    assert not np.array_equal(first, second)
