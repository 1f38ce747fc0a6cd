"""What is reported to a tracker and when, that a run does not depend on it, and that a resumed run continues."""

import json
from dataclasses import replace

import pytest

from klimb.errors import MissingExtraError
from klimb.training.run import check
from klimb.training.trackers import registry, tracking
from klimb.training.trackers.sent import SentPoints
from klimb.training.trackers.tracker import Tracker


class Notebook(Tracker):
    """Writes down what it is given; fails at the call that it is told to."""

    def __init__(self, lines, fails_at=None):
        self.lines, self.fails_at = lines, fails_at

    def _note(self, call, *what):
        self.lines.append((call, *what))
        if call == self.fails_at:
            raise ConnectionError("no route to https://me:hush@host\x1b[2J")

    def open(self, run):
        self._note("open", run)
        return run.run_id or "run-1"

    def log(self, step, metrics):
        self._note("log", step, metrics)

    def log_table(self, step, name, table):
        self._note("table", step, name, table)

    def log_report(self, report, numbers):
        self._note("report", report.is_file(), numbers)

    def close(self, outcome):
        self._note("close", outcome)


@pytest.fixture
def notebook(monkeypatch):
    """Two trackers in place of trackio and wandb, the first of which may fail; returns what each was given."""
    lines = {"trackio": [], "wandb": []}
    fails = {}
    monkeypatch.setattr(registry, "_is_installed", lambda _: True)
    monkeypatch.setattr(tracking, "make_tracker", lambda name: Notebook(lines[name], fails.get(name)))
    return lines, fails


def calls(lines):
    return [line[0] if line[0] != "table" else line[2] for line in lines]


def test_a_tracker_gets_the_options_every_step_every_evaluation_and_the_report(notebook, make_options, run):
    lines, _ = notebook
    config = make_options(track=("trackio",), eval_every=2, track_project="tones")
    run(config)
    got = lines["trackio"]
    steps = ["log", "log"]
    assert calls(got) == [
        "open", "log", "completions/before", "log", "completions/train-000000", "log",
        "log", "completions/step-000002", *steps, "log", "completions/step-000004", "log", "completions/after",
        "report", "close",
    ]  # fmt: skip
    opened = got[0][1]
    assert (opened.project, opened.name, opened.run_id, opened.step) == ("tones", "run", None, 0)
    assert opened.options == replace(config, num_slices=1).to_dict()
    assert "KL(π‖π_ref)" in opened.notes
    metrics = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    logged = [
        (step, found)
        for call, step, found in (line for line in got if line[0] == "log")
        if "train/kl" in found
    ]
    assert [step for step, _ in logged] == [0, 1, 2, 3]
    for row, (_, found) in zip(metrics, logged, strict=True):
        assert found["train/reward"] == row["reward"]
        assert found["train/rewards/rules.py_letters"] == row["rewards"][config.reward[0]]
        assert found["train/seconds/sampling"] == row["seconds"]["sampling"]
    evaluated = [
        (step, found)
        for _, step, found in (line for line in got if line[0] == "log")
        if "eval/reward" in found
    ]
    assert [step for step, _ in evaluated] == [0, 2, 4, 4]
    table = next(line[3] for line in got if line[0] == "table")
    assert len(table.rows) == 6
    assert dict(zip(table.columns, table.rows[1], strict=True)).keys() >= {
        "prompt",
        "completion",
        "reward",
        "kl",
    }
    assert table.rows[1][1] == "a longer one"
    is_written, numbers = got[-2][1:]
    assert is_written
    assert numbers["final/reward_gain"] == pytest.approx(
        numbers["final/reward_after"] - numbers["final/reward_before"]
    )
    assert got[-1] == ("close", "finished")
    assert json.loads((config.out / "trackers.json").read_text()) == {"trackio": "run-1"}


@pytest.mark.parametrize("call", ["open", "log", "table", "report", "close"])
def test_a_tracker_that_fails_warns_once_and_changes_nothing(
    call, notebook, run, essence, four_steps, tmp_path, capsys
):
    lines, fails = notebook
    fails["trackio"] = call
    config = replace(four_steps, out=tmp_path / "tracked", track=("trackio", "wandb"))
    run(config)
    assert essence(config.out) == essence(four_steps.out)
    assert calls(lines["trackio"]).count(call) <= 1
    assert lines["wandb"][-1] == ("close", "finished")
    said = [line for line in capsys.readouterr().err.splitlines() if "track" in line]
    assert len(said) == 1
    assert said[0].startswith(
        "klimb: warning: track: trackio failed and is left out from here on (no route to"
    )
    assert "hush" not in said[0]
    assert "\x1b" not in said[0]


