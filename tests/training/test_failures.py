"""Runs whose rewards fail: what is left out, what is said, and what stops them."""

import io
import json
import math
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from klimb import KlimbError
from klimb.config.train import TrainConfig
from klimb.errors import RewardHangsError
from klimb.rl.declaration import declare
from klimb.training.evaluate.estimates import compare, count_failed, mean, point
from klimb.training.evaluate.summary import summarise
from klimb.training.report.console import Display
from klimb.training.report.report import write_report
from klimb.training.run import train

REWARD = """
import threading
gate = threading.Event()
calls = 0

def f(completions, **_):
    global calls
    calls += 1
    {body}
"""


@pytest.fixture
def make_config(model_folder, prompts_file, tmp_path):
    """A short run whose reward has the given body; six completions per step and at each evaluation."""

    def make(body, **changes):
        (tmp_path / "fragile.py").write_text(REWARD.replace("{body}", body))
        options = {
            "model": str(model_folder),
            "prompts": prompts_file,
            "reward": (f"{tmp_path / 'fragile.py'}:f",),
            "out": tmp_path / "run",
            "prompts_per_step": 2,
            "completions_per_prompt": 3,
            "eval_completions_per_prompt": 1,
            "max_new_tokens": 5,
            "num_steps": 2,
            "lr": 1e-3,
        }
        return TrainConfig(**(options | changes))

    return make


def run(config):
    screen = io.StringIO()
    result = train(config, Display(Console(file=screen, width=250)))
    return result, screen.getvalue()


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


SOME = "return [float('inf') if index == 4 else len(c) for index, c in enumerate(completions)]"


def test_a_run_goes_on_without_the_completions_whose_reward_failed(make_config):
    config = make_config(SOME, max_failed=0.2, preflight=False)
    result, screen = run(config)
    completions = read_lines(config.out / "completions.jsonl")
    name = config.reward[0]
    for step, metrics in enumerate(read_lines(config.out / "metrics.jsonl")):
        rows = [row for row in completions if row["step"] == step]
        assert [row["reward"] is None for row in rows] == [False] * 4 + [True, False]
        assert [row["failure"] for row in rows] == [None] * 4 + [
            f"reward {name}: expected a finite number, got inf",
            None,
        ]
        given = [row["reward"] for row in rows if row["reward"] is not None]
        assert metrics["reward_failures"] == 1
        assert metrics["reward"] == pytest.approx(sum(given) / 5)
        assert metrics["rewards"][name] == pytest.approx(sum(given) / 5)
    assert result.summary.num_failed == 2
    assert not math.isnan(result.summary.gain.mean)
    assert screen.count("failed 1") == 2
    assert screen.count("! reward") == 1  # said once, not at each step
    assert "got inf, at completion 4 of 6" in screen
    assert "2 completions got no reward and are left out" in screen
    page = (config.out / "report.html").read_text()
    assert "In training 2 completions got no reward and counted for nothing" in page
    assert "2 completions of these got no reward and are left out." in page
    assert ">none</span>" in page


def test_a_run_without_failures_says_nothing_of_them(make_config):
    config = make_config("return [float(len(c)) for c in completions]")
    result, screen = run(config)
    assert result.summary.num_failed == 0
    assert "  failed " not in screen
    assert "got no reward" not in (config.out / "report.html").read_text()
    assert all(row["failure"] is None for row in read_lines(config.out / "completions.jsonl"))


def test_a_step_without_any_reward_is_passed_over_and_said(make_config):
    body = "return [None if 2 <= calls <= 3 else 1.0 + index for index in range(len(completions))]"
    config = make_config(body, max_failed=1.0, num_steps=4, checkpoint_every=2, preflight=False)
    result, screen = run(config)
    metrics = read_lines(config.out / "metrics.jsonl")
    assert [row["reward_failures"] for row in metrics] == [6, 6, 0, 0]
    assert [row["reward"] for row in metrics[:2]] == [None, None]
    assert [row["lr"] > 0 for row in metrics] == [False, False, True, True]
    assert metrics[2]["kl"] == pytest.approx(0, abs=1e-4)  # the weights are still those of the reference
    assert screen.count("no completion has a reward: nothing was learned") == 2
    assert "reward none" in screen
    assert (config.out / "checkpoints/step-000002").is_dir()
    assert "In 2 steps there was none that did" in write_report(result.folder).read_text()


def test_an_evaluation_may_have_as_few_failures_as_a_step(make_config):
    config = make_config(SOME, preflight=False)
    with pytest.raises(KlimbError, match=r"got inf, at completion 4 of 6: .*; 1 of 6 completions failed"):
        run(config)
    assert not config.out.exists()


