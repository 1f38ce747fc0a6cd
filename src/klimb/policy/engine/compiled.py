"""Decoder layers compiled by torch.compile, on a GPU, where KLIMB_COMPILE=on asks for it.

What lies between two attentions, such as norms, rotations, gates and sums, becomes a few kernels; attention is called
as it is. Each kind of pass (sampling, scoring, update) is compiled at its first use, which takes some ten seconds once.
"""

import os

import torch

from klimb.model.matmul import is_on_cpu
from klimb.policy.completions import Completions
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import sampling
from klimb.policy.engine.prefix import Engine

VARIABLE = "KLIMB_COMPILE"
"""The environment variable that asks for compiled layers (`on`)."""

_TOLERANCE = 0.1  # nats per token, in bfloat16; another model would give more
BACKEND = "inductor"


def compile_if_asked(engine: Engine, completions: Completions) -> str:
    """Compile a model's layers where that was asked for and works, tried on completions; returns why not, or "".

    Log-probs are compared with those of the layers as they were, and a gradient is found. Where any of that fails the
    layers are left as they were.
    """
    if os.environ.get(VARIABLE) != "on" or is_on_cpu(engine.vocabulary.head.weight):
        return ""
    with torch.no_grad():
        expected = sampling.score(engine, completions, SamplingDistribution())
    try:
        engine.compile(BACKEND)
        found = sampling.score(engine, completions, SamplingDistribution())
        weights = [weight for weight in engine.model.parameters() if weight.requires_grad]
        if weights:
            torch.autograd.grad(found.sum(), weights, allow_unused=True)
        gap = float((found.detach() - expected).abs().max())
    except Exception as error:  # of whatever kind a compiler's is
        engine.uncompile()
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
    if not gap <= _TOLERANCE:
        engine.uncompile()
        return f"log-probs of tokens would differ by up to {gap:.2g} nats"
    return ""
