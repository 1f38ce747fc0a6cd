"""Whole runs of objectives, with several updates per batch, resumed to the same bits."""

import json
import math

import pytest

from klimb.config.train import TrainConfig
from klimb.core.presets import PRESETS
from klimb.errors import ConfigError
from klimb.training.storage.folder import RunFolder

WITH_UPDATES = {
    "grpo": {},
    "dapo": {"clip_high": 0.4},
    "gspo": {},
    "cispo": {"top_p": 0.9},
    "reinforce_plus_plus": {},
    "openrlhf_rloo": {"beta": 0.1},
    "prime_rl": {},
    "deepseek_v3_2": {"kl_estimator": "exact", "entropy_coefficient": 0.01, "top_k": 200},
    "trl_grpo": {"num_trainable_layers": 1},
}
"""Each with two minibatches and two epochs."""
MODEL = "model/model.safetensors"


def lines_of(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "objective",
    [name if name == "dapo" else pytest.param(name, marks=pytest.mark.slow) for name in WITH_UPDATES],
)
def test_a_run_with_several_updates_a_batch_resumes_to_the_same_bits(objective, options_in, tmp_path, run):
    changes = {"num_minibatches": 2, "num_epochs": 2, **WITH_UPDATES[objective]}
    changes |= {"objective": objective, "num_steps": 3, "checkpoint_every": 1}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = options_in(tmp_path / "whole", **changes)
    run(whole)
    cut = options_in(tmp_path / "cut", **changes)
    run(cut, cut_at=1)
    run(cut, resume=True)
    for boundary in (1, 2):
        assert (cut.out / MODEL).read_bytes() == (whole.out / MODEL).read_bytes()
        run(cut, resume=True, from_step=boundary)
    assert (cut.out / MODEL).read_bytes() == (whole.out / MODEL).read_bytes()

    rows = lines_of(whole.out)
    updates = 4
    assert [row["updates"] for row in rows] == [updates] * 3
    assert all(row["drift"] > row["sampler_gap_mean"] for row in rows)
    assert all(row["weights"]["ratio_max"] > 1 for row in rows)
    assert all(0 < row["weights"]["effective_share"] <= 1 for row in rows if row["grad_norm"])
    last = RunFolder.open(whole.out).open_checkpoint(3)
    assert (last.step, last.num_updates) == (3, 3 * updates)


@pytest.mark.parametrize(
    "objective", sorted(set(PRESETS) - set(WITH_UPDATES) - {"ppo", "decoupled_ppo", "reinforce"})
)
def test_every_other_preset_runs(objective, make_options, run):
    config = make_options(objective=objective, num_steps=2, num_minibatches=1, eval_completions_per_prompt=1)
    shown = run(config)
    assert f"The objective is {objective} (" in shown
    rows = lines_of(config.out)
    assert all(math.isfinite(row["grad_norm"]) for row in rows)
    weights = [row.get("weights", {}) for row in rows]
    if not PRESETS[objective].is_sum_of_completions:
        # One update a batch: on-policy, so nothing is clipped and ratios are 1 but for rounding.
        assert all(
            found["clipped_low"] == found["clipped_high"] == 0 for found in weights if "ratio_max" in found
        )
        assert all(abs(found["ratio_max"] - 1) < 1e-3 for found in weights if "ratio_max" in found)


def test_rloo_is_the_default_with_its_own_beta_to_the_same_bits(options_in, tmp_path, run):
    for name in ("rloo", "plain", "reinforce"):
        (tmp_path / name).mkdir()
    named = options_in(tmp_path / "rloo", objective="rloo")
    plain = options_in(tmp_path / "plain", beta=0.03)
    run(named)
    run(plain)
    assert (named.out / MODEL).read_bytes() == (plain.out / MODEL).read_bytes()


