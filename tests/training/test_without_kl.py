"""Runs at beta 0: no reference is kept, none is run, and nothing claims a KL."""

import json
from dataclasses import replace

import pytest

from klimb.model.trainable import Lora
from klimb.policy.policy import Policy
from klimb.policy.reference import Reference
from klimb.rl.declaration import declare
from klimb.training.preflight.memory import predict_memory, size_of
from klimb.training.report.report import write_report
from klimb.training.setup import load_policy
from klimb.training.storage.folder import RunFolder


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def no_copies(monkeypatch):
    """Let whatever would copy the model to keep it as a reference fail."""
    monkeypatch.setattr("klimb.policy.reference.frozen_copy", lambda _: pytest.fail("a copy"))


@pytest.mark.usefixtures("no_copies")
@pytest.mark.parametrize(
    "way",
    [
        {},
        *(
            pytest.param(way, marks=pytest.mark.slow)
            for way in ({"num_trainable_layers": 1}, {"lora_rank": 2})
        ),
    ],
)
@pytest.mark.usefixtures("drawn_figures")
def test_no_reference_is_kept_or_run_and_no_kl_is_told_of(way, make_options, run, monkeypatch):
    monkeypatch.setattr(Reference, "log_probs", lambda *_: pytest.fail("a pass through the reference"))
    config = make_options(beta=0.0, preflight=True, eval_every=2, **way)
    shown = run(config)
    assert "not measured, as beta is 0" in shown
    assert "no reference to compare with" in shown
    assert "KL," not in shown.partition("change")[2]  # the closing table
    for name in ("metrics", "completions", "evaluations"):
        rows = lines_of(config.out / f"{name}.jsonl")
        assert rows
        assert all("kl" not in row for row in rows)
    page = write_report(RunFolder.open(config.out)).read_text()
    assert "Distance from the reference" not in page
    assert "The KL is not measured" in page


def test_beta_0_moves_the_weights_as_a_kl_that_costs_nothing_would(make_options, run):
    without = make_options(beta=0.0, out=make_options().out.parent / "without")
    measured = make_options(beta=0.0, max_kl=1e9)
    run(without)
    run(measured)
    model = "model/model.safetensors"
    assert (without.out / model).read_bytes() == (measured.out / model).read_bytes()
    assert all(row["kl"] is not None for row in lines_of(measured.out / "metrics.jsonl"))


def test_a_run_without_kl_resumes_to_the_same_bits_and_may_go_on_with_a_beta(make_options, run):
    whole = make_options(beta=0.0, out=make_options().out.parent / "whole")
    run(whole)
    cut = make_options(beta=0.0)
    run(cut, cut_at=2)
    run(cut, resume=True)
    model = "model/model.safetensors"
    assert (cut.out / model).read_bytes() == (whole.out / model).read_bytes()

    other = make_options(beta=0.0, out=cut.out.parent / "other")
    run(other, cut_at=2)
    run(replace(other, beta=0.1), resume=True)
    rows = lines_of(other.out / "metrics.jsonl")
    assert ["kl" in row for row in rows] == [False, False, True, True]
    assert rows[-1]["kl"] != 0
    write_report(RunFolder.open(other.out))


def test_the_memory_of_a_reference_is_not_predicted_where_there_is_none(make_options):
    config = make_options()
    size = size_of(load_policy(config))
    held = [
        predict_memory(size, one, longest_prompt=4).held["reference"]
        for one in (config, replace(config, beta=0.0))
    ]
    assert held == [4 * size.num_moved, 0]
    bounded = replace(config, beta=0.0, max_kl=5.0)
    assert predict_memory(size, bounded, longest_prompt=4).held["reference"] == 4 * size.num_moved


def test_the_declaration_says_that_nothing_is_paid_and_nothing_measured(make_options):
    said = declare(make_options(beta=0.0))
    assert said.formulas[:2] == ["maximise  E_π[r(y)]", "r̃_i = r_i"]
    assert "nothing is paid for the KL" in said.words[0]
    bounded = declare(make_options(beta=0.0, max_kl=5.0))
    assert "k_i = log π(y_i) − log π_ref(y_i)" in bounded.formulas
    assert any("only for the bound max_kl" in word for word in bounded.words)


@pytest.mark.usefixtures("no_copies")
def test_a_policy_without_a_reference_has_none(model_folder):
    policy = Policy.load(model_folder, has_reference=False, lora=Lora(2))
    assert policy.reference is None
