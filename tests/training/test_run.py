"""A whole run on a tiny model: what it writes, that it repeats, and what stops it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from klimb import KlimbError
from klimb.config.train import TrainConfig
from klimb.errors import DivergedError
from klimb.training.report.console import Display
from klimb.training.run import train
from klimb.training.setup import load_policy


def run(config):
    screen = io.StringIO()
    result = train(config, Display(Console(file=screen, width=200)))
    return result, screen.getvalue()


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_folder_has_all_that_the_design_promises(make_config):
    config = make_config()
    result, _ = run(config)
    folder = config.out
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "completions.jsonl",
        "config.json",
        "evaluations.jsonl",
        "fingerprints.json",
        "metrics.jsonl",
        "model",
        "report.html",
    ]
    assert TrainConfig.from_dict(json.loads((folder / "config.json").read_text())) == replace(
        config, num_slices=1
    )
    metrics = read_lines(folder / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(5))
    assert metrics[0]["kl"] == 0.0
    assert metrics[-1]["kl"] != 0.0
    assert metrics[0]["sampler_gap_max"] < 1e-5
    completions = read_lines(folder / "completions.jsonl")
    assert len(completions) == 5 * 2 * 3
    for step, row in enumerate(metrics):
        rewards = [completion["reward"] for completion in completions if completion["step"] == step]
        assert row["reward"] == pytest.approx(sum(rewards) / 6)
    evaluations = read_lines(folder / "evaluations.jsonl")
    assert [sum(row["when"] == when for row in evaluations) for when in ("before", "after")] == [12, 12]
    assert result.summary.num_prompts == 6
    assert not result.summary.are_held_out


def test_a_checkpoint_has_the_weights_and_moments_of_its_step(make_config):
    config = make_config(num_trainable_layers=1, num_steps=5)
    run(config)
    checkpoints = config.out / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000005",
    ]
    last = checkpoints / "step-000005"
    weights = load_file(last / "weights.safetensors")
    final = AutoModelForCausalLM.from_pretrained(config.out / "model").state_dict()
    assert weights
    for name, value in weights.items():
        assert name.startswith("model.layers.1.")
        assert torch.equal(value, final[name])
    moments = load_file(last / "optimiser.safetensors")
    assert set(moments) == {f"{name}/{key}" for name in weights for key in ("exp_avg", "exp_avg_sq", "step")}
    assert all(moments[f"{name}/exp_avg"].shape == value.shape for name, value in weights.items())
    assert all(int(value) == 5 for name, value in moments.items() if name.endswith("/step"))
    assert json.loads((last / "state.json").read_text())["num_updates"] == 5


def deterministic(rows):
    timed = {"seconds", "completions_per_second", "peak_memory_bytes"}
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_a_run_repeats_to_the_bit(make_config, tmp_path):
    first, second = make_config(out=tmp_path / "a"), make_config(out=tmp_path / "b")
    run(first)
    run(second)
    for name in ("completions.jsonl", "evaluations.jsonl"):
        assert (first.out / name).read_text() == (second.out / name).read_text()
    assert deterministic(read_lines(first.out / "metrics.jsonl")) == deterministic(
        read_lines(second.out / "metrics.jsonl")
    )
    for part in ("weights", "optimiser"):
        name = f"checkpoints/step-000005/{part}.safetensors"
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes()


@pytest.mark.slow
def test_another_seed_runs_another_way(make_config, tmp_path):
    first, second = make_config(out=tmp_path / "a"), make_config(out=tmp_path / "b", seed=1)
    run(first)
    run(second)
    assert (first.out / "completions.jsonl").read_text() != (second.out / "completions.jsonl").read_text()


def moved_by(config):
    """What a run added to each weight of its model that it moved."""
    start, end = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (config.model, config.out / "model")
    )
    assert start.keys() == end.keys()
    return {name: end[name] - start[name] for name in start if not torch.equal(end[name], start[name])}


def test_an_adapter_moves_linear_layers_alone_by_matrices_of_its_rank(make_config):
    config = make_config(lora_rank=2, lr=0.01, num_steps=2)
    run(config)
    moved = moved_by(config)
    assert {name.split(".")[-2] for name in moved} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert len(moved) == 2 * 7  # of two layers
    for change in moved.values():
        largest, second, third, *_ = torch.linalg.svdvals(change.double()).tolist()
        assert third < 1e-3 * largest  # no more than two directions, to float32's rounding
        assert second > 0


def test_a_step_of_sgd_is_the_rate_times_the_gradient(make_config):
    config = make_config(optimiser="sgd", lr=0.25, max_grad_norm=None, num_steps=1)
    run(config)
    length = sum(float(change.double().square().sum()) for change in moved_by(config).values()) ** 0.5
    (row,) = read_lines(config.out / "metrics.jsonl")
    assert row["grad_norm"] > 0.01
    assert length == pytest.approx(0.25 * row["grad_norm"], rel=1e-4)


def test_micro_batches_change_a_run_by_rounding_alone(make_config, tmp_path):
    options = {
        "optimiser": "sgd",
        "lr": 0.1,
        "num_steps": 2,
    }  # Adam divides by gradients, some of which are rounding
    whole = make_config(out=tmp_path / "whole", **options)
    split = make_config(out=tmp_path / "split", micro_batch_size=2, **options)
    for config in (whole, split):
        run(config)
    expected, found = moved_by(whole), moved_by(split)
    assert expected.keys() == found.keys()
    for name, change in expected.items():
        torch.testing.assert_close(found[name], change, rtol=1e-3, atol=1e-6)


def test_the_reward_rises_on_an_easy_task(make_config, tmp_path):
    (tmp_path / "easy.py").write_text(
        "def spaces(completions, **_):\n    return [c.count('e') for c in completions]\n"
    )
    config = make_config(
        reward=(f"{tmp_path / 'easy.py'}:spaces",),
        lr=0.02,
        beta=0.0,
        max_kl=1e6,  # so that the KL is measured
        num_steps=25,
        completions_per_prompt=32,
        checkpoint_every=100,
    )
    result, _ = run(config)
    summary = result.summary
    assert summary.gain.mean > 3 * summary.gain.half_width > 0
    assert summary.kl.mean > 0.1


def test_held_out_prompts_are_judged_and_never_trained_on(make_config, write_jsonl):
    held_out = write_jsonl([{"prompt": f"unseen {i}", "wanted": "a"} for i in range(3)], "held_out.jsonl")
    config = make_config(eval_prompts=held_out)
    result, screen = run(config)
    assert result.summary.are_held_out
    assert "3 held-out prompts" in screen
    assert {row["prompt"] for row in read_lines(config.out / "evaluations.jsonl")} == {
        "unseen 0",
        "unseen 1",
        "unseen 2",
    }
    assert not any("unseen" in row["prompt"] for row in read_lines(config.out / "completions.jsonl"))


def test_the_screen_declares_the_objective_and_shows_the_result(make_config):
    config = make_config(num_steps=2)
    _, screen = run(config)
    assert "maximise  E_π[r(y)] − 0.05 · KL(π‖π_ref)" in screen
    assert "step 2/2  reward" in screen
    assert "6 training prompts (none were held out) × 2 completions" in screen
    assert str(config.out / "model") in screen
    assert str(config.out / "report.html") in screen


def test_chat_prompts_run_through(make_config, write_jsonl):
    chats = [{"prompt": [{"role": "user", "content": word}], "wanted": "a"} for word in ("hi", "ho")]
    (tmp := write_jsonl(chats)).with_name("chat.py").write_text(
        "def length(completions, **_):\n    return [len(c[0]['content']) for c in completions]\n"
    )
    config = make_config(prompts=tmp, reward=(f"{tmp.with_name('chat.py')}:length",), num_steps=1)
    result, _ = run(config)
    assert result.summary.examples[0].prompt == "user: hi"


def failing_reward(tmp_path, body):
    file = tmp_path / "failing.py"
    file.write_text(f"calls = 0\ndef f(completions, **_):\n    global calls\n    calls += 1\n{body}")
    return (f"{file}:f",)


def test_a_reward_that_fails_midway_loses_nothing(make_config, tmp_path):
    # The first call judges before training; steps 0, 1, 2 succeed, step 3 fails.
    body = "    if calls >= 5:\n        raise ValueError('no more')\n    return [float(len(c)) for c in completions]\n"
    config = make_config(reward=failing_reward(tmp_path, body), preflight=False)
    with pytest.raises(KlimbError, match="raised ValueError: no more") as caught:
        run(config)
    checkpoint = config.out / "checkpoints" / "step-000003"
    assert caught.value.__notes__ == [
        f"steps taken: 3; what was written stays in {config.out}",
        f"the last checkpoint is of step 3; resume from there with: klimb train --resume {config.out}",
    ]
    assert (checkpoint / "state.json").is_file()
    assert len(read_lines(config.out / "metrics.jsonl")) == 3
    assert len(read_lines(config.out / "completions.jsonl")) == 3 * 6


# The first call judges before training. Two steps move weights by about 0.01, the third to infinity.
SCALED = """
calls = 0
def f(completions, **_):
    global calls
    calls += 1
    return [(1e15 if calls > 3 else 1e-32) * (sum(map(ord, c)) % 7) for c in completions]
