"""A short run on a tiny model, and what of its folder does not depend on the clock."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
from rich.console import Console

from klimb.config.train import TrainConfig
from klimb.data.prompts import PromptFile
from klimb.io.atomic import sha256, write_file
from klimb.policy.lengths import check_lengths
from klimb.reward.load import load_rewards
from klimb.training.preflight.preflight import PreflightInputs
from klimb.training.preflight.resources import base_memory
from klimb.training.report.console import Display
from klimb.training.run import train
from klimb.training.setup import load_policy

_RULES = """
def letters(completions, **_):
    return [c.count("e") + 0.1 * len(c) for c in completions]

def measure(completions, **_):
    return [-((c.count("e") - 1) ** 2) for c in completions]
"""
_PROMPTS = ("one", "a longer one", "three", "x", "the fifth", "six")
_TIMED = {"seconds", "completions_per_second", "peak_memory_bytes"}


@pytest.fixture(scope="session")
def options_in(model_folder):
    """Options of a run of four short steps with a checkpoint after two, all of whose files lie in one folder."""

    def options_in(folder, **changes):
        if not (folder / "rules.py").exists():
            (folder / "rules.py").write_text(_RULES)
            lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in _PROMPTS]
            (folder / "prompts.jsonl").write_text("".join(lines))
        return TrainConfig(
            **{
                "model": str(model_folder),
                "prompts": folder / "prompts.jsonl",
                "reward": (f"{folder / 'rules.py'}:letters",),
                "out": folder / "run",
                "prompts_per_step": 2,
                "completions_per_prompt": 3,
                "eval_completions_per_prompt": 2,
                "max_new_tokens": 5,
                "num_steps": 4,
                "checkpoint_every": 2,
                "lr": 5e-3,
                "preflight": False,
                **changes,
            }
        )

    return options_in


@pytest.fixture
def make_options(options_in, tmp_path):
    """The same in the folder of a test."""
    return lambda **changes: options_in(tmp_path, **changes)


class Cut(BaseException):
    """Ends a run as no handler expects it."""


class Screen(Display):
    """Shows a run in a string, and cuts it off in a step if asked."""

    def __init__(self, cut_at=None):
        self.text = io.StringIO()
        super().__init__(Console(file=self.text, width=400))
        self.cut_at = cut_at

    def step_finished(self, metrics, rollout):
        super().step_finished(metrics, rollout)
        if metrics["step"] == self.cut_at:
            raise Cut


@pytest.fixture(scope="session")
def run():
    """Run, or go on with a run, and return what was shown; its report, which takes longest, is an empty page."""

    def run(config, *, cut_at=None, **how):
        screen = Screen(cut_at)
        with mock.patch("klimb.training.recorder.write_report", lambda folder: write_file(folder.report, "")):
            if cut_at is None:
                train(config, screen, **how)
            else:
                with pytest.raises(Cut):
                    train(config, screen, **how)
        return screen.text.getvalue()

    return run


_COMMAND = "import sys; from klimb.cli.main import main; sys.exit(main(sys.argv[1:]))"


def start_process(config):
    """Start a run in a process of its own, from the command line."""
    options = [
        part
        for name, value in config.to_dict().items()
        if value is not None and value != [] and not isinstance(value, bool)
        for part in [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    ]
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "train", "--no-preflight", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="session")
def essence():
    """All of a finished run that does not depend on the clock, by the file that it is in."""

    def essence(folder):
        last = sorted((folder / "checkpoints").iterdir())[-1]
        files = [*last.iterdir(), *(folder / "model").iterdir()]
        found = {str(file.relative_to(folder)): sha256(file) for file in files}
        found["metrics"] = [
            {name: value for name, value in row.items() if name not in _TIMED}
            for row in lines_of(folder / "metrics.jsonl")
        ]
        for name in ("completions.jsonl", "evaluations.jsonl", "best.json"):
            found[name] = (folder / name).read_text() if (folder / name).exists() else None
        return found

    return essence


@pytest.fixture(scope="session")
def plain(options_in, run, tmp_path_factory):
    """A run of six steps with micro-batches, warm-up, a falling rate and a KL target; and one cut off in step 5."""
    folder = tmp_path_factory.mktemp("plain")
    config = options_in(
        folder,
        num_steps=6,
        micro_batch_size=2,
        warmup_steps=2,
        lr_schedule="cosine",
        kl_target=0.5,
        kl_horizon=30,
        weight_decay=0.1,
    )
    run(config)
    run(replace(config, out=folder / "cut"), cut_at=4)
    return config


@pytest.fixture(scope="session")
def four_steps(options_in, run, tmp_path_factory):
    """The finished run of `options_in(folder)`."""
    config = options_in(tmp_path_factory.mktemp("four-steps"))
    run(config)
    return config


@pytest.fixture
def cut(plain, tmp_path):
    """The folder of the run that was cut off, for one test alone."""
    shutil.copytree(plain.out.parent / "cut", tmp_path / "run")
    return replace(plain, out=tmp_path / "run")


@pytest.fixture(scope="session")
def tree():
    """All that is in a folder, and when it was last written to."""

    def tree(folder):
        return {
            str(path.relative_to(folder)): (
                path.stat().st_mtime_ns,
                path.read_bytes() if path.is_file() else None,
            )
            for path in folder.rglob("*")
        }

    return tree


_JUDGES = """
import numpy as np
import torch

for seed in (np.random.seed, torch.manual_seed):
    seed(0)


def vowels(completions, wanted, **_):
    return [c.count(w) + 0.1 * len(c) for c, w in zip(completions, wanted)]


def same(completions, **_):
    return [2.5] * len(completions)


def faint(completions, **_):
    return [0.002 * index for index, _ in enumerate(completions)]


def broken(completions, **_):
    raise ValueError("out of order")


def infinite(completions, **_):
    return [float("inf")] * len(completions)


def noisy(completions, **_):  # without Python's own generator, of which the tests' type checker draws
    return [len(c) + np.random.random() + float(torch.rand(())) for c in completions]
"""


@pytest.fixture
def make_config(model_folder, prompts_file, tmp_path):
    """Options of a short run on a tiny model, judged by a function of `_JUDGES`."""
    file = tmp_path / "judges.py"
    file.write_text(_JUDGES)

    def make(judge="vowels", **changes):
        options = {
            "model": str(model_folder),
            "prompts": prompts_file,
            "reward": (f"{file}:{judge}",),
            "out": tmp_path / "run",
            "prompts_per_step": 2,
            "completions_per_prompt": 3,
            "eval_completions_per_prompt": 2,
            "max_new_tokens": 5,
            "num_steps": 5,
            "checkpoint_every": 2,
            "lr": 1e-3,
        }
        return TrainConfig(**(options | changes))

    return make


@pytest.fixture
def make_setting(make_config):
    """A run that is about to begin."""

    def make(**changes):
        config = make_config(**changes)
        rows = PromptFile(config.prompts, config.prompt_column)
        reward = load_rewards(
            config.reward,
            config.reward_weights,
            judges=config.judges,
            uncertainty_penalty=config.uncertainty_penalty,
        )
        policy = load_policy(config)
        longest = check_lengths(policy, rows, config.max_new_tokens)
        return PreflightInputs(config, policy, reward, rows, len(rows), longest, base_memory(config.device))

    return make
