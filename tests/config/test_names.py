"""Names of options: former ones, those of other libraries, typing errors, and the sections of a file."""

import subprocess
import sys
from pathlib import Path

import pytest

from klimb import KlimbError
from klimb.cli.main import main
from klimb.config.names import ELSEWHERE, FORMER, meant_by
from klimb.config.sections import SECTIONS
from klimb.config.train import TrainConfig, read_options

KNOWN = {name for section in SECTIONS.values() for name in section.__dataclass_fields__}


def config(**changes):
    return TrainConfig(model="m", prompts=Path("p"), reward=("vader",), out=Path("o"), **changes)


def test_every_option_is_of_one_section():
    assert sum(len(section.__dataclass_fields__) for section in SECTIONS.values()) == len(KNOWN)
    assert set(TrainConfig.__dataclass_fields__) == KNOWN


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("learning_rate", "lr"),
        ("num_generations", "completions_per_prompt"),
        ("max_completion_length", "max_new_tokens"),
        ("max_same", "max_duplicate_share"),
        ("num_step", "num_steps"),
        ("temprature", "temperature"),
        ("epsilon", "clip_low"),
        ("num_iterations", "num_epochs"),
        ("loss_type", "objective"),
        ("zebra", None),
    ],
)
def test_the_option_that_was_meant_is_found(written, meant):
    assert meant_by(written, KNOWN) == meant


def test_names_of_other_libraries_are_none_of_klimbs_and_stand_for_options_that_there_are():
    assert set(ELSEWHERE.values()) <= KNOWN
    assert not set(ELSEWHERE) & KNOWN


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--learning-rate", "--learning-rate: no such option; did you mean --lr?"),
        ("--num-generations=8", "--num-generations: no such option; did you mean --completions-per-prompt?"),
        ("--num-step", "--num-step: no such option; did you mean --num-steps?"),
        ("--zebra", "--zebra: no such option; klimb train --help lists them"),
    ],
)
def test_a_flag_that_is_none_is_answered_with_the_nearest(flag, answer, capsys):
    assert main(["train", flag]) == 2
    assert capsys.readouterr().err == f"klimb: {answer}\n"


def test_a_former_flag_is_understood_with_a_warning(tmp_path, capsys):
    missing = str(tmp_path / "none.jsonl")
    run = ["train", "--model", "m", "--prompts", missing, "--reward", "vader", "--out", str(tmp_path / "run")]
    assert main([*run, "--max-same", "7"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning == (
        "klimb: warning: the option max_same is now called max_duplicate_share; "
        "the former name will go with the next version"
    )
    assert error == "klimb: max_duplicate_share: expected a share below 1, got 7.0"


@pytest.mark.parametrize("flags", [["--method", "whole"], ["--method=whole"]])
def test_a_former_method_of_learning_a_reward_is_understood_with_a_warning(flags, tmp_path, capsys):
    learn = [
        "reward",
        "train",
        "--feedback",
        str(tmp_path / "none.jsonl"),
        "--base",
        "m",
        "--out",
        str(tmp_path),
    ]
    assert main([*learn, *flags, "--num-members", "2"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning == (
        "klimb: warning: method whole is now called method full; the former name will go with the next version"
    )
    assert error.startswith("klimb: num_members: an ensemble needs method head; with method full")


def test_a_method_of_learning_a_reward_is_checked_and_renamed_in_python_too():
    learn = "from klimb.config.reward import RewardConfig; print(RewardConfig(('f',), 'm', 'out', method={!r}).method)"
    run = {"capture_output": True, "text": True}
    former, unknown = (
        subprocess.run([sys.executable, "-c", learn.format(method)], check=False, **run)
        for method in ("whole", "all")
    )
    assert former.stdout == "full\n"
    assert former.stderr.count("method whole is now called method full") == 1
    assert "method: expected head, lora or full, got 'all'" in unknown.stderr


def test_options_may_stand_in_sections_or_flat_and_under_former_names(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\n[sampling]\ntemperature = 0.5\n[guard]\nmax_spike = 3.0\n')
    assert read_options(file) == {"model": "m", "temperature": 0.5, "max_grad_spike": 3.0}
    assert "max_spike is now called max_grad_spike" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sampler]\n", r"unknown section \[sampler\]; the sections are model, data, reward"),
        ("[sampling]\nlr = 1.0\n", r"lr: is in \[sampling\], but belongs in \[optimizer\]"),
        ("[sampling]\ntemprature = 1.0\n", r"unknown option 'temprature'; did you mean 'temperature'\?"),
        ("lr = 1.0\n[optimizer]\nlr = 2.0\n", "lr: occurs twice"),
        ("max_same = 0.5\n[guard]\nmax_duplicate_share = 0.5\n", "max_duplicate_share: occurs twice"),
    ],
)
def test_what_does_not_fit_in_a_file_of_options_is_named(text, message, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(KlimbError, match=message):
        read_options(file)


def test_baselines_have_the_literatures_names_too():
    assert config(baseline="rloo").baseline == "leave_one_out"
    assert config(baseline="grpo").baseline == "group_normalised"


def test_a_run_of_an_earlier_version_keeps_its_options():
    options = config(max_duplicate_share=0.5).to_dict()
    earlier = {
        {new: old for old, new in FORMER.items()}.get(name, name): value for name, value in options.items()
    }
    assert "max_same" in earlier
    assert TrainConfig.from_dict(earlier).max_duplicate_share == 0.5
