"""Joining the ranks that a launcher has started: `klimb train --ranks`, torchrun, or torchrun under SLURM."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING

from klimb.errors import RankError
from klimb.world import ALONE, World

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_groups_so_far = 0

ranks_agree = False
"""Whether all ranks left the last run alike: at its end, by one error, or asked to stop."""


def joined(timeout: float) -> AbstractContextManager[World]:
    """Join the ranks that this process was started among, as torchrun's environment variables say; one alone if none.

    Args:
        timeout: Seconds that a rank waits for the others, at the start and in each call.

    Raises:
        RankError: The others are not found, or a variable is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return contextlib.nullcontext(ALONE)
    return _joined(timeout)


@contextlib.contextmanager
def _joined(timeout: float) -> Iterator[World]:
    if missing := [name for name in _NEEDED if name not in os.environ]:
        raise RankError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {', '.join(missing)} is not set: start ranks with klimb "
            "train --ranks, or with torchrun"
        )
    global _groups_so_far, ranks_agree  # noqa: PLW0603  of this process, whose ranks make as many
    _groups_so_far += 1
    ranks_agree = False
    import torch

    from klimb.scale.torch_world import world_of_group

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    has_gpus = 0 < local_size <= torch.cuda.device_count()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    store = _store(rank, size, timeout)
    try:
        with world_of_group(rank, size, store, timeout=timeout, has_gpus=has_gpus) as world:
            yield world
    except RankError:
        raise
    except BaseException:
        ranks_agree = True
        raise
    ranks_agree = True


def _store(rank: int, size: int, timeout: float) -> "Store":
    """Where ranks find each other: torchrun's, or one that rank 0 opens.

    Keys have a prefix of their own for each attempt: torchrun keeps its store when it restarts ranks, and they would
    read the addresses of those that ended.
    """
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    run = os.environ.get("TORCHELASTIC_RUN_ID", "run")
    try:
        store = TCPStore(
            address,
            int(port),
            is_master=rank == 0 and not is_agents,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
        prefix = f"klimb/{run}/{attempt}/{_groups_so_far}"
        num_here = store.add(f"{prefix}/rank/{rank}", 1)
    except (RuntimeError, ValueError) as error:
        is_taken = "EADDRINUSE" in str(error) or "in use" in str(error)
        problem = "is in use, perhaps by another run" if is_taken else "does not answer"
        raise RankError(
            f"rank {rank} of {size}: port {port} of {address} {problem}; choose another --master-port, or leave it out"
        ) from error
    if num_here > 1:
        raise RankError(
            f"rank {rank} of {size}: another run uses port {port} of {address}; choose another --master-port"
        )
    return PrefixStore(prefix, store)
