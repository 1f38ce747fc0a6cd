"""What was recorded for one batch, kept for the next of the same shape.

Recording takes as long as some twenty tokens of a small model. A recorded graph reads the weights where they are, so
it stays right while they are moved in place.
"""

from collections import OrderedDict
from collections.abc import Hashable
from itertools import chain
from typing import Generic, TypeVar

import torch

from klimb.policy.engine.cuda_graph import may_keep

_MOST = 4
_MOST_OF_MEMORY = 0.05
"""Share of a GPU's memory that may stay taken between batches, which the update then cannot use."""

Kept = TypeVar("Kept")


class KeptGraphs(Generic[Kept]):
    """Things that hold recorded graphs, by what makes them fit a batch; the least recently used one leaves first.

    Whoever takes one gives it back when its batch ended as it should: what an error interrupted is not used again.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Hashable, Kept, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(num_bytes for *_, num_bytes in self._kept.values())

    def take(self, addresses: Hashable, key: Hashable) -> Kept | None:
        """Take what fits, if there is such; whatever reads weights from elsewhere is dropped."""
        stale = [name for name, (where, *_) in self._kept.items() if where != addresses]
        for name in stale:
            del self._kept[name]
        found = self._kept.pop(key, None)
        return None if found is None else found[1]

    def give_back(self, addresses: Hashable, key: Hashable, kept: Kept, num_bytes: int) -> None:
        """Keep something for the next batch, unless it takes too much memory."""
        limit = most_bytes()
        if num_bytes > limit:
            return
        self._kept[key] = addresses, kept, num_bytes
        while len(self._kept) > _MOST or self.num_bytes > limit:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()


def most_bytes() -> int:
    """Bytes that may stay taken between batches; `KLIMB_CUDA_GRAPHS=once` keeps nothing."""
    if not may_keep():
        return -1
    if not torch.cuda.is_available():
        return 1 << 30
    return int(_MOST_OF_MEMORY * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def addresses_of(model: torch.nn.Module) -> Hashable:
    """Where a model's weights and buffers are, which a recorded graph reads."""
    return tuple(tensor.data_ptr() for tensor in chain(model.parameters(), model.buffers()))


def state_of(model: torch.nn.Module) -> Hashable:
    """What else a recorded graph would miss: hooks, adapters that are off, and settings of PyTorch."""
    modules = tuple(
        (index, len(module._forward_hooks), len(module._forward_pre_hooks), is_off)
        for index, module in enumerate(model.modules())
        if (is_off := getattr(module, "disable_adapters", False))
        or module._forward_hooks
        or module._forward_pre_hooks
    )
    return modules, torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
