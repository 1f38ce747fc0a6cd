"""Digests of large files are cached, and of no file that may have changed."""

import hashlib
import os
import time

import pytest

from klimb.io import digest
from klimb.io.digest import cached_sha256


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """Files that were read; all are large, and the cache is empty."""
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "_LARGE", 0)
    monkeypatch.setattr(digest, "_SETTLED", -3_600_000_000_000)  # the clocks of processes and of files differ
    reads = []
    whole = digest.sha256

    def count(path):
        reads.append(path)
        return whole(path)

    monkeypatch.setattr(digest, "sha256", count)
    return reads


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"one")
    return file


def of(content):
    return hashlib.sha256(content).hexdigest()


def tick(file, content):
    """Write in place until the file system's clock has moved on."""
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:
        file.write_bytes(content)
        time.sleep(0.001)


def test_a_file_that_stays_the_same_is_read_once(reads, file):
    assert [cached_sha256(file) for _ in range(3)] == [of(b"one")] * 3
    assert len(reads) == 1


def test_the_same_file_by_another_name_is_not_read_again(reads, file, tmp_path):
    (tmp_path / "snapshot").symlink_to(file)
    assert cached_sha256(file) == cached_sha256(tmp_path / "snapshot")
    assert len(reads) == 1


def test_other_content_of_the_same_size_is_noticed(reads, file):
    cached_sha256(file)
    tick(file, b"two")
    assert cached_sha256(file) == of(b"two")
    assert len(reads) == 2


def test_a_modification_time_that_is_set_back_does_not_hide_a_change(reads, file):
    was = file.stat()
    cached_sha256(file)
    tick(file, b"two")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_mtime_ns == was.st_mtime_ns
    assert cached_sha256(file) == of(b"two")
    assert len(reads) == 2


def test_a_file_that_takes_the_place_of_another_is_noticed(reads, file, tmp_path):
    (tmp_path / "other").write_bytes(b"two")
    cached_sha256(file)
    tick(tmp_path / "other", b"two")
    (tmp_path / "other").replace(file)
    assert cached_sha256(file) == of(b"two")
    assert len(reads) == 2


def test_a_file_that_was_changed_just_now_is_not_trusted(reads, file, monkeypatch):
    monkeypatch.setattr(digest, "_SETTLED", 3_600_000_000_000)
    assert cached_sha256(file) == cached_sha256(file)
    assert len(reads) == 2


def test_small_files_are_read_each_time(reads, file, monkeypatch):
    monkeypatch.setattr(digest, "_LARGE", 4)
    assert cached_sha256(file) == cached_sha256(file)
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff", b'{"file": 7, "sha256": 7}'])
def test_a_damaged_cache_is_done_without(reads, file, content, tmp_path):
    cached_sha256(file)
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    kept.write_bytes(content)
    assert cached_sha256(file) == of(b"one")
    assert len(reads) == 2
    cached_sha256(file)
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_is_done_without(reads, file, monkeypatch, tmp_path):
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "no folder"))
    assert cached_sha256(file) == cached_sha256(file) == of(b"one")
    assert len(reads) == 2


def test_a_file_that_is_missing_is_an_error(reads, tmp_path):
    with pytest.raises(FileNotFoundError):
        cached_sha256(tmp_path / "nothing")
    assert reads == []
