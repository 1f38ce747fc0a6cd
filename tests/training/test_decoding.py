"""Whole runs with truncated distributions, stop strings, a shortest length and a system prompt."""

import json
import math
import string
from pathlib import Path

import pytest

from klimb.config.pairwise import CompareConfig, LabelConfig
from klimb.config.train import TrainConfig
from klimb.data.prompts import read_prompts
from klimb.errors import ConfigError, DataError
from klimb.pairwise.candidates import draw_to_label, find_models
from klimb.rl.declaration import declare

LETTERS = tuple(string.ascii_letters)
SAMPLED = {"top_p": 0.9, "top_k": 40, "min_p": 0.02, "min_new_tokens": 2, "stop": LETTERS}
MODEL = "model/model.safetensors"
USER = {"role": "user", "content": "hello"}
SYSTEM = {"role": "system", "content": "Be brief."}


def lines_of(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"objective": "dapo", "num_minibatches": 2, "num_epochs": 2},
    ],
)
def test_a_run_with_options_of_sampling_resumes_to_the_same_bits(objective, options_in, tmp_path, run):
    changes = {"num_steps": 2, "checkpoint_every": 1, "max_new_tokens": 8, "lr": 0.02, **SAMPLED, **objective}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, cut = (options_in(tmp_path / name, **changes) for name in ("whole", "cut"))
    shown = run(whole)
    run(cut, cut_at=1)
    run(cut, resume=True)
    assert (cut.out / MODEL).read_bytes() == (whole.out / MODEL).read_bytes()

    rows = lines_of(whole.out)
    assert all(row["sampler_gap_max"] < 1e-4 for row in rows)  # the trainer scores what was drawn from
    assert all(math.isfinite(row["grad_norm"]) for row in rows)
    drawn = lines_of(whole.out, "completions")
    assert {row["finish_reason"] for row in drawn} & {"stop"}
    assert min(row["length"] for row in drawn) >= 2
    stopped = [row["completion"] for row in drawn if row["finish_reason"] == "stop"]
    assert not any(set(text[2:]) & set(LETTERS) for text in stopped)
    assert "renormalised" in " ".join(shown.split())
    if objective:
        assert all(row["weights"]["ratio_max"] > 1 for row in rows)


def test_micro_batches_change_a_truncated_run_only_by_rounding(options_in, tmp_path, run):
    changes = {"num_steps": 1, "max_new_tokens": 8, **SAMPLED}
    found = []
    for size in (None, 2):
        (tmp_path / str(size)).mkdir()
        config = options_in(tmp_path / str(size), micro_batch_size=size, **changes)
        run(config)
        found.append(
            ([row["completion"] for row in lines_of(config.out, "completions")], lines_of(config.out))
        )
    assert found[0][0] == found[1][0]
    assert found[0][1][0]["grad_norm"] == pytest.approx(found[1][1][0]["grad_norm"], rel=1e-4)


def test_a_truncated_run_in_slices_scores_what_each_slice_kept(options_in, tmp_path, run):
    changes = {
        "num_steps": 1,
        "num_slices": 2,
        "objective": "decoupled_ppo",
        "baseline": "group_mean",
        **SAMPLED,
    }
    config = options_in(tmp_path, max_new_tokens=8, **changes)
    run(config)
    (row,) = lines_of(config.out)
    assert row["sampler_gap_max"] < 1e-4
    assert row["weights"]["correction_mean"] == pytest.approx(1, abs=1e-4)


def test_options_of_sampling_do_not_change_at_a_resume(make_options, run):
    config = make_options(top_p=0.9, num_steps=2, checkpoint_every=1)
    run(config, cut_at=1)
    with pytest.raises(ConfigError, match=r"top_p: 0\.9 when it began, 0\.8 now"):
        run(make_options(top_p=0.8, num_steps=2, checkpoint_every=1), resume=True)


def declaration(**changes):
    config = TrainConfig(model="m", prompts=Path("p"), reward=("vader",), out=Path("o"), **changes)
    found = declare(config)
    return " ".join(found.words), found.formulas


def test_the_declared_objective_says_what_truncation_means():
    plainly = declaration()
    words, formulas = declaration(top_p=0.9, top_k=50)
    assert "only the most likely tokens (top_k 50, top_p 0.9), renormalised" in words
    assert "the reference is restricted to the same tokens" in words
    assert "the gradient leaves out how the set changes with the weights" in words
    assert "Ratios compare" not in words  # reinforce has none
    assert any(
        line.startswith("S_it = the tokens kept in sampling: the 50 most likely; of these")
        for line in formulas
    )
    assert [line for line in formulas if line not in plainly[1]] == formulas[1:3]
    words, _ = declaration(min_p=0.1, objective="dapo")
    assert "so none is infinite or 0" in words
    words, formulas = declaration(min_new_tokens=5, stop=("\n\n", "User:"), system_prompt="Be brief.")
    assert "The first 5 tokens of a completion are drawn from the policy without its end tokens" in words
    assert r"completes one of '\n\n', 'User:'" in words
    assert "begin with the system prompt" in words
    assert "S_it = the tokens kept in sampling: not an end token where t ≤ 5" in formulas


def test_a_system_prompt_is_the_first_message_unless_there_is_one(write_jsonl):
    file = write_jsonl(
        [
            {"prompt": [USER]},
            {"prompt": [SYSTEM, USER]},
            {"prompt": [{"role": "developer", "content": "x"}, USER]},
        ]
    )
    rows = read_prompts(file, "prompt", "You are kind.")
    assert rows[0].prompt == [{"role": "system", "content": "You are kind."}, USER]
    assert rows[1].prompt == [SYSTEM, USER]
    assert rows[2].prompt == [{"role": "system", "content": "x"}, USER]
    with pytest.raises(
        DataError, match=r"prompts\.jsonl:1: prompt: expected chat messages, since a system prompt"
    ):
        read_prompts(write_jsonl([{"prompt": "plain"}]), "prompt", "You are kind.")


def test_pairs_are_drawn_as_the_options_say_and_remember_it(model_folder, prompts_file):
    options = {"model": (str(model_folder),), "prompts": prompts_file, "max_new_tokens": 8}
    config = LabelConfig(**options, top_k=200, stop=LETTERS)
    assert config.describe_decoding().startswith(", top_k 200, stop 'a' 'b' ")
    pairs = draw_to_label(find_models(config.model), read_prompts(prompts_file), config)[0]
    texts = [candidate.text for _, *both in pairs for candidate in both]
    assert texts
    assert not any(set(text) & set(LETTERS) for text in texts)
    sources = [candidate.source for _, *both in pairs for candidate in both]
    assert all((source["top_k"], source["stop"]) == (200, [*LETTERS]) for source in sources)
    usual = draw_to_label(find_models(config.model), read_prompts(prompts_file), LabelConfig(**options))[0]
    assert "top_k" not in usual[0][1].source
    assert any(set(candidate.text) & set(LETTERS) for _, *both in usual for candidate in both)


def test_options_of_sampling_that_cannot_be_are_refused_when_comparing():
    with pytest.raises(ConfigError, match="top_p: expected a number above 0, up to 1, got 2"):
        CompareConfig(model_a="a", model_b="b", prompts=Path("p"), top_p=2.0)
    with pytest.raises(
        ConfigError, match="min_new_tokens: expected a number from 0 to max_new_tokens 64, got 65"
    ):
        LabelConfig(min_new_tokens=65)
