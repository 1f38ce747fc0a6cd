"""Which checkpoints are kept, and what is left when a folder cannot be written to."""

import errno
import os

import pytest

from klimb.errors import RunFolderError
from klimb.training.storage import checkpoint, folder
from klimb.training.storage.checkpoints import surplus
from klimb.training.storage.folder import RunFolder


@pytest.mark.parametrize(
    ("steps", "keep", "best", "removed"),
    [
        ([2, 4, 6, 8], 2, None, [2, 4]),
        ([2, 4, 6, 8], 2, 2, [4]),
        ([2, 4, 6, 8], 2, 8, [2, 4]),
        ([2, 4, 6, 8], 9, None, []),
        ([2, 4, 6, 8], None, None, []),
        ([8], 1, None, []),
        ([0, 2], 1, 0, []),
        ([], 3, None, []),
    ],
)
def test_the_newest_and_the_best_are_kept(steps, keep, best, removed):
    assert surplus(steps, keep, best) == removed


def steps_of(config):
    return RunFolder.open(config.out).checkpoint_steps()


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (None, [1, 2, 3, 4, 5])])
def test_a_run_leaves_as_many_checkpoints_as_asked_for(keep, left, make_options, run):
    config = make_options(num_steps=5, checkpoint_every=1, keep_checkpoints=keep)
    run(config)
    assert steps_of(config) == left
    assert all(path.name.startswith("step-") for path in (config.out / "checkpoints").iterdir())


def test_the_best_checkpoint_is_kept_beside_the_newest(make_options, run, tmp_path):
    # The judge's opinion of the evaluations, which have 12 completions: the one after the first step is the best.
    (tmp_path / "judge.py").write_text(
        "opinions = iter([0, 7, 1, 2, 3, 4])\n"
        "def f(completions, **_):\n"
        "    return [next(opinions)] * 12 if len(completions) == 12 else [None] * len(completions)\n"
    )
    judge = f"{tmp_path / 'judge.py'}:f"
    config = make_options(
        num_steps=5, checkpoint_every=1, keep_checkpoints=1, judges=(judge,), keep_best=judge, eval_every=1
    )
    run(config)
    assert steps_of(config) == [1, 5]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing_from(function, number):
    """The same function until its call of that number, when the disk is full."""
    calls = iter(range(10**6))

    def call(*arguments, **options):
        return full_disk() if next(calls) >= number else function(*arguments, **options)

    return call


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(
    make_options, run, monkeypatch, essence, tmp_path
):
    config = make_options(num_steps=6)
    # Two files a checkpoint: the third one, after six steps, does not fit.
    monkeypatch.setattr(checkpoint, "save_file", failing_from(checkpoint.save_file, 5))
    with pytest.raises(RunFolderError, match=r"cannot be written to: .*No space left on device") as caught:
        run(config)
    assert caught.value.__notes__ == [
        f"steps taken: 6; what was written stays in {config.out}",
        f"the last checkpoint is of step 4; resume from there with: klimb train --resume {config.out}",
    ]
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    RunFolder.open(config.out).open_checkpoint(4)
    monkeypatch.undo()
    run(config, resume=True)
    run(whole := make_options(num_steps=6, out=tmp_path / "whole"))
    assert essence(config.out) == essence(whole.out)


def test_a_full_disk_while_a_line_is_written_stops_the_run(make_options, run, monkeypatch):
    config = make_options()
    # Evaluation, then metrics and completions of each step: the completions of the third do not fit.
    monkeypatch.setattr(folder, "append_text", failing_from(folder.append_text, 6))
    with pytest.raises(RunFolderError, match="No space left on device") as caught:
        run(config)
    assert "steps taken: 2" in caught.value.__notes__[0]
    assert steps_of(config) == [2]


def test_a_full_disk_while_the_model_is_written_leaves_the_checkpoints(make_options, run, monkeypatch):
    config = make_options()
    monkeypatch.setattr("klimb.policy.policy.Policy.save", full_disk)
    with pytest.raises(RunFolderError, match="No space left on device") as caught:
        run(config)
    assert "the last checkpoint is of step 4" in caught.value.__notes__[1]
    assert not config.out.joinpath("model").exists()
    assert not [path for path in config.out.iterdir() if path.name.startswith(".")]


def test_a_reward_that_fails_on_a_full_disk_is_told_of_as_the_reward(
    make_options, run, monkeypatch, tmp_path
):
    (tmp_path / "failing.py").write_text(
        "calls = 0\ndef f(completions, **_):\n    global calls\n    calls += 1\n"
        "    if calls >= 5:\n        raise ValueError('no more')\n    return [float(len(c)) for c in completions]\n"
    )
    config = make_options(reward=(f"{tmp_path / 'failing.py'}:f",))
    monkeypatch.setattr(checkpoint, "save_file", failing_from(checkpoint.save_file, 2))
    with pytest.raises(Exception, match="no more") as caught:
        run(config)
    assert "the last steps could not be saved" in caught.value.__notes__[0]
    assert "the last checkpoint is of step 2" in caught.value.__notes__[2]


def test_a_folder_that_vanishes_stops_the_run_and_that_is_said(make_options, run, tmp_path):
    (tmp_path / "vandal.py").write_text(
        "import shutil\ncalls = 0\ndef f(completions, **_):\n    global calls\n    calls += 1\n"
        f"    if calls == 4:\n        shutil.rmtree({str(tmp_path / 'run')!r})\n    return [1.0] * len(completions)\n"
    )
    config = make_options(reward=(f"{tmp_path / 'vandal.py'}:f",))
    with pytest.raises(RunFolderError, match=r"cannot be written to: .*No such file") as caught:
        run(config)
    assert caught.value.__notes__[1] == "the run's folder has been removed, with its checkpoints"
    assert not config.out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_stops_the_run_and_leaves_its_checkpoint(make_options, run, tmp_path):
    place = tmp_path / "run" / "checkpoints"
    (tmp_path / "warden.py").write_text(
        "import os\ncalls = 0\ndef f(completions, **_):\n    global calls\n    calls += 1\n"
        f"    if calls == 4:\n        os.chmod({str(place)!r}, 0o555)\n    return [1.0] * len(completions)\n"
    )
    config = make_options(reward=(f"{tmp_path / 'warden.py'}:f",))
    try:
        with pytest.raises(RunFolderError, match=r"cannot be written to: .*Permission denied"):
            run(config)
    finally:
        place.chmod(0o755)
    RunFolder.open(config.out).open_checkpoint(2)
