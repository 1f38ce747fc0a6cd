"""Keys and values in fixed places, as work that is recorded once and replayed must find them.

Axes: B prompts, N completions, L places of a prompt, C of a completion, Hkv groups of heads, K numbers a head.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klimb.policy.engine.attention import SharedPrefixCache
from klimb.policy.engine.slots import Slots


class StaticCache(SharedPrefixCache):
    """Keys and values with room for all tokens from the start, so that every token's attention is the same calls.

    What is not there yet is masked. Another batch of the same shape may use the same room: `begin`.

    Attributes:
        newest: Place of the completions' newest token, (1,); −1 before the first.

    Args:
        prompt_lengths: Tokens of each prompt, (B,).
        prompt_of: For each completion the index of its prompt, (N,).
        capacity: C, tokens of a completion that there is room for.
        longest: L, tokens of a prompt that there is room for, if those are more than the longest has.
    """

    def __init__(
        self, prompt_lengths: Int[Tensor, " B"], prompt_of: Int[Tensor, " N"], capacity: int, longest: int = 0
    ) -> None:
        super().__init__(prompt_lengths.clone(), prompt_of, capacity)
        self._longest = max(longest, self._longest)
        self.newest = torch.full((1,), -1, dtype=torch.long, device=prompt_of.device)
        self._first = torch.zeros_like(self.newest)

    def begin(self, prompt_lengths: Int[Tensor, " B"]) -> None:
        """Make room for another batch: as many prompts, none longer than there is room for."""
        self.prompt_lengths.copy_(prompt_lengths)
        self.num_seen = self.num_new = 0
        self._are_prompts_read = False
        self.newest.fill_(-1)
        if rooms := self._rooms():
            # What is masked must be a number: 0 · NaN would be none.
            torch._foreach_zero_(rooms)  # pyright: ignore[reportPrivateImportUsage]
        self._forget_masks()

    def extend(self, num_new: int) -> None:
        """Announce the next token of every completion."""
        super().extend(num_new)
        self.newest.fill_(self.num_seen)

    def renew_masks(self) -> None:
        """Let the next pass find anew what its tokens see, from the places as they are on the device."""
        self._forget_masks()

    def keep(self, rows: Int[Tensor, " n"]) -> None:
        """Nothing leaves, for shapes are fixed."""

    @property
    def slots(self) -> Slots:
        """Where each completion stands below its prompt."""
        return self._slots

    @property
    def reads_prompts(self) -> bool:
        """Whether prompts are being read, not completions."""
        return not self._are_prompts_read

    @property
    def first_new(self) -> Int[Tensor, " 1"]:
        """Place of the first token of those that are run."""
        return self._first if self.reads_prompts else self.newest

    @property
    def num_bytes(self) -> int:
        """Bytes of all rooms."""
        return sum(room.nbytes for room in self._rooms())

    def of_completions(self, layer: int) -> tuple[Float[Tensor, "N Hkv C K"], Float[Tensor, "N Hkv C K"]]:
        """Keys, after rotation, and values of the completions in one layer."""
        return self._completions[layer]

    def rooms(self, layer: int, num_groups: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Where one layer's keys and values of the tokens that are run belong: prompts' or completions'."""
        if self.reads_prompts:
            kept, num_rows, places = self._prompts, len(self.prompt_lengths), self._longest
        else:
            kept, num_rows, places = self._completions, len(self.prompt_of), self.capacity
        if layer not in kept:
            shape = (num_rows, num_groups, places, size)
            options = {"dtype": dtype, "device": self.prompt_of.device}
            kept[layer] = torch.zeros(shape, **options), torch.zeros(shape, **options)
        return kept[layer]

    def attend_in_prompts(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        """Causal attention within prompts whose keys and values are in their room already."""
        return self._attend_in_prompts(query, key, value, scaling, window, None)

    def _rooms(self) -> list[Tensor]:
        return [
            room for rooms in (self._prompts, self._completions) for pair in rooms.values() for room in pair
        ]

    @property
    def _most_tokens(self) -> int:
        return self.capacity

    def _remember_prompts(self, layer: int, key: Tensor, value: Tensor) -> None:
        for room, new in zip(self._room_like(layer, key), (key, value), strict=True):
            room[:, :, : key.shape[2]].copy_(new)

    def _remember(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        rooms = self._room_like(layer, key)
        for room, new in zip(rooms, (key, value), strict=True):
            room.index_copy_(2, self.newest, new)
        return rooms

    def _room_like(self, layer: int, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.rooms(layer, key.shape[1], key.shape[3], key.dtype)

    def _places_of_new(self) -> Int[Tensor, " T"]:
        return self.newest
