"""Pairs to learn from, and their split by prompt."""

import numpy as np
import pytest

from klimb import KlimbError
from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.formats import Feedback
from klimb.feedback.pairs import make_pairs, split_by_prompt


def texts(feedback):
    return {t for c in feedback.comparisons for t in (c.left, c.right)} | {
        r.completion for r in feedback.ratings
    }


def test_no_prompt_is_on_both_sides():
    comparisons = [Comparison(f"p{i % 40}", f"a{i}", f"b{i}", "left") for i in range(200)]
    split = split_by_prompt(Feedback(comparisons), 0.3, seed=1)
    sides = [{c.prompt for c in side.comparisons} for side in (split.train, split.held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {f"p{i}" for i in range(40)}
    assert 4 <= len(sides[1]) <= 20
    assert split.num_dropped == 0


def test_texts_without_a_prompt_are_split_themselves_and_pairs_across_dropped():
    comparisons = [Comparison("", f"t{i}", f"t{i + 1}", "left") for i in range(100)]
    split = split_by_prompt(Feedback(comparisons), 0.5, seed=0)
    assert not texts(split.train) & texts(split.held_out)
    assert split.num_dropped == 100 - len(split.train.comparisons) - len(split.held_out.comparisons) > 20


def test_the_side_of_a_prompt_does_not_depend_on_other_rows():
    rows = [Comparison(f"p{i}", "a", "b", "left") for i in range(50)]
    whole, part = (split_by_prompt(Feedback(some), 0.4, 7) for some in (rows, rows[::3]))
    assert set(part.held_out.comparisons) <= set(whole.held_out.comparisons)


def test_ratings_of_a_text_are_averaged_and_near_ones_make_no_pair():
    ratings = [Rating("p", "a", 1.0), Rating("p", "a", 3.0), Rating("p", "b", 1.8), Rating("p", "c", 0.0)]
    pairs = make_pairs(Feedback(ratings=ratings), min_gap=0.5)
    found = {
        (pairs.completions[left], pairs.completions[right], outcome)
        for left, right, outcome in zip(pairs.left, pairs.right, pairs.outcomes, strict=True)
    }
    assert found == {("a", "c", 1.0), ("b", "c", 1.0)}


def test_texts_without_a_prompt_are_paired_with_some_others():
    ratings = [Rating("", f"t{i}", float(i)) for i in range(30)]
    pairs = make_pairs(Feedback(ratings=ratings), pairs_per_text=4, seed=3)
    assert 60 < len(pairs) <= 120
    scores = np.array([float(text[1:]) for text in pairs.completions])
    assert (np.sign(pairs.margins(scores)) == pairs.outcomes).all()
    again = make_pairs(Feedback(ratings=ratings), pairs_per_text=4, seed=3)
    assert (again.left == pairs.left).all()


def test_units_are_prompts_or_lone_texts():
    feedback = Feedback(
        [
            Comparison("p", "a", "b", "left"),
            Comparison("", "a", "b", "tie"),
            Comparison("p", "c", "a", "right"),
        ]
    )
    pairs = make_pairs(feedback)
    assert pairs.completions == ["a", "b", "a", "b", "c"]
    units = pairs.units
    assert units[0] == units[1] == units[4]
    assert len({units[0], units[2], units[3]}) == 3
    assert pairs.outcomes.tolist() == [1, 0, -1]


def test_nothing_to_pair_is_said():
    with pytest.raises(KlimbError, match=r"no two texts make a pair: .*min_gap 5"):
        make_pairs(Feedback(ratings=[Rating("p", "a", 1.0), Rating("p", "b", 2.0)]), min_gap=5)
