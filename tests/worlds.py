"""Ranks as threads of one process, for tests of what ranks compute."""

import threading

from klimb.world import Alone, TreeSum


class Thread:
    """A rank among others that are threads; sums are made in the tree's order over ranks."""

    def __init__(self, rank, size, table, barrier):
        self.rank, self.size, self._table, self._barrier = rank, size, table, barrier

    def gather(self, name, part):
        parts = self._exchange((name, list(part)))
        assert {other for other, _ in parts} == {name}  # all ranks have come to the same call
        return [value for _, values in parts for value in values]

    def sum(self, name, tensors):
        parts = self._exchange((name, [tensor.clone() for tensor in tensors]))
        for number, tensor in enumerate(tensors):
            tree = TreeSum(lambda left, right: left + right)
            for _, others in parts:
                tree.add(others[number])
            tensor.copy_(tree.total())

    def _exchange(self, value):
        self._table[self.rank] = value
        self._barrier.wait(60)
        values = [self._table[rank] for rank in range(self.size)]
        self._barrier.wait(60)
        return values


def on_ranks(size, work):
    """Call `work(world)` on so many ranks and return what each returned; the first error ends all."""
    if size == 1:
        return [work(Alone())]
    table, barrier, results, errors = {}, threading.Barrier(size), {}, []

    def run(rank):
        try:
            results[rank] = work(Thread(rank, size, table, barrier))
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]
