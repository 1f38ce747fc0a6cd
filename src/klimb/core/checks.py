"""Checks at the boundary of `klimb.core`: libraries, dtypes, shapes, finiteness."""

import math
from typing import Any

import array_api_compat
import numpy as np

from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError

_compat: Any = array_api_compat  # its functions are typed by the libraries that happen to be installed


def floating_arrays(**arguments: ArrayLike) -> tuple[Any, list[Array]]:
    """Bring named arguments to one array library and one floating dtype.

    Arrays decide the library, the device and the dtype: the result's dtype is the
    promotion of their floating dtypes. Integers, booleans and Python sequences adopt
    it and never widen it; where nothing is floating, the library's default is taken
    (float64 in NumPy). Arrays that already agree are passed on uncopied.

    Args:
        arguments: The values under the names that errors should use.

    Returns:
        The array-API namespace, and the arrays in the order of the arguments.

    Raises:
        ArgumentError: The arguments come from different libraries, or one of them is
            not made of real numbers.
    """
    given = {name: a for name, a in arguments.items() if _compat.is_array_api_obj(a)}
    xp = _common_namespace(given)
    device = _compat.device(next(iter(given.values()))) if given else None

    arrays: dict[str, Array] = {}
    for name, value in arguments.items():
        array = given[name] if name in given else _from_sequence(xp, name, value, device)
        if not (xp.isdtype(array.dtype, ("bool", "integral", "real floating"))):
            raise ArgumentError(f"{name}: expected real numbers, got dtype {array.dtype}")
        arrays[name] = array

    floating = {a.dtype for a in given.values() if xp.isdtype(a.dtype, "real floating")}
    default = xp.__array_namespace_info__().default_dtypes()["real floating"]
    dtype = xp.result_type(*floating) if floating else default
    return xp, [xp.astype(array, dtype, copy=False) for array in arrays.values()]


def require_shape(name: str, array: Array, expected: tuple[int | str, ...]) -> None:
    """Raise unless `array` has the expected shape; letters stand for any size of at least 0."""
    shape = tuple(array.shape)
    fits = len(shape) == len(expected) and all(
        isinstance(want, str) or want == have for want, have in zip(expected, shape, strict=True)
    )
    if not fits:
        raise ArgumentError(f"{name}: expected shape {_show(expected)}, got {_show(shape)}")


def require_samples(name: str, array: Array) -> None:
    """Raise if the first axis, the samples, is empty."""
    if array.shape[0] == 0:
        raise ArgumentError(f"{name}: expected at least one sample, got shape {_show(array.shape)}")


def require_finite(name: str, xp: Any, array: Array) -> None:
    """Raise if any element is NaN or infinite, naming the first one's place."""
    finite = xp.isfinite(array)
    if bool(xp.all(finite)):
        return
    place = tuple(int(axis[0]) for axis in xp.nonzero(~finite))
    index = ", ".join(str(i) for i in place)
    raise ArgumentError(f"{name}: expected finite numbers, got {float(array[place])} at [{index}]")


def nonnegative_number(name: str, value: Any) -> float:
    """Return `value` as a Python float, or raise unless it is a finite number of at least 0."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}: expected a number, got {value!r}") from error
    if not math.isfinite(number) or number < 0:
        raise ArgumentError(f"{name}: expected a finite number of at least 0, got {number}")
    return number


def _common_namespace(given: dict[str, Array]) -> Any:
    try:
        # Asked for at the call: importing array_api_compat.numpy would take 40 ms of `import klimb`.
        return _compat.array_namespace(*(given.values() or [np.empty(0)]))
    except TypeError as error:
        kinds = ", ".join(f"{name} is a {type(a).__module__}.{type(a).__name__}" for name, a in given.items())
        raise ArgumentError(f"expected arrays of one library, got several: {kinds}") from error


def _from_sequence(xp: Any, name: str, value: Any, device: Any) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ArgumentError(f"{name}: expected an array, got rows of unequal length") from error
    if array.dtype.kind not in "biuf":
        raise ArgumentError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return xp.asarray(array, device=device)


def _show(shape: tuple[int | str, ...]) -> str:
    inside = ", ".join(str(size) for size in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"
