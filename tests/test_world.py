"""Which numbers of ranks are admissible, and sums in the order of a tree."""

import pytest

from klimb.errors import ConfigError
from klimb.world import ALONE, TreeSum, World, cut, is_admissible, require_admissible


def tree(parts):
    """Neighbours in pairs, level after level, as parentheses."""
    while len(parts) > 1:
        parts = ["(" + "+".join(parts[at : at + 2]) + ")" if at + 1 < len(parts) else parts[at]
                 for at in range(0, len(parts), 2)]  # fmt: skip
    return parts[0]


def summed(parts):
    total = TreeSum(lambda left, right: f"({left}+{right})")
    for part in parts:
        total.add(part)
    return total.total()


@pytest.mark.parametrize("count", range(1, 18))
def test_parts_are_added_in_the_order_of_the_tree(count):
    names = [str(number) for number in range(count)]
    assert summed(names) == tree(names)


@pytest.mark.parametrize("num_slices", range(1, 25))
def test_on_every_admissible_number_of_ranks_slices_are_added_in_the_same_order(num_slices):
    names = [str(number) for number in range(num_slices)]
    same = [size for size in range(1, num_slices + 1) if num_slices % size == 0
            and summed([summed(part) for part in cut(names, size)]) == tree(names)]  # fmt: skip
    admissible = [size for size in range(1, num_slices + 1) if is_admissible(size, num_slices)]
    assert set(admissible) <= set(same)
    assert {1, num_slices} <= set(admissible)


def test_admissible_numbers_are_one_all_and_halves():
    assert [size for size in range(1, 13) if is_admissible(size, 12)] == [1, 3, 6, 12]
    assert [size for size in range(1, 10) if is_admissible(size, 8)] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("size", "num_slices", "prompts", "message"),
    [
        (3, 3, 8, "prompts_per_step: expected a multiple of the 3 slices, .* got 8"),
        (2, 3, 6, "ranks: a run of 3 slices gives the same bits on 1, 3 ranks, got 2"),
        (4, 2, 8, "ranks: a run of 2 slices gives the same bits on 1, 2 ranks, got 4"),
    ],
)
def test_other_numbers_are_refused_with_those_that_can_be(size, num_slices, prompts, message):
    with pytest.raises(ConfigError, match=message):
        require_admissible(size, num_slices, prompts)


def test_a_world_of_one_gives_back_what_it_gets():
    assert isinstance(ALONE, World)
    assert ALONE.gather("numbers", (1, 2)) == [1, 2]
