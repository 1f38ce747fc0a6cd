"""Ranks that are processes, by torch.distributed: gloo between CPUs, NCCL between GPUs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

import klimb.errors
from klimb.errors import KlimbError, RankError
from klimb.scale.messages import pack, unpack
from klimb.world import TreeSum

_PIECE = 1 << 22  # numbers that are added at a time: 16 MB in float32

# torch 2.13 renamed it
_all_gather_single: Callable[..., Any] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)


class TorchWorld:
    """The processes of a torch.distributed group as a world.

    Each call is an exchange of messages by all ranks, or a sum, which an exchange always precedes. A rank that ends
    with an error sends it in place of its message, so that all ranks end with it.

    Args:
        rank: This process.
        size: How many there are.
        store: Where each rank notes which call it has come to.
        timeout: Seconds that a rank waits for the others.
        has_gpus: Whether each rank has a GPU of its own, over which sums are made.
    """

    def __init__(self, rank: int, size: int, store: Store, timeout: float, *, has_gpus: bool = False) -> None:
        self.rank, self.size = rank, size
        self._store, self._timeout, self._has_gpus = store, timeout, has_gpus
        self._num_calls = 0
        self._has_ended = self._is_lost = False

    def gather(self, name: str, part: Sequence[Any]) -> list[Any]:
        """Concatenate every rank's part, in the order of ranks."""
        messages = self._exchange(name, {"part": list(part)})
        others = {message["name"] for message in messages}
        if others != {name}:
            raise RankError(
                f"rank {self.rank} of {self.size}: gathers {name} where others gather "
                f"{', '.join(sorted(others - {name}))}: the ranks are no longer in step; resume the run"
            )
        return [value for message in messages for value in message["part"]]

    def sum(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Add tensors over all ranks, in place, by a tree in the order of ranks."""
        with self._named(f"sum of {name}"), torch.no_grad():
            flat = [tensor.reshape(-1) for tensor in tensors]
            for bucket in _buckets(flat):
                self._add(bucket)
            for tensor, summed in zip(tensors, flat, strict=True):
                if summed.data_ptr() != tensor.data_ptr():  # it was not contiguous
                    tensor.copy_(summed.view(tensor.shape))

    @contextlib.contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """End all ranks with the error with which one of them ends."""
        try:
            yield
        except Exception as error:
            if not self._has_ended:
                self._send(error)
            raise

    def _send(self, error: Exception) -> None:
        """Send an error to the other ranks, as far as they are there."""
        try:
            self._exchange("error", {"error": _as_message(error, self.rank, self.size)}, error)
        except RankError:
            if not self._is_lost:
                raise

    def _exchange(
        self, name: str, message: dict[str, Any], own: Exception | None = None
    ) -> list[dict[str, Any]]:
        """Give every rank every rank's message, or raise the first error that one of them sent."""
        with self._named(f"gather of {name}"):
            data = bytearray(pack({"name": name, **message}))
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(data)]))
            longest = max(int(length) for length in lengths)
            padded = torch.frombuffer(data + bytes(longest - len(data)), dtype=torch.uint8)
            received = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(received, padded)
        messages = [
            unpack(data[: int(length)].numpy().tobytes())
            for data, length in zip(received, lengths, strict=True)
        ]
        for rank, sent in enumerate(messages):
            if "error" in sent:
                self._has_ended = True
                if own is not None and rank == self.rank:
                    raise own
                raise _as_error(sent["error"]) from own
        return messages

    def _add(self, pieces: list[Tensor]) -> None:
        """Add numbers over all ranks: each rank adds a part of them, and gives the sums to the others."""
        flat = torch.cat(pieces)
        count = -(-flat.numel() // self.size)
        room = self.size * count - flat.numel()
        flat, place = torch.nn.functional.pad(flat, (0, room)), flat.device
        flat = flat if self._has_gpus else flat.cpu()
        received = torch.empty_like(flat)
        dist.all_to_all_single(received, flat)
        tree = TreeSum(torch.Tensor.add_)
        for part in received.view(self.size, count).unbind():
            tree.add(part)
        _all_gather_single(flat, tree.total().clone())
        *summed, _ = flat.to(place).split([*(piece.numel() for piece in pieces), room])
        for piece, values in zip(pieces, summed, strict=True):
            piece.copy_(values)

    @contextlib.contextmanager
    def _named(self, call: str) -> Iterator[None]:
        """Note which call this rank has come to, and say what is known of the others where it fails."""
        self._num_calls += 1
        try:
            self._store.set(f"call/{self.rank}", str(self._num_calls))
            yield
        except (RuntimeError, ValueError) as error:  # as torch.distributed raises them
            if isinstance(error, KlimbError) or _is_out_of_memory(error):
                raise
            self._has_ended = self._is_lost = True
            self._raise_lost(call, error)

    def _raise_lost(self, call: str, error: Exception) -> NoReturn:
        late = self._find_late()
        which = f"rank {', '.join(map(str, late))}" if late else "another rank"
        is_late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        what = f"did not come within {self._timeout:g} s" if is_late else "has ended"
        advice = (
            "see what it was busy with, or raise --rank-timeout" if is_late else "its own messages say why"
        )
        raise RankError(
            f"rank {self.rank} of {self.size}: {which} {what}, in call {self._num_calls}, the {call}; {advice}"
        ) from error

    def _find_late(self) -> list[int]:
        """The ranks that have not come to this call."""
        late: list[int] = []
        with contextlib.suppress(RuntimeError, ValueError):
            for rank in set(range(self.size)) - {self.rank}:
                key = f"call/{rank}"
                came_to = int(self._store.get(key)) if self._store.check([key]) else 0
                late += [rank] if came_to < self._num_calls else []
        return sorted(late)


@contextlib.contextmanager
def world_of_group(
    rank: int, size: int, store: Store, *, timeout: float, has_gpus: bool
) -> Iterator[TorchWorld]:
    """Make the group of these ranks, and leave it at the end.

    Args:
        rank: This process.
        size: How many there are.
        store: Where ranks find each other; it holds nothing of another group.
        timeout: Seconds that a rank waits for the others.
        has_gpus: Whether each rank has a GPU of its own.

    Raises:
        RankError: Not all ranks came in time.
    """
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {rank} of {size}: the ranks did not find each other within {timeout:g} s ({_first_line(error)}); "
            "check that all were started, with the same address and port"
        ) from error
    world = TorchWorld(rank, size, store, timeout, has_gpus=has_gpus)
    try:
        with world.sharing_errors():
            yield world
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Put pieces of flat tensors together that are added in one go; of one dtype and device."""
    bucket: list[Tensor] = []
    for piece in (piece for tensor in tensors for piece in tensor.split(_PIECE)):
        is_other = bucket and (piece.dtype, piece.device) != (bucket[0].dtype, bucket[0].device)
        if is_other or sum(each.numel() for each in bucket) + piece.numel() > _PIECE:
            yield bucket
            bucket = []
        bucket.append(piece)
    if bucket:
        yield bucket


def _as_message(error: Exception, rank: int, size: int) -> dict[str, Any]:
    """An error as others get it: of klimb's kinds where it is one."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    notes = [*getattr(error, "__notes__", []), f"on rank {rank} of {size}"]
    if isinstance(error, KlimbError):
        return {"kinds": kinds, "message": str(error), "notes": notes}
    return {
        "kinds": ["RankError"],
        "message": f"{type(error).__name__}: {_first_line(error)}",
        "notes": notes,
    }


def _as_error(message: dict[str, Any]) -> KlimbError:
    found = (getattr(klimb.errors, kind, None) for kind in message["kinds"])
    error: KlimbError = next(filter(None, found), KlimbError)(message["message"])
    for note in message["notes"]:
        error.add_note(note)
    return error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