def test_a_judge_that_fails_too_often_stops_the_run_too(make_config, tmp_path):
    (tmp_path / "judge.py").write_text("def f(completions):\n    return []\n")
    config = make_config(
        "return [1.0] * len(completions)", judges=(f"{tmp_path / 'judge.py'}:f",), preflight=False
    )
    with pytest.raises(KlimbError, match=r"judge\.py:f: expected 6 numbers, one per completion, got 0"):
        run(config)


def test_a_reward_that_hangs_stops_the_run_at_a_checkpoint(make_config):
    body = "gate.wait(60 if calls == 3 else 0)\n    return [float(len(c)) for c in completions]"
    config = make_config(body, reward_timeout=0.2, max_failed=1.0, num_steps=9, preflight=False)
    try:
        with pytest.raises(
            RewardHangsError, match=r"is still busy with a call that was given up after 0\.2 s"
        ):
            run(config)
    finally:
        sys.modules["klimb_reward_fragile"].gate.set()
    metrics = read_lines(config.out / "metrics.jsonl")
    assert [row["reward_failures"] for row in metrics] == [0, 6]
    assert (config.out / "checkpoints/step-000002/state.json").is_file()
    (reason,) = {row["failure"] for row in read_lines(config.out / "completions.jsonl") if row["step"] == 1}
    assert reason.endswith("took longer than 0.2 s")


@pytest.mark.slow
def test_a_run_with_steps_that_were_passed_over_is_resumed_to_the_same_bits(make_config, tmp_path):
    body = "return [float(len(c)) if 'x' not in _['prompts'] else None for c in completions]"
    options = {"max_failed": 1.0, "prompts_per_step": 1, "checkpoint_every": 3, "preflight": False}
    whole = make_config(body, out=tmp_path / "whole", num_steps=6, **options)
    run(whole)
    assert {row["reward_failures"] for row in read_lines(whole.out / "metrics.jsonl")} == {0, 3}
    cut = make_config(body, num_steps=3, **options)
    run(cut)
    train(replace(cut, num_steps=6), Display(Console(file=io.StringIO())), resume=True)
    for name in ("weights", "optimiser"):
        file = f"checkpoints/step-000006/{name}.safetensors"
        assert (cut.out / file).read_bytes() == (whole.out / file).read_bytes()
    assert (cut.out / "completions.jsonl").read_text() == (whole.out / "completions.jsonl").read_text()


def evaluation(when, prompt_index, reward, judge=None):
    return {
        "when": when,
        "step": 0,
        "prompt_index": prompt_index,
        "prompt": f"prompt {prompt_index}",
        "completion": "text",
        "reward": reward,
        "rewards": {"judge": judge},
        "kl": 0.5,
        "length": 4,
        "finish_reason": "end",
        "failure": None if reward is not None else "why",
    }


BEFORE = [
    evaluation("before", 0, 1.0),
    evaluation("before", 0, None),
    evaluation("before", 1, None),
    evaluation("before", 1, None),
    evaluation("before", 2, 2.0),
    evaluation("before", 2, 4.0),
]
AFTER = [
    evaluation("after", 0, 3.0),
    evaluation("after", 0, 5.0),
    evaluation("after", 1, 7.0),
    evaluation("after", 1, 7.0),
    evaluation("after", 2, None),
    evaluation("after", 2, 4.0),
]


def test_means_leave_out_what_failed_by_hand():
    # Before, the prompts have 1, nothing, and 3; after, 4, 7 and 4. The second is compared with nothing.
    assert mean(BEFORE, "reward").mean == 2.0
    assert mean(AFTER, "reward").mean == 5.0
    change = compare(BEFORE, AFTER, "reward")
    assert (change.before.mean, change.after.mean, change.gain.mean) == (2.0, 4.0, 2.0)
    assert math.isnan(mean(BEFORE, "judge").mean)
    assert count_failed(BEFORE) == 3
    assert point(AFTER, ["judge"]).num_failed == 1
    assert point(AFTER).kl.mean == 0.5  # what has no reward has a KL all the same


def test_the_summary_counts_what_failed_and_shows_it_as_nothing():
    summary = summarise([*BEFORE, *AFTER], are_held_out=True)
    assert summary.num_failed == 4
    assert summary.num_prompts == 3
    assert summary.gain.mean == 2.0
    assert [example.reward_before for example in summary.examples] == [1.0, None, 2.0]
    assert [example.reward_after for example in summary.examples] == [3.0, 7.0, None]


def test_the_screen_tells_how_many_failed_at_an_evaluation(make_config):
    screen, config = io.StringIO(), make_config(SOME, eval_every=1)
    display = Display(Console(file=screen, width=250))
    display.run_started(config, declare(config), {})
    display.policy_evaluated(BEFORE)
    assert "reward +2.000  KL 0.50  failed 3" in screen.getvalue()
