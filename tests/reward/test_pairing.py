"""Which completions of a step are compared, and what that makes of their rewards."""

import numpy as np
import pytest

from klimb.reward.pairing import all_pairs, groups_of, most_unsure, ring, shares_won
from klimb.reward.reward import Batch


def test_groups_are_the_different_texts_of_each_prompt():
    groups = list(groups_of(Batch(["p", "p", "p", "q", "q"], ["a", "b", "a", "c", "c"])))
    assert groups == [[[0, 2], [1]], [[3, 4]]]


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_in_a_ring_each_stands_in_as_many_pairs(count):
    group = [[place] for place in range(count)]
    places = [members[0] for pair in ring(group) for members in pair]
    assert {places.count(place) for place in range(count)} == {1 if count == 2 else 2}
    assert len({frozenset((left[0], right[0])) for left, right in ring(group)}) == len(ring(group))


def test_the_most_unsure_pairs_share_a_text_only_when_no_other_is_left():
    pairs = all_pairs([[0], [1], [2], [3]])  # 01 02 03 12 13 23
    worth = np.array([0.9, 0.8, 0.1, 0.7, 0.2, 0.3])
    assert most_unsure(pairs, worth, 1) == [([0], [1])]
    assert most_unsure(pairs, worth, 2) == [
        ([0], [1]),
        ([2], [3]),
    ]  # 23 before 02, which shares a text with 01
    assert most_unsure(pairs, worth, 3) == [([0], [1]), ([0], [2]), ([2], [3])]
    assert most_unsure(pairs, worth, 99) == pairs
    assert most_unsure([], np.array([]), 3) == []


def test_shares_are_means_over_what_was_said_and_none_where_nothing_was():
    pairs = [([0, 1], [2]), ([2], [3]), ([4], [5])]
    said = [["first", "tie"], ["second"], ["skip"]]
    # of 0 and 1: (1 + ½) / 2; of 2: what is left of that, and 0 against 3; nobody said anything of 4, 5 and 6
    assert shares_won(pairs, said, 7) == [0.75, 0.75, 0.125, 1.0, None, None, None]
