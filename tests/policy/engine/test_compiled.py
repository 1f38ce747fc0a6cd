"""Compiled layers: the same log-probs and gradients, by few kernels; and a notice where a compiler fails."""

import os

import pytest
import torch

from klimb.policy.engine import compiled, packed
from klimb.policy.policy import Policy, SampleKey

pytestmark = pytest.mark.filterwarnings("ignore")  # compilers warn of what is their own


@pytest.fixture
def off_the_cpu(monkeypatch):
    for module in (
        "model.matmul",
        "policy.engine.attention",
        "policy.engine.vocabulary",
        "policy.engine.compiled",
    ):
        monkeypatch.setattr(f"klimb.{module}.is_on_cpu", lambda _: False)
    monkeypatch.setenv(packed.VARIABLE, "on")
    yield
    torch._dynamo.reset()


def results(policy):
    drawn = policy.sample([[5, 6, 7, 8, 9], [3]], 3, max_new_tokens=6, key=SampleKey(0, 0, [0, 1]))
    log_probs = policy.log_probs(drawn)
    gradients = torch.autograd.grad(log_probs.square().sum(), list(policy.trainable().values()))
    return [log_probs.detach(), policy.reference.log_probs(drawn), *gradients]


def check_backend(backend, family, make_model, tokenizer, monkeypatch):
    def make():
        return Policy(make_model(family, vocab_size=10, dtype=torch.float64), tokenizer)

    expected = results(make())
    monkeypatch.setenv(compiled.VARIABLE, "on")
    monkeypatch.setattr(compiled, "BACKEND", backend)
    torch._dynamo.utils.counters.clear()
    policy = make()
    assert policy.notes == []
    found = results(policy)
    for model in (policy._working.model, policy.reference._model):
        assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(
    "KLIMB_TEST_ENVIRONMENTS" not in os.environ,
    reason="compiles for minutes on a CPU: KLIMB_TEST_ENVIRONMENTS=1 runs it",
)
@pytest.mark.usefixtures("off_the_cpu")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_a_compiler_traces_is_the_same_model(family, make_model, bare_tokenizer, monkeypatch):
    check_backend("aot_eager", family, make_model, bare_tokenizer, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(
    "KLIMB_TEST_ENVIRONMENTS" not in os.environ,
    reason="compiles for minutes on a CPU: KLIMB_TEST_ENVIRONMENTS=1 runs it",
)
@pytest.mark.usefixtures("off_the_cpu")
def test_inductors_kernels_give_the_same_numbers(make_model, bare_tokenizer, monkeypatch):
    check_backend("inductor", "llama", make_model, bare_tokenizer, monkeypatch)


@pytest.mark.usefixtures("off_the_cpu")
def test_a_compiler_that_fails_is_left_out_and_named(make_model, bare_tokenizer, monkeypatch):
    def backend(*_):
        raise RuntimeError("no compiler here")

    expected = results(Policy(make_model("llama", vocab_size=10), bare_tokenizer))
    monkeypatch.setenv(compiled.VARIABLE, "on")
    monkeypatch.setattr(compiled, "BACKEND", backend)
    policy = Policy(make_model("llama", vocab_size=10), bare_tokenizer)
    (note,) = policy.notes
    assert note.startswith("layers are not compiled: ")
    for ours, theirs in zip(results(policy), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
