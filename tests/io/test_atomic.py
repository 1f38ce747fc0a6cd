"""Files that appear whole or not at all."""

import errno
import os
import re
import stat
from pathlib import Path

import pytest

from klimb.io.atomic import (
    cache_folder,
    make_folder,
    remove_folder,
    remove_leftovers,
    shorten,
    sync,
    whole_folder,
    write_file,
)


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


def test_a_file_is_shortened_and_never_lengthened(tmp_path):
    path = tmp_path / "a"
    path.write_text("abcdef")
    shorten(path, 9)
    assert path.read_text() == "abcdef"
    shorten(path, 2)
    assert path.read_text() == "ab"


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with whole_folder(path, replaces=True) as unfinished:
            (unfinished / content).write_text(content)
            assert content == "old" or (path / "old").exists()
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_could_not_be_replaced_is_as_it_was(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")

    def fill_and_fail():
        with whole_folder(path, replaces=True):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_and_fail()
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_is_removed(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    remove_folder(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_leftovers_are_removed_by_their_names_alone(tmp_path):
    for name in (".a.json.abcd_123", ".b.json.abcd_123", ".a.json", "a.json", ".a.json.abcd_1234"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".a.json.00000000").mkdir()
    remove_leftovers(tmp_path, re.compile(r"a\.json"))
    assert sorted(os.listdir(tmp_path)) == [".a.json", ".a.json.abcd_1234", ".b.json.abcd_123", "a.json"]


@pytest.fixture
def synced(monkeypatch):
    """Paths that are synced, in order."""
    paths = []
    usual = os.fsync

    def fsync(descriptor):
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        usual(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_the_name_of_a_folder_is_synced_whether_it_is_new_or_not(tmp_path, synced):
    make_folder(tmp_path / "a" / "b")
    assert synced == [str(tmp_path / "a"), str(tmp_path)]
    synced.clear()
    make_folder(tmp_path / "a" / "b")
    assert synced == [str(tmp_path / "a" / "b"), str(tmp_path / "a")]


def test_what_a_link_leads_to_is_synced_with_its_own_name(tmp_path, synced, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    sync(tmp_path / "link")
    assert synced == [str(tmp_path / "real" / "file"), str(tmp_path / "real")]
    synced.clear()
    monkeypatch.chdir(tmp_path / "real")
    sync(Path(".."))
    assert synced == [str(tmp_path), str(tmp_path.parent)]


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.EINVAL, True), (errno.EACCES, True), (errno.EIO, False)]
)
def test_a_folder_that_cannot_be_synced_is_left_but_an_error_of_the_disk_is_not(
    tmp_path, monkeypatch, number, passes
):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if passes:
        make_folder(tmp_path / "a")
    else:
        with pytest.raises(OSError, match="Input/output"):
            make_folder(tmp_path / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        sync(tmp_path / "file")
