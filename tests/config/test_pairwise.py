"""Options of labelling and comparing that make no sense, and what loading them costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from klimb import KlimbError
from klimb.config.pairwise import CompareConfig, LabelConfig

BOTH = {"model_a": "a", "model_b": "b", "prompts": Path("p.jsonl")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ("a", "b", "c"), "prompts": Path("p")}, "model: expected one model or two, got 3"),
        ({"model": ("a",)}, "prompts: expected a file of prompts"),
        ({"prompts": Path("p")}, "model: expected one or two models"),
        ({"num_pairs_per_prompt": 0}, "num_pairs_per_prompt: expected at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0"),
        ({"temperature": float("nan")}, "temperature: expected a finite number above 0"),
        ({"seed": -1}, "seed: expected a number from 0"),
        ({"port": 70000}, "port: expected"),
        ({"per_pair": 0}, "per_pair: expected at least 1"),
        ({"rater": " "}, "rater: expected"),
    ],
)
def test_labelling_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(KlimbError, match=message):
        LabelConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ()}, "by: expected people, or a reward"),
        ({"by": ("vader", "vader")}, "by: each judge may be named once"),
        ({"completions_per_prompt": 0}, "completions_per_prompt: expected at least 1"),
        ({"tie_margin": -0.1}, "tie_margin: expected a finite number of at least 0"),
        ({"out": Path("compare.json")}, r"out: expected a name that ends in \.html"),
        ({"temperature": -1.0}, "temperature: expected"),
    ],
)
def test_comparing_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(KlimbError, match=message):
        CompareConfig(**(BOTH | options))


def test_options_are_written_as_json_types():
    options = CompareConfig(**BOTH, by=("vader", "people")).to_dict()
    assert json.loads(json.dumps(options)) == options
    assert options["by"] == ["vader", "people"]
    assert options["prompts"] == "p.jsonl"


def test_the_options_load_neither_torch_nor_the_server():
    code = (
        "import sys, klimb.config.pairwise; "
        "print([name for name in ('torch', 'transformers', 'fastapi', 'sqlalchemy') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
