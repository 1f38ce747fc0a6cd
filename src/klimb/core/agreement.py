"""Inter-rater agreement: observed agreement and Krippendorff's alpha.

Axes: U things that were judged, C categories; n_uc raters put thing u in category c, n_u = Σ_c n_uc of them.
"""

from typing import Any

from klimb.core import checks
from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError


def observed_agreement(counts: ArrayLike) -> float:
    """Compute how often two raters of the same item agree.

    A = (1/U) Σ_u Σ_c n_uc (n_uc − 1) / (n_u (n_u − 1))

    Args:
        counts: n, (U, C), each row with at least two raters.

    Returns:
        A, from 0 to 1.

    Raises:
        ArgumentError: `counts` is not of shape (U, C) with U ≥ 1, has a number that is negative or not
            finite, or a row with fewer than two raters.

    Reference:
        Fleiss (1971), "Measuring nominal scale agreement among many raters", eq. 3, with as many raters
        as each thing has.

    Example:
        >>> observed_agreement([[2, 0], [1, 1]])
        0.5
    """
    xp, counts, raters = _checked(counts)
    return float(xp.mean(xp.sum(counts * (counts - 1), axis=1) / (raters * (raters - 1))))


def krippendorff_alpha(counts: ArrayLike) -> float:
    """Compute Krippendorff's α, the agreement of raters beyond chance, for unordered categories.

    α = 1 − D_o / D_e,  n = Σ_u n_u,  n_c = Σ_u n_uc
    D_o = (1/n) Σ_u Σ_{c≠k} n_uc n_uk / (n_u − 1)
    D_e = 1/(n (n − 1)) Σ_{c≠k} n_c n_k

    Args:
        counts: n, (U, C), each row with at least two raters.

    Returns:
        α: 1 where all agree, 0 where they agree as chance would, below 0 where less. Where everything was
        put in one category nothing could have been told apart, and α is 1.

    Raises:
        ArgumentError: As for `observed_agreement`.

    Reference:
        Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C.

    Example:
        >>> krippendorff_alpha([[2, 0], [0, 2]])
        1.0
    """
    xp, counts, raters = _checked(counts)
    total = xp.sum(raters)
    differing = xp.sum((raters[:, None] - counts) * counts, axis=1)
    observed = xp.sum(differing / (raters - 1)) / total
    by_category = xp.sum(counts, axis=0)
    expected = xp.sum(by_category * (total - by_category)) / (total * (total - 1))
    return 1.0 if float(expected) == 0 else float(1 - observed / expected)


def _checked(counts: ArrayLike) -> tuple[Any, Array, Array]:
    xp, (counts,) = checks.floating_arrays(counts=counts)
    checks.require_shape("counts", counts, ("U", "C"))
    checks.require_samples("counts", counts)
    checks.require_finite("counts", xp, counts)
    raters = xp.sum(counts, axis=1)
    if not bool(xp.all(counts >= 0)) or not bool(xp.all(raters >= 2)):
        raise ArgumentError("counts: expected numbers of at least 0, and two raters or more in each row")
    return xp, counts, raters
