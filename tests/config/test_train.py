"""The options of a run."""

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from klimb import KlimbError
from klimb.config.names import BASELINES as ALSO_NAMED
from klimb.config.train import TrainConfig, read_options
from klimb.core.advantages import BASELINES
from klimb.core.objective import Objective
from klimb.rl.axes import BASELINES as DECLARED
from klimb.rl.declaration import declare

AS_THE_PRESET_SAYS = (
    "aggregation",
    "clip_dual",
    "clip_high",
    "clip_low",
    "correction_high",
    "correction_level",
    "correction_low",
    "discount",
    "drop_uniform_groups",
    "entropy_coefficient",
    "filter_high",
    "filter_low",
    "kl_credit",
    "kl_estimator",
    "kl_place",
    "mask_truncated",
    "max_drift",
    "num_epochs",
    "num_minibatches",
    "overlong_buffer",
    "overlong_factor",
    "ratio",
    "ratio_cap",
    "sampler_beta",
    "sampler_correction",
    "scale",
    "scale_ddof",
    "scale_epsilon",
    "soft_negative",
    "soft_positive",
    "trace_decay",
    "trust_region",
    "value_clip",
    "value_coefficient",
    "whiten_ddof",
    "whiten_tokens",
)


def config(**changes):
    return TrainConfig(
        **({"model": "m", "prompts": Path("p"), "reward": ("vader",), "out": Path("o")} | changes)
    )


def test_the_options_and_their_defaults_are_these():
    # A change here is a change of the command line and of people's files: say so in CHANGELOG.md.
    assert config().to_dict() == {
        "model": "m",
        "prompts": "p",
        "reward": ["vader"],
        "out": "o",
        "reward_weights": None,
        "judges": [],
        "uncertainty_penalty": 0.0,
        "accept_unproven_reward": False,
        "max_failed": 0.1,
        "reward_timeout": None,
        "people_host": "127.0.0.1",
        "people_port": 8321,
        "people_rater": None,
        "people_per_pair": 1,
        "people_pairs": None,
        "refit_every": 0,
        "prompt_column": "prompt",
        "eval_prompts": None,
        "eval_completions_per_prompt": 4,
        "eval_every": None,
        "keep_best": None,
        "patience": None,
        "num_trainable_layers": None,
        "lora_rank": None,
        "lora_alpha": None,
        "trust_remote_code": False,
        "device": None,
        "prompts_per_step": 8,
        "completions_per_prompt": 4,
        "max_new_tokens": 64,
        "skip_special_tokens": "chat",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": None,
        "min_p": 0.0,
        "min_new_tokens": 0,
        "stop": [],
        "system_prompt": None,
        "precision": "float32",
        "micro_batch_size": None,
        "num_slices": None,
        "rank_timeout": 1800.0,
        "objective": "reinforce",
        "baseline": "leave_one_out",
        "beta": 0.05,
        **dict.fromkeys(AS_THE_PRESET_SAYS),
        "kl_target": None,
        "kl_horizon": 500,
        "optimiser": "adamw",
        "lr": 1e-5,
        "weight_decay": 0.0,
        "adam_betas": [0.9, 0.999],
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "warmup_steps": 0,
        "lr_schedule": "constant",
        "max_logprob_mismatch": None,
        "on_alarm": "stop",
        "max_kl": None,
        "min_entropy": None,
        "max_entropy": None,
        "max_duplicate_share": None,
        "max_grad_spike": None,
        "preflight": True,
        "num_steps": 100,
        "checkpoint_every": 50,
        "keep_checkpoints": 3,
        "seed": 0,
        "track": [],
        "track_project": "klimb",
        "push_to_hub": None,
        "value_model": None,
        "value_lr": None,
        "value_warmup_steps": None,
    }


