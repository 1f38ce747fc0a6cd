"""Files that appear whole or not at all."""

import os
import stat

import pytest

from klimb.files import cache_folder, whole_folder, write_file


def test_a_file_is_replaced_by_the_new_content(tmp_path):
    path = tmp_path / "a.txt"
    write_file(path, "old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_file(path, "old")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "folder"
    with whole_folder(path) as unfinished:
        (unfinished / "a").write_text("x")
        (unfinished / "a").chmod(0o600)
        assert not path.exists()
    assert (path / "a").read_text() == "x"
    assert stat.S_IMODE((path / "a").stat().st_mode) & 0o077 == 0o066 & ~_umask()


def test_a_folder_that_fails_is_gone(tmp_path):
    def fill_and_fail():
        with whole_folder(tmp_path / "folder") as unfinished:
            (unfinished / "a").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_and_fail()
    assert os.listdir(tmp_path) == []


def test_the_cache_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("KLIMB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "klimb"


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
