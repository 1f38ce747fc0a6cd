"""The processes ("ranks") that take a run's steps together; by default one.

Every rank takes the same steps. A step's prompts are cut into S slices of whole prompts; each rank draws, scores and
differentiates its own. What is small is gathered in the order of the slices, so that every rank computes advantages,
metrics and decisions from the whole batch; gradients are added in one binary tree over the slices. Neither depends on
how many ranks there are.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from klimb.errors import ConfigError

T = TypeVar("T")


@runtime_checkable
class World(Protocol):
    """The ranks of a run.

    Attributes:
        rank: This process, from 0; rank 0 writes the run's folder.
        size: How many ranks there are.
    """

    rank: int
    size: int

    def gather(self, name: str, part: Sequence[Any]) -> list[Any]:
        """Concatenate every rank's part, in the order of ranks; all ranks get the same.

        Args:
            name: What is gathered, for messages; the same on all ranks.
            part: This rank's: JSON types and tensors. Dictionaries have texts as keys.

        Raises:
            KlimbError: Another rank has ended with this error.
            RankError: Another rank was lost, or did not come in time.
        """
        ...

    def sum(self, name: str, tensors: Sequence[Any]) -> None:
        """Add tensors over all ranks, in place, by a binary tree in the order of ranks.

        Args:
            name: What is added, for messages.
            tensors: Of the same shapes and dtypes on all ranks.

        Raises:
            RankError: Another rank was lost, or did not come in time.
        """
        ...


class Alone:
    """A world of one rank: what is gathered is its own part, and sums are what they are."""

    rank = 0
    size = 1

    def gather(self, name: str, part: Sequence[T]) -> list[T]:  # noqa: ARG002  as a world has it
        """Return the part."""
        return list(part)

    def sum(self, name: str, tensors: Sequence[Any]) -> None:
        """Do nothing."""


ALONE = Alone()
"""The world of a run in one process."""


def cut(items: Sequence[T], num_parts: int) -> list[Sequence[T]]:
    """Cut items into contiguous parts, whose lengths differ by at most one."""
    count = len(items)
    return [items[count * k // num_parts : count * (k + 1) // num_parts] for k in range(num_parts)]


def is_admissible(size: int, num_slices: int) -> bool:
    """Whether so many ranks add the gradients of so many slices in the same order as one rank does.

    One rank does, and one for each slice; between these, each rank must have a power of two of slices, which are whole
    branches of the tree.
    """
    slices_of_rank, rest = divmod(num_slices, size)
    return not rest and (size == 1 or slices_of_rank & (slices_of_rank - 1) == 0)


def require_admissible(size: int, num_slices: int, prompts_per_step: int) -> None:
    """Raise unless a step's prompts can be cut into the slices, and so many ranks can share these.

    Raises:
        ConfigError: They cannot; the message names numbers that can.
    """
    if prompts_per_step % num_slices:
        raise ConfigError(
            f"prompts_per_step: expected a multiple of the {num_slices} slices, one for each rank at the start unless "
            f"--num-slices says otherwise, got {prompts_per_step}"
        )
    if not is_admissible(size, num_slices):
        sizes = [str(ranks) for ranks in range(1, num_slices + 1) if is_admissible(ranks, num_slices)]
        raise ConfigError(
            f"ranks: a run of {num_slices} slices gives the same bits on {', '.join(sizes)} ranks, got {size}"
        )


class TreeSum:
    """Adds parts one after the other in the order of a binary tree over all of them, neighbours first.

    At most one part for each level of the tree is held.

    Args:
        join: Returns the sum of two neighbours; it may reuse their memory.
    """

    def __init__(self, join: Callable[[T, T], T]) -> None:
        self._join: Callable[[Any, Any], Any] = join
        self._branches: list[tuple[int, Any]] = []  # number of parts in each, and their sum

    def add(self, part: Any) -> None:
        """Add the next part."""
        self._branches.append((1, part))
        while len(self._branches) > 1 and self._branches[-1][0] == self._branches[-2][0]:
            self._join_last()

    def total(self) -> Any:
        """Return the sum of all parts, of which there is at least one."""
        while len(self._branches) > 1:
            self._join_last()
        return self._branches[0][1]

    def _join_last(self) -> None:
        (count, left), (more, right) = self._branches[-2:]
        self._branches[-2:] = [(count + more, self._join(left, right))]