def test_a_configuration_survives_json():
    original = config(reward_weights=(1.0,), eval_prompts=Path("e"), lora_rank=4)
    assert TrainConfig.from_dict(original.to_dict()) == original


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"micro_batch_size": 0}, "micro_batch_size: expected at least 1"),
        ({"beta": -1.0}, "beta: expected a finite number of at least 0"),
        ({"lr": float("nan")}, "lr: expected a finite number of at least 0"),
        ({"seed": 2**64}, r"seed: expected a number below 2\^64"),
        ({"reward_weights": (float("nan"),)}, "reward_weights: expected finite numbers"),
        ({"seed": -1}, "seed: expected a finite number of at least 0"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0"),
        ({"top_p": 0.0}, "top_p: expected a number above 0, up to 1, got 0.0"),
        ({"top_p": float("nan")}, "top_p: expected a number above 0"),
        ({"top_k": 0}, "top_k: expected at least 1, got 0; leave it out"),
        ({"min_p": 1.5}, "min_p: expected a number from 0 to 1, got 1.5"),
        ({"min_new_tokens": 65}, "min_new_tokens: expected a number from 0 to max_new_tokens 64, got 65"),
        ({"min_new_tokens": -1}, "min_new_tokens: expected a number from 0"),
        ({"stop": ("a", "")}, "stop: expected texts of at least one character, got an empty one"),
        ({"system_prompt": " "}, "system_prompt: expected a text, got an empty one"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: expected a finite number above 0"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas: expected two numbers"),
        (
            {"completions_per_prompt": 1},
            "completions_per_prompt: the baseline leave_one_out .* needs at least 2.*; use --baseline none or",
        ),
        (
            {"completions_per_prompt": 1, "baseline": "none", "scale": "group_std"},
            "completions_per_prompt: the scale group_std .* needs at least 2, got 1; use --scale none",
        ),
        (
            {"objective": "gspo", "prompts_per_step": 2},
            "num_minibatches: .* raise --prompts-per-step, or lower --num-minibatches",
        ),
        (
            {"lora_rank": 4, "num_trainable_layers": 2},
            "lora_rank and num_trainable_layers exclude each other",
        ),
        ({"lora_alpha": 4.0}, "lora_alpha: only used with lora_rank; add it"),
        ({"eval_every": 0}, "eval_every: expected at least 1, got 0"),
        ({"patience": 0}, "patience: expected at least 1, got 0"),
        ({"max_failed": 1.1}, "max_failed: expected a share from 0 to 1, got 1.1"),
        ({"max_failed": float("nan")}, "max_failed: expected a share from 0 to 1, got nan"),
        ({"reward_timeout": 0.0}, "reward_timeout: expected a finite number above 0, got 0.0"),
        ({"judges": ("https://me:hush@host/",)}, "reward https://\\*\\*\\*@host/ has a password, token"),
        ({"max_kl": 0.0}, "max_kl: expected a finite number above 0, got 0"),
        ({"min_entropy": -1.0}, "min_entropy: expected a finite number above 0"),
        ({"max_entropy": float("inf")}, "max_entropy: expected a finite number above 0"),
        ({"max_duplicate_share": 1.0}, "max_duplicate_share: expected a share below 1, got 1"),
        ({"max_grad_spike": 0.0}, "max_grad_spike: expected a finite number above 0"),
        ({"keep_best": "reward"}, "keep_best: needs --eval-every N, the steps between"),
        (
            {"keep_best": "vader", "eval_every": 5},
            r"keep_best: expected reward or one of the judges \(there are none\), got 'vader'",
        ),
        (
            {"keep_best": "x", "eval_every": 5, "judges": ("a", "b")},
            r"one of the judges \(a, b\), got 'x'",
        ),
        ({"patience": 2, "eval_every": 5}, "patience: needs --keep-best JUDGE, the judge that"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: expected at least 1, got 0"),
        ({"track": ("excel",)}, "track: expected one of trackio, tensorboard, wandb, mlflow, got 'excel'"),
        ({"track": ("wandb", "wandb")}, "track: each tracker may be named once, got wandb, wandb"),
        ({"track_project": " "}, "track_project: expected a name"),
        ({"push_to_hub": "model"}, "push_to_hub: expected the name of a repository, OWNER/NAME, got 'model'"),
        ({"push_to_hub": "me/a--b"}, "push_to_hub: expected the name of a repository"),
        ({"kl_target": 0.0}, "kl_target: expected a finite number above 0, got 0.0"),
        ({"kl_target": 6.0, "beta": 0.0}, "kl_target: adapts beta by multiplying it, so beta cannot be 0"),
        (
            {"kl_target": 6.0, "kl_horizon": 31},
            "kl_horizon: expected at least the 32 completions of a step, got 31",
        ),
        (
            {"lr_schedule": "cosine", "warmup_steps": 10, "num_steps": 10},
            "lr_schedule: falls after warm-up, and warmup_steps 10 leaves none of the 10 steps",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message):
    with pytest.raises(KlimbError, match=message):
        config(**changes)


def test_a_group_of_one_is_fine_without_a_group_baseline():
    assert config(completions_per_prompt=1, baseline="none").completions_per_prompt == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "not a TOML file"),
        ("learning_rate = 1", "unknown option 'learning_rate'; did you mean 'lr'"),
    ],
)
def test_a_file_of_options_that_is_wrong_is_named(text, message, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(KlimbError, match=rf"run\.toml: {message}"):
        read_options(file)


@pytest.mark.parametrize("baseline", ["none", "batch_mean", "leave_one_out", "group_normalised"])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_the_declared_objective_names_what_was_chosen(baseline, optimiser):
    declaration = declare(config(baseline=baseline, optimiser=optimiser, beta=0.25, lr=3e-4))
    text = " ".join([*declaration.words, *declaration.formulas])
    assert "0.25 · KL(π‖π_ref)" in text
    assert "0.0003" in text
    assert ("AdamW" in text) == (optimiser == "adamw")
    assert "A_i = " in text


def test_every_baseline_has_its_name_in_the_options_and_its_words():
    literal, _ = get_args(get_type_hints(TrainConfig)["baseline"])
    named = set(get_args(literal)) - set(ALSO_NAMED)
    with_more_than_rewards = {"group_mean", "length_weighted", "greedy", "value"}
    assert named == set(BASELINES) | with_more_than_rewards == set(DECLARED)


def test_every_field_of_an_objective_is_an_option():
    fields = {field.name for field in dataclasses.fields(Objective)} - {"reproduces"}
    assert fields <= {field.name for field in dataclasses.fields(TrainConfig)}


def test_the_declared_update_has_clipping_warm_up_and_decay():
    formulas = declare(
        config(optimiser="sgd", lr=0.1, warmup_steps=4, weight_decay=0.5, max_grad_norm=2.0)
    ).formulas
    assert formulas[-3:] == [
        "g ← g · min(1, 2 / ‖g‖)",
        "lr = 0.1 · min(1, step / 4)",
        "w ← w + lr · g − lr · 0.5 · w",
    ]
    assert declare(config(optimiser="sgd", lr=0.1, max_grad_norm=None)).formulas[-1] == "w ← w + 0.1 · g"


def test_the_declared_objective_states_weights_and_what_is_trained():
    words = " ".join(
        declare(config(reward=("a", "b"), reward_weights=(1.0, 0.5), lora_rank=8, warmup_steps=3)).words
    )
    assert "(a + 0.5 · b)" in words
    assert "low-rank adapter (rank 8)" in words
    assert "over 3 steps" in words


def test_the_declared_update_has_the_fall_of_the_rate():
    linear = declare(
        config(
            lr_schedule="linear", lr=0.1, warmup_steps=4, num_steps=100, max_grad_norm=None, optimiser="sgd"
        )
    )
    assert linear.formulas[-2:] == [
        "lr = 0.1 · min(1, step / 4) · min(1, (101 − step) / 96)",
        "w ← w + lr · g",
    ]
    assert (
        "reached linearly over 4 steps, which falls linearly to 0 at the end of 100 steps" in linear.words[-1]
    )
    cosine = declare(config(lr_schedule="cosine", lr=0.1, num_steps=100))
    assert "lr = 0.1 · (1 + cos(π · max(0, step − 1) / 100)) / 2" in cosine.formulas


def test_the_declared_objective_says_how_beta_is_moved():
    declaration = declare(config(beta=0.25, kl_target=6.0))
    assert "maximise  E_π[r(y)] − β · KL(π‖π_ref)" in declaration.formulas
    assert "r̃_i = r_i − β · k_i" in declaration.formulas
    assert declaration.formulas[-1] == "β ← β · (1 + min(0.2, max(−0.2, (mean of k) / 6 − 1)) · 32 / 500)"
    assert "β is 0.25 in the first step and moved after each, so that the KL stays near 6 nats" in " ".join(
        declaration.words
    )