"""


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_weights(make_config, tmp_path):
    (tmp_path / "scaled.py").write_text(SCALED)
    options = {
        "reward": (f"{tmp_path / 'scaled.py'}:f",), "lr": 1e30, "beta": 0.0, "optimiser": "sgd", "max_grad_norm": None,
        "checkpoint_every": 1, "preflight": False,
    }  # fmt: skip
    config = make_config(**options)
    with pytest.raises(DivergedError, match=r"are NaN|not finite") as caught:
        run(config)
    notes = caught.value.__notes__
    assert notes[0].startswith("steps taken: 3")
    assert any("the last good weights are those after step 2" in note for note in notes)
    sound = make_config(num_steps=2, out=tmp_path / "sound", **options)
    run(sound)
    good = load_file(config.out / "checkpoints/step-000002/weights.safetensors")
    expected = load_file(sound.out / "checkpoints/step-000002/weights.safetensors")
    assert good.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in good.items())


def test_a_prompt_that_is_trained_on_is_not_held_out(make_config, write_jsonl):
    held_out = write_jsonl([{"prompt": "unseen"}, {"prompt": "three"}], "held_out.jsonl")
    with pytest.raises(
        KlimbError, match=r"held_out\.jsonl:2: the prompt is not held out: .*prompts\.jsonl:3"
    ):
        run(make_config(eval_prompts=held_out))


def test_the_result_is_saved_before_it_is_judged(make_config, tmp_path):
    # The first call judges before training, five steps follow, and the seventh call fails.
    body = "    if calls >= 7:\n        raise ValueError('no more')\n    return [float(len(c)) for c in completions]\n"
    config = make_config(reward=failing_reward(tmp_path, body), preflight=False)
    with pytest.raises(KlimbError, match="no more"):
        run(config)
    last = load_file(config.out / "checkpoints/step-000005/weights.safetensors")
    saved = load_policy(make_config(model=str(config.out / "model"))).trainable()
    assert saved.keys() == last.keys()
    assert all(torch.equal(weight, saved[name]) for name, weight in last.items())


@pytest.mark.parametrize("content", ["folder", "file"])
def test_an_output_folder_that_exists_is_refused_before_the_model_is_loaded(content, make_config):
    config = make_config(model="./no-such-model")
    if content == "file":
        config.out.write_text("precious")
    else:
        config.out.mkdir()
        (config.out / "precious").write_text("x")
    with pytest.raises(OSError, match="exists already; choose another --out") as caught:
        run(config)
    assert isinstance(caught.value, KlimbError)
    assert config.out.read_text() == "precious" if content == "file" else (config.out / "precious").exists()


def test_an_empty_output_folder_is_used(make_config):
    config = make_config(num_steps=1)
    config.out.mkdir()
    run(config)
    assert (config.out / "report.html").is_file()


def test_a_prompt_longer_than_the_context_is_named_before_anything_is_written(make_config, write_jsonl):
    file = write_jsonl([{"prompt": "fits", "wanted": "a"}, {"prompt": "x" * 61, "wanted": "a"}])
    config = make_config(prompts=file)
    with pytest.raises(
        KlimbError, match=r"prompts\.jsonl:2: the prompt has 61 tokens; with max_new_tokens 5 it does"
    ):
        run(config)
    assert not config.out.exists()


def test_a_prompt_that_just_fits_the_context_is_taken(make_config, write_jsonl):
    file = write_jsonl([{"prompt": "x" * 59, "wanted": "a"}, {"prompt": "y", "wanted": "a"}])
    config = make_config(prompts=file, num_steps=1)
    run(config)
    rows = read_lines(config.out / "completions.jsonl")
    assert {row["prompt"] for row in rows} == {"x" * 59, "y"}
    assert any(row["prompt"] == "x" * 59 and row["length"] == 5 for row in rows)  # the 64th token is drawn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": ("nonsense",)}, "reward nonsense: unknown"),
        ({"reward": ("builtins:max",)}, "reward builtins:max raised TypeError"),
        ({"prompts": Path("nowhere.jsonl")}, "nowhere.jsonl: no such file"),
        ({"eval_prompts": Path("nowhere.jsonl")}, "nowhere.jsonl: no such file"),
        ({"prompts_per_step": 7}, "prompts_per_step: expected at most the 6 prompts"),
        ({"model": "./nowhere"}, "./nowhere: no such folder or file"),
        ({"num_trainable_layers": 9}, "num_trainable_layers: expected 1 to 2"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(changes, message, make_config):
    config = make_config(**changes)
    with pytest.raises(KlimbError, match=message):
        run(config)
    assert not config.out.exists()
