"""The power cut, in short, and what it says of a klimb that does not sync."""

import pytest

from tools.crashlab.power import cut_run, cut_store

pytestmark = pytest.mark.usefixtures("strace")


@pytest.mark.slow
def test_judgements_that_were_acknowledged_outlive_a_power_cut(tmp_path):
    tally = cut_store(tmp_path, 12, num_cuts=30, num_mixtures=2)
    assert tally.losses == []
    assert tally.num_promised >= 12


@pytest.mark.slow
def test_a_judgement_that_is_sent_again_after_a_kill_outlives_a_power_cut(tmp_path):
    assert cut_store(tmp_path, 0, num_mixtures=4).losses == []


@pytest.mark.slow
def test_a_log_that_is_not_synced_after_a_kill_is_noticed(tmp_path):
    lazy = "from klimb.feedback.store.database import Database\nDatabase._sync_log = lambda *_: None"
    assert "1 of 1 acknowledged judgements are gone" in cut_store(tmp_path, 0, lazy).losses[0]


@pytest.mark.slow
def test_a_store_that_does_not_sync_is_noticed(tmp_path):
    lazy = """
from klimb.feedback.store import database
set_up = database._set_up_sqlite
def set_up_lazily(connection, record):
    set_up(connection, record)
    connection.execute("PRAGMA synchronous=NORMAL")
database._set_up_sqlite = set_up_lazily
"""
    tally = cut_store(tmp_path, 3, lazy, num_cuts=60, num_mixtures=2)
    assert any("acknowledged judgements are gone" in line for line in tally.losses)


@pytest.mark.slow
def test_checkpoints_that_were_written_outlive_a_power_cut(tmp_path):
    tally = cut_run(tmp_path, 2, num_mixtures=2)
    assert tally.losses == []
    assert tally.num_promised >= 3


@pytest.mark.slow
@pytest.mark.parametrize("killed_for", ["run", "step-000002"])
def test_checkpoints_of_a_run_that_was_killed_before_outlive_a_power_cut(tmp_path, killed_for):
    assert cut_run(tmp_path, 2, killed_for, num_mixtures=4).losses == []


@pytest.mark.slow
def test_a_run_that_does_not_sync_its_folders_is_noticed(tmp_path):
    lazy = "from klimb.io import atomic\natomic._sync_folder = lambda path: None"
    tally = cut_run(tmp_path, 2, "", lazy, num_mixtures=2)
    assert any("had been written" in line for line in tally.losses)
