"""Figures of an objective's score weights."""

import re
from xml.etree import ElementTree

import pytest

from klimb.training.report.weights import draw_value_figures, draw_weight_figures

pytestmark = pytest.mark.usefixtures("drawn_figures")


def rows(**weights):
    """Three steps whose score weights show so much."""
    return [
        {"step": step, "weights": {name: values[step] for name, values in weights.items()}}
        for step in range(3)
    ]


MOVED = {
    "ratio_mean": [1.0, 1.01, 0.99],
    "ratio_max": [1.2, 3.0, 40.0],
    "clipped_low": [0.0, 0.1, 0.2],
    "clipped_high": [0.0, 0.05, 0.3],
    "masked_max_drift": [0.0, 0.0, 0.1],
    "masked_of_my_own": [0.1, 0.1, 0.1],
    "effective_share": [0.9, 0.5, 0.1],
}


def test_ratios_shares_and_the_effective_sample_size_are_drawn():
    figures = draw_weight_figures(rows(**MOVED))
    assert [figure.title for figure in figures] == [
        "Probability ratios",
        "Left out of the gradient",
        "Effective sample size",
    ]
    for figure in figures:
        ElementTree.fromstring(figure.svg)  # noqa: S314  our own
        assert "mathdefault" not in figure.svg  # formulas would stand there as they are written
    left_out = re.findall(r">([a-z][a-z_, 0-9]+)</text>", figures[1].svg)
    for label in ("clipped, ratio above 1", "left out by max_drift", "left out by of_my_own"):
        assert label in left_out


def test_on_policy_there_is_no_curve_of_ratios_and_no_empty_one_of_shares():
    on_policy = {"ratio_mean": [1.0] * 3, "ratio_max": [1.00001] * 3, "clipped_low": [0.0] * 3}
    figures = draw_weight_figures(rows(**on_policy, effective_share=[0.5] * 3))
    assert [figure.title for figure in figures] == ["Effective sample size"]


def test_a_run_without_score_weights_of_tokens_has_none():
    assert draw_weight_figures([{"step": 0}, {"step": 1, "weights": {}}]) == []


def test_steps_that_lack_a_share_count_as_0():
    metrics = rows(**MOVED)
    metrics[2]["weights"]["left_out"] = 0.5
    del metrics[1]["weights"]
    assert [figure.title for figure in draw_weight_figures(metrics)][1] == "Left out of the gradient"


def test_the_explained_variance_of_a_value_function_is_drawn_where_there_is_one():
    metrics = [
        {"step": step, "value": {"explained_variance": value}} for step, value in enumerate([None, -0.5, 0.8])
    ]
    (figure,) = draw_value_figures(metrics)
    assert figure.title == "Value function"
    assert "explained variance" in figure.svg
    assert draw_value_figures([{"step": 0}, {"step": 1, "value": {"explained_variance": None}}]) == []
