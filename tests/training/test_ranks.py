"""A run on ranks that are threads: its folder has the bytes of a run in one process, and all ranks end alike."""

import threading
from dataclasses import replace

import pytest

from klimb.errors import ConfigError, RewardError, RunFolderError
from klimb.training.observer import Observer
from klimb.training.ranks import require_alike, require_shared
from klimb.training.run import train
from klimb.training.setup import load_policy
from klimb.training.signals import Interruption, RunInterrupted
from klimb.training.storage.folder import RunFolder
from klimb.training.storage.read_only import ReadOnlyFolder
from worlds import on_ranks


@pytest.fixture
def train_on(monkeypatch):
    """Run on so many ranks, without the report, which takes longest; models are loaded one after the other."""
    lock = threading.Lock()

    def load(config):
        with lock:
            return load_policy(config)

    monkeypatch.setattr("klimb.training.setup.load_policy", load)
    monkeypatch.setattr("klimb.training.recorder.write_report", lambda folder: folder.report.write_text(""))

    def train_on(size, config, **how):
        return on_ranks(size, lambda world: train(config, Observer(), world=world, **how))

    return train_on


def test_two_ranks_write_the_bytes_that_one_process_writes(options_in, train_on, essence, tmp_path):
    changes = {
        "num_slices": 2,
        "prompts_per_step": 4,
        "eval_every": 2,
        "keep_best": "reward",
        "kl_target": 0.5,
    }
    config = options_in(tmp_path, kl_horizon=30, num_steps=3, **changes)
    train_on(1, config)
    train_on(2, replace(config, out=tmp_path / "shared"))
    assert essence(tmp_path / "shared") == essence(config.out)


def test_a_run_is_resumed_on_other_numbers_of_ranks_to_the_same_bytes(
    options_in, train_on, essence, tmp_path
):
    config = options_in(tmp_path, num_slices=2, num_steps=3, checkpoint_every=1)
    train_on(1, config)
    moved = replace(config, out=tmp_path / "moved")
    for size, num_steps, resume in ((2, 1, False), (1, 2, True), (2, 3, True)):
        train_on(size, replace(moved, num_steps=num_steps), resume=resume)
    assert essence(moved.out) == essence(config.out)


def test_a_run_keeps_the_slices_that_it_began_with(make_options, train_on):
    config = make_options(num_steps=1)
    train_on(2, config)
    assert RunFolder(config.out).read_config()["num_slices"] == 2
    with pytest.raises(ConfigError, match="cannot change num_slices: 2 when it began, 1 now"):
        train(replace(config, num_steps=2, num_slices=1), Observer(), resume=True)


def test_numbers_of_ranks_that_cannot_share_the_slices_are_refused(make_options, train_on):
    with pytest.raises(ConfigError, match="prompts_per_step: expected a multiple of the 3 slices"):
        train_on(3, make_options(prompts_per_step=4))
    with pytest.raises(ConfigError, match="a run of 2 slices gives the same bits on 1, 2 ranks, got 4"):
        train_on(4, make_options(prompts_per_step=4, num_slices=2))
    with pytest.raises(ConfigError, match="num_slices: people see the completions of a whole step"):
        train_on(2, make_options(reward=("people",)))


def test_ranks_that_differ_are_named(make_options):
    config = make_options()

    def compare(world):
        options = replace(config, seed=world.rank)
        require_alike(options, {"prompts": {"content": "a" * 63 + str(world.rank)}}, world)

    expected = "rank 1 differs from rank 0: options seed: 1, not 0; prompts content: .*, not .*. Start all ranks with"
    with pytest.raises(ConfigError, match=expected):
        on_ranks(2, compare)


def test_a_folder_that_a_rank_does_not_see_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    def look(world):
        require_shared(RunFolder(tmp_path if world.rank == 0 else tmp_path / "elsewhere"), world)

    with pytest.raises(RunFolderError, match="rank 1 does not see what rank 0 writes there"):
        on_ranks(2, look)


def test_a_signal_on_one_rank_stops_all_after_the_same_step(make_options, train_on, monkeypatch):
    class Asked(Interruption):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.num_gathers = 0

        @property
        def signum(self):
            self.num_gathers += 1
            is_second = threading.current_thread().name.endswith("rank 1")
            return 15 if is_second and self.num_gathers == 3 else None

        @signum.setter
        def signum(self, value):
            pass

    monkeypatch.setattr("klimb.training.signals.Interruption", Asked)
    config = make_options()
    with pytest.raises(RunInterrupted, match="stopped after 2 ") as caught:
        train_on(2, config)
    assert caught.value.exit_code == 143
    assert RunFolder(config.out).checkpoint_steps() == [2]


def test_rank_0_alone_writes(tmp_path, tree):
    folder = ReadOnlyFolder(tmp_path)
    (tmp_path / "model").mkdir()
    before = tree(tmp_path)
    with folder.claimed():
        folder.write_config({})
        folder.write_fingerprints({})
        folder.append("metrics", [{}])
        folder.save_model(lambda path: (path / "file").write_text(""))
        assert folder.save_checkpoint(1, 1, {}) == folder.checkpoint(1)
        folder.remove_checkpoint(1)
        folder.remove_model()
        folder.sweep()
        folder.write_best(None)
    assert tree(tmp_path) == before
    writers = {"create"}  # which makes one that writes
    for name in vars(RunFolder).keys() - vars(ReadOnlyFolder).keys() - writers:
        assert not name.startswith(("write", "save", "remove", "append")), name


def test_rewards_that_fail_end_all_ranks(make_options, train_on):
    file = make_options().prompts.parent / "broken.py"
    file.write_text("def reward(completions, **_):\n    raise ValueError('out of order')\n")
    with pytest.raises(RewardError, match="out of order"):
        train_on(2, make_options(reward=(f"{file}:reward",)))