def test_a_run_that_is_cut_off_is_closed_as_failed_and_continues_under_its_id(notebook, make_options, run):
    lines, _ = notebook
    config = make_options(track=("trackio", "wandb"))
    run(config, cut_at=3)
    assert lines["wandb"][-1] == ("close", "failed")
    lines["wandb"].clear()
    run(config, resume=True)
    opened = lines["wandb"][0][1]
    assert (opened.run_id, opened.step) == ("run-1", 2)
    assert logged_steps(lines["wandb"]) == [3, 4]  # step 2 was sent before the crash
    assert lines["wandb"][-1] == ("close", "finished")


def logged_steps(lines):
    return [line[1] for line in lines if line[0] == "log"]


def test_each_point_reaches_a_tracker_once_however_often_a_run_crashes(notebook, make_options, run):
    lines, _ = notebook
    config = make_options(track=("wandb",), eval_every=2)
    run(config, cut_at=3)
    run(config, resume=True, cut_at=2)
    run(config, resume=True)
    assert logged_steps(lines["wandb"]) == [0, 0, 1, 2, 2, 3, 4, 4]  # each evaluation before its step
    names = [line[2] for line in lines["wandb"] if line[0] == "table"]
    assert sorted(names) == sorted(set(names))


def test_steps_that_came_out_differently_are_sent_as_well(notebook, make_options, run):
    lines, _ = notebook
    config = make_options(track=("wandb",), num_steps=5)
    run(config, cut_at=4)
    run(replace(config, lr=0.5), resume=True, from_step=2)
    assert logged_steps(lines["wandb"]) == [0, 0, 1, 2, 3, 2, 3, 4, 5]


def test_a_tracker_that_purges_gets_all_points_from_the_checkpoint_on(
    notebook, make_options, run, monkeypatch
):
    lines, _ = notebook
    monkeypatch.setattr(Notebook, "purges", True)
    monkeypatch.setattr(Notebook, "keeps_points", False)
    config = make_options(track=("wandb",), eval_every=2)
    run(config, cut_at=3)
    lines["wandb"].clear()
    run(config, resume=True)
    assert calls(lines["wandb"])[1:3] == ["log", "completions/step-000002"]  # purged, and not evaluated again
    assert logged_steps(lines["wandb"]) == [2, 2, 3, 4, 4]


def test_a_line_that_a_crash_cut_off_counts_as_not_sent(tmp_path):
    SentPoints(tmp_path, "wandb").add("step 0", {"reward": 1.0})
    with (tmp_path / "tracked.jsonl").open("a") as file:
        file.write('{"tracker": "wandb", "poi')
    sent = SentPoints(tmp_path, "wandb")
    assert sent.has("step 0", {"reward": 1.0})
    assert not sent.has("step 0", {"reward": 1.5})
    assert not sent.has("step 1", {"reward": 1.0})
    assert not SentPoints(tmp_path, "mlflow").has("step 0", {"reward": 1.0})


def test_another_tracker_may_join_when_a_run_is_resumed(notebook, make_options, run):
    lines, _ = notebook
    config = make_options(track=("trackio",))
    run(config, cut_at=3)
    run(replace(config, track=("trackio", "wandb")), resume=True)
    assert lines["wandb"][0][1].run_id is None
    assert json.loads((config.out / "trackers.json").read_text()) == {"trackio": "run-1", "wandb": "run-1"}


def test_a_reward_that_fails_at_once_leaves_no_run_at_a_tracker(notebook, make_config, run):
    lines, _ = notebook
    with pytest.raises(RuntimeError, match="out of order"):
        run(make_config("broken", track=("trackio",)))
    assert lines["trackio"] == []


@pytest.mark.parametrize("begin", ["run", "check"])
def test_a_missing_extra_is_named_before_the_model_is_loaded(begin, make_options, run, monkeypatch):
    monkeypatch.setattr(registry, "_is_installed", lambda name: name == "tensorboard")
    config = make_options(track=("mlflow", "tensorboard", "wandb"), model="nowhere/at-all")
    with pytest.raises(MissingExtraError, match=r"pip install 'klimb\[mlflow,wandb\]'"):
        run(config) if begin == "run" else check(config)
    assert not config.out.exists()


def test_a_folder_of_earlier_runs_is_not_taken_for_a_library(monkeypatch, tmp_path):
    (tmp_path / "surely_no_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not registry._is_installed("surely_no_library")
    assert registry._is_installed("json")


def test_damaged_ids_count_as_none(tmp_path):
    (tmp_path / tracking.RUN_IDS).write_text("[1")
    assert tracking.read_run_ids(tmp_path) == {}
