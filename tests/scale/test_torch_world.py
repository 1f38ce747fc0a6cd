"""Three processes of torch.distributed: what they gather and add, and how an error and a lost rank end them."""

import subprocess
import sys
from pathlib import Path

RANKS = """
import os, sys, torch
from torch.distributed import FileStore
from klimb.errors import ConfigError, KlimbError, RankError
from klimb.scale.torch_world import world_of_group
from klimb.world import TreeSum

torch.set_num_threads(1)  # PyTorch is loaded once; the ranks are forked before it has made a thread
file, processes = sys.argv[1], []
for rank in range(3):
    if (process := os.fork()) == 0:
        sys.stdout = open(f"{file}-{rank}.said", "w", buffering=1)
        break
    processes.append(process)
else:
    print(*(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes))
    sys.exit()
parts = [[torch.randn(n, generator=torch.Generator().manual_seed(10 * r + n)) for n in (1, 7, 1001)] for r in range(3)]

def summed(tensors):
    tree = TreeSum(lambda left, right: left + right)
    for tensor in tensors:
        tree.add(tensor)
    return tree.total()

try:
    with world_of_group(rank, 3, FileStore(file + "-1", 3), timeout=60, has_gpus=False) as world:
        found = world.gather("rows", [{"rank": rank, "tensor": parts[rank][1]}] * rank)
        assert [row["rank"] for row in found] == [1, 2, 2]
        assert torch.equal(found[2]["tensor"], parts[2][1])
        mine = [part.clone() for part in parts[rank]]
        mine += [parts[rank][2][:1000].clone().reshape(10, 100).T, torch.ones(5).double()]
        world.sum("gradients", mine)
        for number in range(3):
            assert torch.equal(mine[number], summed([part[number] for part in parts]))
        assert torch.equal(mine[3], summed([part[2][:1000].reshape(10, 100).T for part in parts]))
        assert mine[4].tolist() == [3.0] * 5
        if rank == 1:
            raise ConfigError("lr: wrong here")
        world.gather("more", [rank])
except ConfigError as error:
    print("error:", error, getattr(error, "__notes__", []))

try:
    with world_of_group(rank, 3, FileStore(file + "-2", 3), timeout=60, has_gpus=False) as world:
        world.gather("rows", [])
        if rank == 2:
            os._exit(9)
        world.gather("losses", [rank])
except RankError as error:
    print("lost:", error)
"""


def test_ranks_gather_add_in_the_trees_order_and_end_alike(tmp_path):
    store = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", RANKS, str(store)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["0", "0", "9"], done.stderr
    said = [Path(f"{store}-{rank}.said").read_text() for rank in range(3)]
    assert said[1].startswith("error: lr: wrong here []\n")
    for rank in (0, 2):
        assert said[rank].startswith("error: lr: wrong here ['on rank 1 of 3']\n")
    for rank in (0, 1):
        assert (
            f"lost: rank {rank} of 3: rank 2 has ended, in call 2, the gather of losses; its own"
            in said[rank]
        )
