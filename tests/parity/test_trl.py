"""TRL's own losses, run in TRL's environment, have the gradients that klimb's score weights are.

`make .venv-trl/.done` makes the environment; without it the tests are skipped.
"""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from klimb import PRESETS, Objective, TokenBatch, score_weights
from klimb.core.corrections import corrections
from three_completions import ADVANTAGES, DENOMINATORS, IS_TOKEN, NEW, OLD, REFERENCE, SAMPLER

PYTHON = Path(__file__).parents[2] / ".venv-trl" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="TRL's environment is missing: make .venv-trl/.done"),
]
CLIPPED = Objective()
MEAN = replace(CLIPPED, aggregation="sequence_mean")
LEVEL = {"importance_sampling_level": "sequence"}
WEIGHTS = corrections(OLD, SAMPLER, IS_TOKEN, "mask", level="sequence", high=3.0)

CASES = {  # klimb's objective: TRL's options; the same gradient is expected
    "trl_grpo": (PRESETS["trl_grpo"], {"loss_type": "dapo"}),
    "trl_grpo, beta": (replace(PRESETS["trl_grpo"], beta=0.1), {"loss_type": "dapo", "beta": 0.1}),
    "grpo": (replace(PRESETS["grpo"], beta=0.0), {}),
    "grpo, k3 without correction": (PRESETS["grpo"], {"beta": 0.04, "use_bias_correction_kl": False}),
    "clip higher": (replace(CLIPPED, clip_high=0.4), {"loss_type": "dapo", "epsilon_high": 0.4}),
    "delta is the dual clip": (replace(MEAN, clip_dual=3.0), {"delta": 3.0}),
    "dr_grpo": (PRESETS["dr_grpo"], {"loss_type": "dr_grpo"}),
    "gspo": (replace(MEAN, ratio="sequence_mean"), LEVEL),
    "sequence level with dapo": (replace(CLIPPED, ratio="sequence_mean"), LEVEL | {"loss_type": "dapo"}),
    "luspo": (
        replace(CLIPPED, ratio="sequence_mean", aggregation="sequence_sum"),
        LEVEL | {"loss_type": "luspo"},
    ),
    "cispo": (replace(PRESETS["cispo"]), {"loss_type": "cispo", "epsilon_high": 5.0}),
    "cispo, bound 3": (replace(PRESETS["cispo"], clip_high=3.0), {"loss_type": "cispo", "epsilon_high": 3.0}),
    "sapo": (PRESETS["sapo"], {"loss_type": "sapo"}),
    "vespo": (replace(CLIPPED, ratio="sequence", trust_region="gamma"), {"loss_type": "vespo"}),
    "sequence mask of vLLM": (PRESETS["trl_grpo"], {"loss_type": "dapo", "use_vllm": True}),
    "trl_rloo": (replace(PRESETS["trl_rloo"], beta=0.0), None),
}


def filled(array):
    return np.where(IS_TOKEN, array, 0.0).tolist()


@pytest.fixture(scope="module")
def gradients():
    """TRL's gradients with the sign of ascent, by case."""
    cases = {
        name: {"trainer": "rloo" if options is None else "grpo", "options": options or {}}
        | ({"sampler_weights": filled(WEIGHTS)} if options and options.get("use_vllm") else {})
        for name, (_, options) in CASES.items()
    }
    cases["cispo by default"] = {"trainer": "grpo", "options": {"loss_type": "cispo"}}
    cases["sequence level, KL"] = {"trainer": "grpo", "options": LEVEL | {"beta": 0.1}}
    arrays = {
        "log_probs": filled(NEW),
        "old_log_probs": filled(OLD),
        "ref_log_probs": filled(REFERENCE),
        "advantages": ADVANTAGES[:, 0].tolist(),
        "mask": IS_TOKEN.astype(int).tolist(),
    }
    finished = subprocess.run(
        [PYTHON, Path(__file__).with_name("trl_losses.py")],
        input=json.dumps({"arrays": arrays, "cases": cases}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    (answer,) = [line for line in finished.stdout.splitlines() if line.startswith("gradients:")]
    found = json.loads(answer.removeprefix("gradients:"))
    return {name: -np.array(values) for name, values in found.items()}


def ours(objective):
    batch = TokenBatch(IS_TOKEN, ADVANTAGES, OLD, REFERENCE)
    if objective.sampler_correction != "none":
        batch = replace(batch, sampler_log_probs=SAMPLER)
    return np.asarray(score_weights(NEW, batch, objective, DENOMINATORS))


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_trls(name, gradients):
    objective, options = CASES[name]
    if not (options or {}).get("use_vllm"):
        objective = replace(objective, sampler_correction="none")
    np.testing.assert_allclose(gradients[name], ours(objective), rtol=0, atol=1e-6)


def test_trls_cispo_weighs_on_policy_tokens_by_a_fifth_by_default(gradients):
    expected = 0.2 / 6 * np.where(IS_TOKEN, ADVANTAGES, 0.0)  # every ratio here is above 0.2
    np.testing.assert_allclose(gradients["cispo by default"], expected, atol=1e-12)
    unbounded = ours(PRESETS["cispo"])
    assert np.abs(gradients["cispo by default"] - unbounded).max() > 0.1


def test_trls_kl_at_the_sequence_level_is_not_the_unbiased_one(gradients):
    ours_with_kl = ours(replace(MEAN, ratio="sequence_mean", beta=0.1))
    assert np.abs(gradients["sequence level, KL"] - ours_with_kl).max() > 1e-3