@pytest.mark.parametrize("objective", ["ppo", "decoupled_ppo"])
def test_a_preset_with_a_value_function_runs_with_another_baseline_too(objective, make_options, run):
    config = make_options(objective=objective, baseline="group_mean", num_steps=1)
    run(config)
    assert lines_of(config.out)[0]["updates"] == 4
    assert "value" not in lines_of(config.out)[0]


def test_an_objective_of_ones_own_is_a_record_in_a_file(make_options, run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from klimb import PRESETS, Objective\n"
        "gate = replace(PRESETS['grpo'], reproduces='mine alone', trust_region='soft', beta=0.0)\n"
        "number = 3\n"
    )
    config = make_options(objective=f"{file}:gate", num_steps=1, num_epochs=2)
    shown = run(config)
    assert "mine alone), but with num_epochs 2 instead of 1" in shown
    for name, message in {
        "number": "has no Objective 'number'; it has gate",
        "other": "has no Objective 'other'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            make_options(objective=f"{file}:{name}")
    with pytest.raises(ConfigError, match=r"no file .*none\.py"):
        make_options(objective=f"{tmp_path / 'none.py'}:gate")
    file.with_name("broken.py").write_text("1/0")
    with pytest.raises(ConfigError, match=r"loading .*broken\.py raised ZeroDivisionError"):
        make_options(objective=f"{tmp_path / 'broken.py'}:gate")
    with pytest.raises(ConfigError, match=r"objective: expected one of reinforce, .* got 'gppo'"):
        make_options(objective="gppo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": "grpo", "completions_per_prompt": 1},
            "the baseline group_mean compares completions of one prompt",
        ),
        (
            {"objective": "gspo", "num_minibatches": 3},
            "num_minibatches: .* at most the 2 prompts of a step, got 3",
        ),
        (
            {"objective": "remax", "reward": ("people",)},
            "baseline: greedy needs the reward of a single completion",
        ),
        ({"num_epochs": 2}, "ratio: with none, all but the first of the 2 updates"),
        (
            {
                "objective": "gspo",
                "kl_place": "reward",
                "kl_credit": "own",
                "kl_estimator": "k1",
                "beta": 0.1,
            },
            "ratio: sequence_mean is one number",
        ),
        (
            {"kl_estimator": "exact"},
            "kl_estimator: exact differentiates the KL at each prefix, and a reward is a constant; choose kl_place",
        ),
        ({"entropy_coefficient": -0.1}, "entropy_coefficient: expected a number of at least 0, got -0.1"),
        ({"entropy_coefficient": math.inf}, "entropy_coefficient: expected a number of at least 0, got inf"),
        ({"objective": "dapo", "clip_high": -1.0}, "clip_high: expected a number of at least 0"),
        ({"objective": "grpo", "kl_place": "reward"}, "kl_estimator: k3 in the reward"),
        ({"objective": "dapo", "overlong_buffer": 2.0}, "overlong_buffer: expected a number from 0 to 1"),
    ],
)
def test_options_that_have_no_meaning_together_are_refused_before_anything_is_loaded(
    changes, message, make_options
):
    with pytest.raises(ConfigError, match=message):
        make_options(**changes)


def test_options_survive_the_run_folder(make_options, run):
    config = make_options(objective="dapo", clip_high=0.4, num_minibatches=2, num_steps=1)
    run(config)
    options = json.loads((config.out / "config.json").read_text())
    assert TrainConfig.from_dict(options).algorithm == config.algorithm
    assert options["clip_high"] == 0.4
    assert options["clip_low"] is None


def test_completions_cut_off_at_the_limit_leave_gradient_and_denominators(make_options, run):
    config = make_options(objective="dr_grpo", mask_truncated=True, num_steps=1)
    run(config)
    ended = [row["finish_reason"] == "end" for row in lines_of(config.out, "completions")]
    (row,) = lines_of(config.out)
    assert not all(ended)
    assert row["weights"]["left_out"] == ended.count(False) / len(ended)
