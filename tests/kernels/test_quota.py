"""Threads are no more than what a container may use."""

import pytest
import torch

from klimb.kernels import library
from klimb.kernels.quota import processor_quota
from klimb.model.allocation import use_allowed_threads


@pytest.mark.parametrize(
    ("version", "own", "outer", "expected"),
    [
        (2, "max 100000", "250000 100000", 3),  # two and a half
        (2, "50000 100000", "max 100000", 1),
        (2, "max 100000", "max 100000", None),
        (1, "-1 100000", "200000 100000", 2),
        (1, "-1 100000", "-1 100000", None),
    ],
)
def test_the_smallest_limit_of_all_groups_counts(version, own, outer, expected, tmp_path):
    top = tmp_path if version == 2 else tmp_path / "cpu,cpuacct"
    inner = top / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, words in ((inner, own), (inner.parent, outer)):
        if version == 2:
            (folder / "cpu.max").write_text(words + "\n")
        else:
            for name, word in zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), words.split(), strict=True):
                (folder / name).write_text(word + "\n")
    groups = tmp_path / "groups"
    groups.write_text(
        f"{0 if version == 2 else '4:cpu,cpuacct'}{'::' if version == 2 else ':'}/outer/inner\n"
    )
    assert processor_quota(tmp_path, groups) == expected


def test_where_there_are_no_groups_there_is_no_limit(tmp_path):
    assert processor_quota(tmp_path, tmp_path / "none") is None


def test_kernels_and_pytorch_keep_to_the_limit_and_the_users_own_number_stands(monkeypatch):
    usual = torch.get_num_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(library, "processor_quota", lambda: 2)
    monkeypatch.setattr("klimb.model.allocation.processor_quota", lambda: 2)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert library.num_threads() == 2
    try:
        torch.set_num_threads(5)
        use_allowed_threads()
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        use_allowed_threads()
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        torch.set_num_threads(5)
        use_allowed_threads()
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(usual)
