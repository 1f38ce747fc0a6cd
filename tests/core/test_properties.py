"""Whatever is passed to the definition: the right answer, or an error that names the argument.

`python benchmarks/fuzz_update.py` runs the same property many more times.
"""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import klimb

NAMES = ("weights", "rewards", "policy_log_probs", "ref_log_probs", "log_prob_grads")
DTYPES = ["f2", "f4", "f8", ">f4", ">f8", "i1", "i8", "u4", "?"]
LAYOUTS = ["C", "Fortran", "strided", "reversed", "read-only", "list", "broadcast", "matrix", "memory view"]
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 0]
CORRUPTIONS = [
    *[None] * 24,
    *["nan", "inf", "shorter", "longer", "an axis more", "an axis less", "empty"],
    *["object", "text", "complex", "structured", "masked", "dates", "ragged", "nothing", "a set", "bytes"],
]


def lay_out(array, layout):  # noqa: PLR0911  a table of guises
    """The same numbers in another guise."""
    if layout == "Fortran":
        return np.asfortranarray(array)
    if layout == "strided":
        return (
            np.repeat(np.repeat(array, 3, axis=0), 2, axis=-1)[::3, ..., ::2]
            if array.ndim == 2
            else np.repeat(array, 3)[::3]
        )
    if layout == "reversed":
        return array[::-1].copy()[::-1]
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
        return array
    if layout == "list":
        return array.tolist()
    if layout == "broadcast" and array.size:
        return np.broadcast_to(array[:1], array.shape)
    if layout == "matrix" and array.ndim == 2:
        return array.view(np.matrix)
    if (
        layout == "memory view"
        and array.dtype.kind in "fi"
        and array.dtype.isnative
        and array.dtype.char != "g"
    ):
        return memoryview(array) if array.dtype.char != "e" else array
    return array


def corrupt(array, corruption):
    """Something that is not what the definition asks for."""
    if corruption in ("nan", "inf"):
        if array.dtype.kind != "f" or not array.size:
            return array
        array = array.copy()
        array.flat[array.size // 2] = float(corruption)
        return array
    changes = {
        "shorter": lambda: array[:-1],
        "longer": lambda: np.concatenate([array, array[:1]]),
        "an axis more": lambda: array[None],
        "an axis less": lambda: array[0] if len(array) else array.sum(),
        "empty": lambda: array[:0],
        "object": lambda: array.astype(object),
        "text": lambda: array.astype(str),
        "complex": lambda: array.astype(complex),
        "structured": lambda: np.zeros(array.shape, dtype=[("a", "f8")]),
        "masked": lambda: np.ma.masked_array(array, mask=np.ones(array.shape, dtype=bool)),
        "dates": lambda: np.zeros(array.shape, dtype="M8[s]"),
        "ragged": lambda: [[1.0], [1.0, 2.0]],
        "nothing": lambda: None,
        "a set": lambda: {1.0},
        "bytes": lambda: b"12",
    }
    return changes[corruption]()


@st.composite
def calls(draw):
    """Arguments of a call, as given and as plain float64."""
    num_samples, num_parameters = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    shapes = [(num_parameters,), *[(num_samples,)] * 3, (num_samples, num_parameters)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    victim, corruption = draw(st.sampled_from(NAMES)), draw(st.sampled_from(CORRUPTIONS))
    given_arrays, plain = {}, {}
    for name, shape in zip(NAMES, shapes, strict=True):
        with np.errstate(invalid="ignore"):
            dtype = draw(st.sampled_from(DTYPES))
            numbers = 4 * rng.normal(size=shape)
            array = (np.abs(numbers) if dtype[0] == "u" else numbers).astype(dtype)
        if name == victim and corruption is not None:
            given_arrays[name] = corrupt(array, corruption)
        else:
            given_arrays[name] = lay_out(array, draw(st.sampled_from(LAYOUTS)))
        plain[name] = (
            np.asarray(given_arrays[name], dtype=np.float64) if is_numeric(given_arrays[name]) else None
        )
    given_arrays["beta"], given_arrays["lr"] = (
        draw(st.sampled_from([0, 0.5, 1] * 6 + [-1.0, float("nan")])) for _ in "12"
    )
    return given_arrays, plain


def is_numeric(value):
    try:
        return np.asarray(value).dtype.kind in "biuf" and not isinstance(value, np.ma.MaskedArray)
    except ValueError:
        return False


def expected_update(plain, beta, lr):
    """The definition, written out in float64."""
    adjusted = plain["rewards"] - beta * (plain["policy_log_probs"] - plain["ref_log_probs"])
    return plain["weights"] + lr * (adjusted @ plain["log_prob_grads"]) / len(adjusted)


def check_call(call):
    """The property."""
    arguments, plain = call
    copies = {
        name: np.array(value, copy=True) for name, value in arguments.items() if isinstance(value, np.ndarray)
    }
    try:
        updated = klimb.rlhf_weight_update(**arguments)
    except (ValueError, TypeError) as error:
        if isinstance(error, klimb.KlimbError) and any(name in str(error) for name in arguments):
            return "refused"
        raise
    assert type(updated) is np.ndarray
    expected = expected_update(plain, arguments["beta"], arguments["lr"])
    assert updated.shape == expected.shape == plain["weights"].shape
    assert np.isfinite(updated).all()
    tolerance = 0.05 if updated.dtype == np.float16 else 1e-4 if updated.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(
        np.asarray(updated, dtype=np.float64), expected, rtol=tolerance, atol=tolerance * 20
    )
    for name, copy in copies.items():
        np.testing.assert_array_equal(arguments[name], copy)
    return "right"


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(calls())
def test_any_call_is_right_or_refused_by_name(call):
    check_call(call)
