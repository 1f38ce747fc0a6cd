"""The unit of a learned reward."""

import numpy as np
import pytest

from klimb.reward.learn.scale import spread_within


def test_the_unit_is_the_spread_within_prompts_whatever_lies_between_them() -> None:
    scores = np.array([0.0, 2.0, 101.0, 103.0, 102.0, 50.0])
    prompts = np.array([0, 0, 1, 1, 1, 2])
    # deviations −1, 1 | −1, 1, 0 | none: 4 over 1 + 2 degrees of freedom
    assert spread_within(scores, prompts) == pytest.approx(np.sqrt(4 / 3))
    assert spread_within(3 * scores + 7, prompts) == pytest.approx(3 * np.sqrt(4 / 3))


def test_texts_that_stand_alone_are_compared_with_each_other() -> None:
    scores = np.array([1.0, 4.0, 2.0, 9.0])
    assert spread_within(scores, np.arange(4)) == pytest.approx(np.std(scores, ddof=1))


@pytest.mark.parametrize("scores", [np.array([3.0]), np.full(5, 0.5)])
def test_scores_that_are_all_the_same_have_no_unit(scores: np.ndarray) -> None:
    assert spread_within(scores, np.zeros(len(scores), dtype=int)) == 0
