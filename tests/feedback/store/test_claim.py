"""A store belongs to one live run at a time; the kernel takes the lock back when its process ends."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from klimb.errors import StoreError
from klimb.feedback.store.claim import LIVE, claimed, lock_of

_HOLD = """
import sys, signal
from klimb.feedback.store.claim import LIVE, claimed
with claimed(sys.argv[1], LIVE, advice="wait"):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def store(tmp_path):
    return tmp_path / "runs" / "people.db"


def live(store):
    return claimed(store, LIVE, advice="wait until it ends")


def page(store):
    return claimed(store, "a page", advice="judge there", is_shared=True)


def test_a_store_in_use_is_refused_with_its_name_the_process_and_what_to_do(store):
    with live(store), pytest.raises(StoreError) as found, live(store):
        pass
    assert f"{store}: a live run (klimb train --reward people), process {os.getpid()}" in str(found.value)
    assert f"on {socket.gethostname()}, since 20" in str(found.value)
    assert str(found.value).endswith("is using this store; wait until it ends")


def test_nothing_is_left_of_a_claim_that_came_to_nothing(store):
    with live(store):
        assert lock_of(store).is_file()
    assert not store.parent.exists()
    with live(store):
        store.write_text("something came of it")
    assert list(store.parent.iterdir()) == [store]


def test_a_killed_process_holds_nothing(store):
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(store)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match=f"process {process.pid} on"), live(store):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert lock_of(store).is_file()  # what it left is not taken for a lock
    with live(store):
        pass


def test_pages_share_a_store_and_a_live_run_does_not(store):
    with page(store):
        with page(store):
            pass
        assert lock_of(store).is_file()  # the first page still has it
        with pytest.raises(StoreError, match="a page, process"), live(store):
            pass
    with live(store), pytest.raises(StoreError, match="judge there"), page(store):
        pass


def test_a_database_server_is_not_locked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with live("postgresql://ann@host/feedback"), live("postgresql://ann@host/feedback"):
        assert list(tmp_path.iterdir()) == []


def test_where_no_lock_can_be_made_the_store_says_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    with live(tmp_path / "file" / "people.db"):
        pass
