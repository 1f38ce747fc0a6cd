"""The simulated disk shows what a program loses."""

import random
import re
import subprocess
import sys

import pytest

from tools.crashlab.cut import cut
from tools.crashlab.disk import Disk, File
from tools.crashlab.trace import UnknownCallError, read_trace, trace

WRITE = "with open('answer', 'w') as file: file.write('x' * 1000); file.flush()"
SYNC = "os.fsync(os.open('answer', os.O_RDONLY))"
SYNC_FOLDER = "os.fsync(os.open('.', os.O_RDONLY))"
RENAME = "os.rename(os.path.abspath('answer'), os.path.abspath('named'))"
SAY = "print('done', flush=True)"


class Answer:
    """A file is there, with all its content, once the program has said so."""

    def __init__(self, name):
        self.name = name

    def hear(self, said, _disk):
        return said.startswith(b"done") or None

    def find(self, folder):
        return (folder / self.name).read_text() if (folder / self.name).exists() else None

    def lack(self, found, promised):
        return "it is gone" if promised and found != "x" * 1000 else None


@pytest.fixture
def losses(tmp_path, strace):  # noqa: ARG001  which may be missing
    """Run a program of these lines under strace, and cut its power."""

    def losses(*lines, name="answer"):
        root, file = tmp_path / "root", tmp_path / "trace"
        root.mkdir()
        program = "\n".join(["import os", f"os.chdir({str(root)!r})", *lines])
        subprocess.run(trace([sys.executable, "-c", program], file), check=True, stdout=subprocess.DEVNULL)
        events = read_trace(file.read_text().splitlines())
        tally = cut(root, events, Answer(name), num_mixtures=20)
        assert tally.num_promised == 1
        return {re.search(r", (.*): it is gone", line)[1] for line in tally.losses}

    return losses


def test_a_file_that_is_synced_and_its_name_too_is_safe(losses):
    assert losses(WRITE, SYNC, SYNC_FOLDER, SAY) == set()


def test_an_answer_before_the_content_is_synced_is_noticed(losses):
    assert losses(WRITE, SYNC_FOLDER, SAY, SYNC) == {"synced alone", "names alone", "mixture"}


def test_an_answer_before_the_name_is_synced_is_noticed(losses):
    assert losses(WRITE, SYNC, SAY, SYNC_FOLDER) == {"synced alone", "content alone", "mixture"}


def test_a_rename_without_its_folder_synced_is_noticed(losses):
    found = losses(WRITE, SYNC, SYNC_FOLDER, RENAME, SAY, name="named")
    assert found == {"synced alone", "content alone", "mixture"}


def test_a_folder_that_is_not_synced_takes_what_is_in_it_along(losses):
    into = ["os.mkdir(os.path.abspath('in'))", "os.chdir('in')"]
    found = losses(*into, WRITE, SYNC, SYNC_FOLDER, SAY, name="in/answer")
    assert found == {"synced alone", "content alone", "mixture"}


def test_a_file_that_is_written_again_in_place_is_noticed(losses):
    again = "file = open('answer', 'r+'); file.write('x' * 1000); file.flush()"
    found = losses(WRITE.replace("'x'", "'y'"), SYNC, SYNC_FOLDER, again, SAY)
    assert found == {"synced alone", "names alone", "mixture"}


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("os.symlink('/etc/hostname', os.path.abspath('answer'))", "symlink"),
        ("import mmap; mmap.mmap(os.open('answer', os.O_RDWR), 9)", "mmap"),
        (
            "os.sendfile(os.open('answer', os.O_WRONLY), os.open('/etc/passwd', os.O_RDONLY), 0, 9)",
            "sendfile",
        ),
    ],
)
def test_a_change_that_cannot_be_followed_is_an_error(losses, way, name):
    before = () if name == "symlink" else (WRITE,)
    with pytest.raises(UnknownCallError, match=name):
        losses(*before, way, SAY)


def test_a_trace_that_does_not_tell_all_is_an_error(tmp_path):
    (tmp_path / "made elsewhere").write_text("x")
    with pytest.raises(UnknownCallError, match="does not lead to what is there: made elsewhere"):
        cut(tmp_path, [], Answer("answer"))


def hexed(text):
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def replayed(root, *calls):
    """The disk after calls, in which `«…»` is written as strace does."""
    lines = [
        re.sub("«(.*?)»", lambda found: hexed(found[1].replace("ROOT", str(root))), line) for line in calls
    ]
    disk = Disk(root)
    for event in read_trace(lines):
        disk.go_on(event)
    return disk


def test_a_sync_covers_what_was_written_before_it_began(tmp_path):
    disk = replayed(
        tmp_path,
        '7 openat(AT_FDCWD<«/»>, "«ROOT/a»", O_RDWR|O_CREAT, 0666) = 3<«ROOT/a»>',
        '7 pwrite64(3<«ROOT/a»>, "«old»", 3, 0) = 3',
        "7 fsync(3<«ROOT/a»> <unfinished ...>",
        '8 pwrite64(3<«ROOT/a»>, "«new»", 3, 0 <unfinished ...>',
        "8 <... pwrite64 resumed>) = 3",
        "7 <... fsync resumed>) = 0",
        "7 fsync(4<«ROOT»>) = 0",
    )
    chance = random.Random(0)  # noqa: S311
    assert disk.state("synced alone", chance) == {"a": b"old"}
    assert disk.state("everything", chance) == {"a": b"new"}


def test_a_write_that_is_not_synced_may_be_torn_at_a_sector():
    file = File()
    file.change(0, b"a" * 2048)
    file.sync(file.moment())
    file.change(100, b"b" * 1948)
    chance = random.Random(0)  # noqa: S311
    found = {file.mixture(chance) for _ in range(2000)}
    assert all(content[:100] == b"a" * 100 and len(content) == 2048 for content in found)
    sectors = {(content[100], content[512], content[1024], content[1536]) for content in found}
    assert len(sectors) == 16
    assert all(content[512:1024] in (b"a" * 512, b"b" * 512) for content in found)


def test_a_write_that_is_cut_short_in_the_trace_is_an_error():
    (event, _) = read_trace([f'7 write(1<{hexed("/x")}>, "{hexed("ab")}"..., 3) = 3'])
    with pytest.raises(UnknownCallError, match="cut"):
        _ = event.call.data
