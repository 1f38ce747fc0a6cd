"""The losses and advantages of OpenRLHF 0.11 and verl 0.9.1, run by themselves, are klimb's.

`make .venv-peers/.done` fetches the two packages, without what they depend on; without it the tests are skipped. Where
a peer differs from its paper or from klimb, the difference is asserted.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from klimb import PRESETS, Objective, TokenBatch, score_weights
from klimb.core.advantages import leave_one_out
from klimb.core.baselines import greedy_baseline, group_mean, length_weighted, scaled
from klimb.core.corrections import corrections
from klimb.core.returns import generalised_advantages, returns_to_go
from klimb.core.values import value_weights
from klimb.core.whitening import whiten_tokens
from three_completions import ADVANTAGES, DENOMINATORS, IS_TOKEN, NEW, OLD, REFERENCE, SAMPLER

FOLDER = Path(__file__).parents[2] / ".venv-peers"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "verl").is_dir(), reason="OpenRLHF and verl are missing: make .venv-peers/.done"
    ),
]

CLIPPED = Objective()
MEAN = replace(CLIPPED, aggregation="sequence_mean")
GEOMETRIC = replace(MEAN, ratio="sequence_mean")
KL_ALONE = replace(CLIPPED, beta=1.0)
TRUNCATED = {"sampler_correction": "truncate", "correction_low": 0.5, "correction_high": 5.0}
CORRECTS = {"enable_vllm_is_correction": True}

OPENRLHF = {  # klimb's objective: PolicyLoss's options; the same gradient is expected
    "openrlhf_rloo, reinforce_plus_plus": (CLIPPED, {}),
    "clip higher": (replace(CLIPPED, clip_high=0.4), {"clip_eps_high": 0.4}),
    "dual clip": (replace(CLIPPED, clip_dual=3.0), {"dual_clip": 3.0}),
    "mean over sequences": (MEAN, {"token_level_loss": False}),
    "gspo": (GEOMETRIC, {"policy_loss_type": "gspo"}),
    "tis": (replace(CLIPPED, **TRUNCATED), CORRECTS | {"vllm_is_truncated_threshold": [0.5, 5.0]}),
    "icepop": (
        replace(CLIPPED, **(TRUNCATED | {"sampler_correction": "mask"})),
        CORRECTS | {"vllm_is_truncated_threshold": [0.5, 5.0], "vllm_is_correction_type": "icepop"},
    ),
    "seq-mask-tis": (
        replace(CLIPPED, sampler_correction="truncate", filter_low=0.5, filter_high=2.0),
        CORRECTS | {"vllm_is_truncated_threshold": [0.5, 2.0], "vllm_is_correction_type": "seq-mask-tis"},
    ),
}
VERL = {  # klimb's objective: verl's loss mode and options
    "verl_grpo: vanilla": (PRESETS["verl_grpo"], {"loss_mode": "vanilla"}),
    "clip higher": (
        replace(PRESETS["verl_grpo"], clip_high=0.4),
        {"loss_mode": "vanilla", "clip_ratio_high": 0.4},
    ),
    "mean over sequences": (
        replace(PRESETS["verl_grpo"], aggregation="sequence_mean"),
        {"loss_mode": "vanilla", "loss_agg_mode": "seq-mean-token-mean"},
    ),
    "sum over sequences": (
        replace(PRESETS["verl_grpo"], aggregation="sequence_sum"),
        {"loss_mode": "vanilla", "loss_agg_mode": "seq-mean-token-sum"},
    ),
    "sum": (
        replace(PRESETS["verl_grpo"], aggregation="sum"),
        {"loss_mode": "vanilla", "loss_agg_mode": "token-sum"},
    ),
    "constant": (
        replace(PRESETS["verl_grpo"], aggregation="constant"),
        {
            "loss_mode": "vanilla",
            "loss_agg_mode": "seq-mean-token-sum-norm",
            "batch_info": {"loss_scale_factor": 4},
        },
    ),
    "gspo": (GEOMETRIC, {"loss_mode": "gspo", "loss_agg_mode": "seq-mean-token-mean"}),
    "sapo": (PRESETS["sapo"], {"loss_mode": "sapo"}),
    "gmpo": (PRESETS["gmpo"], {"loss_mode": "geo_mean", "clip_ratio_low": 0.4, "clip_ratio_high": 0.4}),
    "gmpo, clipped": (
        replace(PRESETS["gmpo"], clip_low=0.2, clip_high=0.2),
        {"loss_mode": "geo_mean"},
    ),
    "cispo": (replace(PRESETS["cispo"], clip_low=0.8, clip_high=1.2), {"loss_mode": "cispo"}),
    "dppo": (PRESETS["dppo"], {"loss_mode": "dppo_tv"}),
    "dppo, bound 0.1": (
        replace(PRESETS["dppo"], clip_low=0.1, clip_high=0.1),
        {"loss_mode": "dppo_tv", "clip_ratio_low": 0.1, "clip_ratio_high": 0.1},
    ),
    "dro": (
        replace(PRESETS["dro"], aggregation="token_mean"),
        {"loss_mode": "dro", "dro_beta": 0.05},
    ),
    "gpg: reinforce by tokens": (
        replace(CLIPPED, ratio="none", trust_region="unbounded"),
        {"loss_mode": "gpg"},
    ),
    "decoupled: token weights to 2": (
        replace(PRESETS["verl_grpo"], sampler_correction="truncate", correction_high=2.0),
        {"loss_mode": "vanilla", "sampler_weights": "token"},
    ),
}
ESTIMATORS = {
    ("openrlhf_kl", "k1"): "k1",
    ("openrlhf_kl", "k2"): "k2",
    ("openrlhf_kl", "k3"): "k3",
    ("verl_kl", "kl"): "k1",
    ("verl_kl", "mse"): "k2",
    ("verl_kl", "low_var_kl"): "k3",
    ("verl_kl", "k3+"): "k2",  # the value of k3, the gradient of k2
}

REWARDS = np.array([[1.0, 0.0, 0.0, 0.0], [4.0, 2.0, 2.0, 0.0]])
LENGTHS = np.array([[3, 1, 1, 3], [2, 2, 1, 4]])
HAS = np.arange(4) < LENGTHS.reshape(-1, 1)
AT_LAST = np.arange(4) == LENGTHS.reshape(-1, 1) - 1
VALUES = np.linspace(-0.5, 0.8, 32).reshape(8, 4)


def filled(array, is_token=IS_TOKEN):
    return np.where(is_token, array, 0.0).tolist()


def estimated(estimator, *, groups=True, config=None, rewards=None, **more):
    arrays = {
        "token_level_rewards": filled(REWARDS.reshape(-1, 1) if rewards is None else rewards, AT_LAST),
        "response_mask": HAS.astype(int).tolist(),
        **{name: np.asarray(values).tolist() for name, values in more.pop("arrays", {}).items()},
    }
    return {
        "estimator": estimator,
        "arrays": arrays,
        "groups": [0] * 4 + [1] * 4 if groups else None,
        "config": config,
        "options": more,
    }


ADVANTAGES_OF = {
    "grpo": estimated("grpo"),
    "grpo without std": estimated("grpo", norm_adv_by_std_in_grpo=False),
    "rloo": estimated("rloo"),
    "opo": estimated("opo"),
    "remax": estimated("remax", groups=False, arrays={"reward_baselines": np.repeat([0.5, 1.0], 4)}),
    "reinforce_plus_plus": estimated("reinforce_plus_plus", groups=False, config={"gamma": 0.9}),
    "reinforce_plus_plus_baseline": estimated("reinforce_plus_plus_baseline"),
    "gae": estimated("gae", groups=False, arrays={"values": VALUES}, gamma=0.9, lam=0.8),
}


@pytest.fixture(scope="module")
def answers():
    """What the peers found: gradients with the sign of ascent, and advantages, by case."""
    losses = {f"openrlhf, {name}": ("openrlhf_policy", options) for name, (_, options) in OPENRLHF.items()}
    for name, (_, options) in VERL.items():
        weights = filled(corrections(OLD, SAMPLER, IS_TOKEN, "truncate", high=2.0))
        given = {"sampler_weights": weights} if "sampler_weights" in options else {}
        losses[f"verl, {name}"] = ("verl_policy", options | given)
    for loss, estimator in ESTIMATORS:
        losses[f"{loss}, {estimator}"] = (loss, {"estimator": estimator})
    losses["openrlhf, value"] = ("openrlhf_value", {"clip_eps": 0.5})
    losses["verl, value"] = ("verl_value", {"clip": 0.5})
    losses["openrlhf, gspo with correction"] = (
        "openrlhf_policy",
        CORRECTS | {"policy_loss_type": "gspo", "vllm_is_truncated_threshold": [0.5, 5.0]},
    )
    arrays = {
        "log_probs": filled(NEW),
        "old_log_probs": filled(OLD),
        "ref_log_probs": filled(REFERENCE),
        "sampler_log_probs": filled(SAMPLER),
        "advantages": filled(ADVANTAGES),
        "mask": IS_TOKEN.astype(int).tolist(),
    }
    request = {
        "arrays": arrays,
        "losses": {name: {"loss": loss, "options": options} for name, (loss, options) in losses.items()},
        "advantages": ADVANTAGES_OF,
    }
    finished = subprocess.run(
        [sys.executable, Path(__file__).with_name("peer_losses.py"), FOLDER],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    (answer,) = [line for line in finished.stdout.splitlines() if line.startswith("answers:")]
    found = json.loads(answer.removeprefix("answers:"))
    gradients = {name: -np.array(values) for name, values in found["losses"].items()}
    return gradients, {name: np.array(values) for name, values in found["advantages"].items()}


def ours(objective):
    batch = TokenBatch(IS_TOKEN, ADVANTAGES, OLD, REFERENCE)
    if objective.sampler_correction != "none":
        batch = replace(batch, sampler_log_probs=SAMPLER)
    return np.asarray(score_weights(NEW, batch, objective, DENOMINATORS))


@pytest.mark.parametrize("name", OPENRLHF)
def test_the_gradient_is_openrlhfs(name, answers):
    np.testing.assert_allclose(answers[0][f"openrlhf, {name}"], ours(OPENRLHF[name][0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", VERL)
def test_the_gradient_is_verls(name, answers):
    np.testing.assert_allclose(answers[0][f"verl, {name}"], ours(VERL[name][0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("loss", "estimator"), ESTIMATORS)
def test_the_gradient_of_the_kl_is_the_peers(loss, estimator, answers):
    with_kl = ours(replace(KL_ALONE, kl_estimator=ESTIMATORS[loss, estimator])) - ours(CLIPPED)
    np.testing.assert_allclose(answers[0][f"{loss}, {estimator}"], with_kl, rtol=0, atol=1e-6)


@pytest.mark.parametrize("peer", ["openrlhf", "verl"])
def test_the_gradient_of_the_clipped_value_loss_is_the_peers(peer, answers):
    values, old, returns = (np.where(IS_TOKEN, array, 0.0) for array in (NEW, OLD, ADVANTAGES))
    expected = np.asarray(value_weights(values, old, returns, clip=0.5)) / 6 * IS_TOKEN
    np.testing.assert_allclose(answers[0][f"{peer}, value"], expected, rtol=0, atol=1e-6)


def per_token(advantages):
    return np.asarray(advantages).reshape(-1, 1) * HAS


EXPECTED = {
    "grpo": lambda: per_token(scaled(group_mean(REWARDS), REWARDS, "group_std", epsilon=1e-6)),
    "grpo without std": lambda: per_token(group_mean(REWARDS)),
    "rloo": lambda: per_token(leave_one_out(REWARDS)),
    "opo": lambda: per_token(length_weighted(REWARDS, LENGTHS)),
    "remax": lambda: per_token(greedy_baseline(REWARDS, [0.5, 1.0])),
    "reinforce_plus_plus": lambda: whiten_tokens(
        returns_to_go(np.where(AT_LAST, REWARDS.reshape(-1, 1), 0.0), HAS, 0.9), HAS, ddof=1
    ),
    "reinforce_plus_plus_baseline": lambda: whiten_tokens(per_token(group_mean(REWARDS)), HAS, ddof=1),
    "gae": lambda: whiten_tokens(
        generalised_advantages(np.where(AT_LAST, REWARDS.reshape(-1, 1), 0.0), VALUES, HAS, 0.9, 0.8)[0],
        HAS,
        ddof=1,
    ),
}


@pytest.mark.parametrize("name", ADVANTAGES_OF)
def test_the_advantages_are_verls(name, answers):
    found = np.where(HAS, answers[1][name], 0.0)
    np.testing.assert_allclose(found, np.asarray(EXPECTED[name]()), rtol=0, atol=1e-6)


def test_openrlhfs_gspo_with_correction_takes_the_ratio_to_the_sampler(answers):
    """Instead of weighting by π_old/π_sampler: the ratio of GSPO is π/π_sampler itself."""
    found = answers[0]["openrlhf, gspo with correction"]
    corrected = replace(GEOMETRIC, sampler_correction="truncate", correction_level="sequence_mean")
    assert np.abs(found - ours(corrected)).max() > 1e-3
    batch = TokenBatch(IS_TOKEN, ADVANTAGES, SAMPLER)
    to_sampler = np.asarray(score_weights(NEW, batch, GEOMETRIC, DENOMINATORS))
    np.testing.assert_allclose(found, to_sampler, rtol=0, atol=1e-6)


def test_verls_dual_clip_is_always_on(answers):
    without = ours(replace(PRESETS["verl_grpo"], clip_dual=np.inf))
    assert np.abs(answers[0]["verl, verl_grpo: vanilla"] - without).max() > 0.1
