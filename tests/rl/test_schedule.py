"""The learning rate and the KL coefficient along a run."""

import math
from pathlib import Path

import pytest

from klimb.config.train import TrainConfig
from klimb.rl.schedule import KLCoefficient, learning_rate


def config(**changes):
    return TrainConfig(
        **({"model": "m", "prompts": Path("p"), "reward": ("vader",), "out": Path("o")} | changes)
    )


def rates(**changes):
    options = config(**({"lr": 1.0, "warmup_steps": 2, "num_steps": 6} | changes))
    return [learning_rate(options, step) for step in range(options.num_steps)]


def test_the_rate_rises_and_stays():
    assert rates() == [0.5, 1, 1, 1, 1, 1]


def test_the_rate_falls_along_a_line_and_would_be_0_in_the_step_after_the_last():
    # W = 2, T = 6: (T − t) / (T − W) for t = 2, 3, 4, 5 is 4/4, 3/4, 2/4, 1/4.
    assert rates(lr_schedule="linear") == [0.5, 1, 1, 0.75, 0.5, 0.25]


def test_the_rate_falls_along_half_a_cosine():
    # (1 + cos(π (t − 2) / 4)) / 2 for t = 2, 3, 4, 5; at a half of the way cos is 0.
    found = rates(lr_schedule="cosine")
    quarter = math.sqrt(0.5)
    assert found == pytest.approx([0.5, 1, 1, (1 + quarter) / 2, 0.5, (1 - quarter) / 2], rel=1e-12)


def test_a_rate_without_warm_up_begins_at_its_height():
    assert rates(warmup_steps=0, lr_schedule="linear")[0] == 1
    assert rates(warmup_steps=0, lr_schedule="cosine")[0] == 1


def test_a_constant_rate_does_not_depend_on_the_length_of_the_run():
    assert rates(num_steps=6) == rates(num_steps=9)[:6]


def test_beta_stays_without_a_target():
    coefficient = KLCoefficient(config(beta=0.3))
    coefficient.adapt(100.0, 32)
    assert coefficient.beta == 0.3
    assert coefficient.state() == {}


def test_beta_grows_where_the_kl_is_above_its_target_and_shrinks_below():
    # e = clip(KL/6 − 1, ±0.2); β ← β (1 + e · 32/320): 12 → 0.2, 6.6 → 0.1, 0 → −0.2.
    for kl, factor in ((12.0, 1.02), (6.6, 1.01), (6.0, 1.0), (0.0, 0.98)):
        coefficient = KLCoefficient(config(beta=0.5, kl_target=6.0, kl_horizon=320))
        coefficient.adapt(kl, 32)
        assert coefficient.beta == pytest.approx(0.5 * factor, rel=1e-12)


def test_beta_goes_on_from_a_checkpoint():
    first, second = (KLCoefficient(config(beta=0.5, kl_target=6.0)) for _ in range(2))
    first.adapt(50.0, 32)
    second.restore(first.state())
    assert second.beta == first.beta != 0.5
