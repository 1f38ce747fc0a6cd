"""Agreement of raters: by hand, a published table, across libraries, and its invariances."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from klimb import KlimbError
from klimb.core.agreement import krippendorff_alpha, observed_agreement

# Krippendorff (2011), section C: 12 units, four observers, categories 1 to 5, some values missing. A unit that
# one observer alone judged is left out, as there. α = 0.743.
PUBLISHED = np.array(
    [
        [3, 0, 0, 0, 0], [0, 3, 1, 0, 0], [0, 0, 4, 0, 0], [0, 0, 4, 0, 0], [0, 4, 0, 0, 0], [1, 1, 1, 1, 0],
        [0, 0, 0, 4, 0], [3, 1, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 0, 0, 3], [2, 0, 0, 0, 0],
    ],
    dtype=np.float64,
)  # fmt: skip


def test_alpha_by_hand():
    # Two things, two raters each: one pair agrees (2, 0), one does not (1, 1). n = 4, n_c = 3, 1.
    # D_o = (1/4)(0 + 2/1) = 1/2; D_e = 2·3·1/(4·3) = 1/2; α = 0.
    assert krippendorff_alpha([[2, 0], [1, 1]]) == pytest.approx(0.0, abs=1e-15)


def test_alpha_of_a_published_table():
    assert krippendorff_alpha(PUBLISHED) == pytest.approx(0.743, abs=5e-4)


def test_agreement_by_hand():
    # Three raters say a, a, b: of three pairs one agrees; two raters agree: 1. Mean 2/3.
    assert observed_agreement([[2, 1], [0, 2]]) == pytest.approx((1 / 3 + 1) / 2)


def test_agreement_is_that_of_all_pairs_of_raters_counted_one_by_one():
    generator = np.random.default_rng(0)
    said = [generator.integers(3, size=size) for size in (2, 5, 3, 4)]
    shares = [
        np.mean([a == b for i, a in enumerate(row) for j, b in enumerate(row) if i != j]) for row in said
    ]
    counts = np.array([np.bincount(row, minlength=3) for row in said])
    assert observed_agreement(counts) == pytest.approx(np.mean(shares), rel=1e-14)


def test_all_agreeing_is_one_and_chance_is_about_zero():
    assert krippendorff_alpha([[3, 0], [0, 2], [0, 4]]) == 1.0
    assert krippendorff_alpha([[3, 0], [2, 0]]) == 1.0  # nothing could be told apart
    said = np.random.default_rng(0).integers(2, size=(4000, 3))
    counts = np.stack([(said == 0).sum(axis=1), (said == 1).sum(axis=1)], axis=1)
    assert abs(krippendorff_alpha(counts)) < 0.03


@pytest.mark.parametrize("function", [krippendorff_alpha, observed_agreement])
def test_the_order_of_things_and_categories_does_not_matter(function):
    expected = function(PUBLISHED)
    generator = np.random.default_rng(1)
    assert function(generator.permutation(PUBLISHED)) == pytest.approx(expected, rel=1e-13)
    assert function(PUBLISHED[:, ::-1]) == pytest.approx(expected, rel=1e-13)
    assert function(np.pad(PUBLISHED, ((0, 0), (0, 2)))) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("function", [krippendorff_alpha, observed_agreement])
@pytest.mark.parametrize("make", [torch.tensor, jnp.asarray, np.ndarray.tolist])
def test_libraries_agree(function, make):
    assert function(make(PUBLISHED)) == pytest.approx(function(PUBLISHED), rel=1e-13)


@pytest.mark.parametrize("counts", [[[1, 0]], [[3, -1]], [[np.inf, 1]], [1, 2], np.zeros((0, 2))])
@pytest.mark.parametrize("function", [krippendorff_alpha, observed_agreement])
def test_what_cannot_be_measured_is_refused(function, counts):
    with pytest.raises(KlimbError, match="counts"):
        function(counts)
