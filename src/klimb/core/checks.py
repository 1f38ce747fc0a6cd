"""Checks at the boundary of `klimb.core`: libraries, dtypes, shapes, finiteness."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import array_api_compat
import numpy as np

from klimb.core.types import Array, ArrayLike
from klimb.errors import ArgumentError
from klimb.kernels.library import in_threads, num_threads

_compat: Any = array_api_compat  # its functions are typed by the libraries that happen to be installed
_COMMON = (np.dtype(np.float64), np.dtype(np.float32))
_LITTLE = 4096  # elements
_MUCH = 1 << 20  # elements, from where on threads pay
_BLOCK = 1 << 18  # elements checked together


def floating_arrays(*, keep: tuple[str, ...] = (), **arguments: ArrayLike) -> tuple[Any, list[Array]]:
    """Bring named arguments to one array library and one floating dtype.

    Arrays decide the library, the device and the dtype: the result's dtype is the
    promotion of their floating dtypes. Integers, booleans and Python sequences adopt
    it and never widen it; where nothing is floating, the library's default is taken
    (float64 in NumPy). Arrays that already agree are passed on uncopied.

    Args:
        keep: Names of arguments that keep a floating dtype of their own: large ones, which
            would be copied.
        arguments: The values under the names that errors should use.

    Returns:
        The array-API namespace, and the arrays in the order of the arguments.

    Raises:
        ArgumentError: The arguments come from different libraries, or one of them is
            not made of real numbers.
    """
    values = list(arguments.values())
    if _agree(values):
        return _numpy(), values
    given = {name: _base(name, a) for name, a in arguments.items() if _compat.is_array_api_obj(a)}
    xp = _common_namespace(given)
    device = _compat.device(next(iter(given.values()))) if given else None

    arrays: dict[str, Array] = {}
    for name, value in arguments.items():
        array = given[name] if name in given else _from_sequence(xp, name, value, device)
        if not (_is_floating(xp, array) or _is_kind(xp, array, ("bool", "integral"))):
            raise ArgumentError(f"{name}: expected real numbers, got dtype {array.dtype}")
        arrays[name] = array

    floating = {a.dtype for a in given.values() if _is_floating(xp, a)}
    default = xp.__array_namespace_info__().default_dtypes()["real floating"]
    dtype = xp.result_type(*floating) if floating else default
    with quietly():  # an integer may be too large for a half type; it becomes infinite, and is refused later
        cast = [
            array if name in keep and _is_floating(xp, array) else xp.astype(array, dtype, copy=False)
            for name, array in arrays.items()
        ]
    return xp, cast


def require_shape(name: str, array: Array, expected: tuple[int | str, ...]) -> None:
    """Raise unless `array` has the expected shape; letters stand for any size of at least 0."""
    if array.shape == expected:
        return
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
    """Raise if any element is NaN or infinite, naming the first one's place.

    Values of lazy arrays (JAX's, Dask's) are not read.
    """
    if all_finite(xp, array):
        return
    for first, block in _blocks(array):
        finite = xp.isfinite(block)
        if bool(xp.all(finite)):
            continue
        place = tuple(int(axis[0]) for axis in xp.nonzero(~finite)) if block.ndim else ()
        whole = (first + place[0], *place[1:]) if place else ()
        shown = ", ".join(map(str, whole))
        raise ArgumentError(f"{name}: expected finite numbers, got {float(block[place])} at [{shown}]")


def require_finite_result(xp: Any, result: Array, **arguments: Array) -> None:
    """Raise if a result is not finite, naming the argument that made it so.

    An infinity or NaN among the arguments of sums and products always shows in the result, so
    one look at the result stands for one at each argument.
    """
    if all_finite(xp, result):
        return
    for name, array in arguments.items():
        require_finite(name, xp, array)
    raise ArgumentError(
        f"the result is too large for {result.dtype}, although {', '.join(arguments)} are finite: "
        "scale them down, or pass a wider dtype"
    )


def quietly() -> np.errstate:
    """Silence NumPy's warnings around arithmetic whose result is checked: the error says more."""
    return np.errstate(over="ignore", invalid="ignore")


def all_finite(xp: Any, array: Array) -> bool:
    """Whether no element is NaN or infinite; True for lazy arrays, whose values are not read."""
    if type(array) is np.ndarray:
        # A finite sum of finite terms is finite; one that is not is checked term by term below. BLAS's dot is the
        # quickest for little; for much it would wake threads, which go on spinning beside our own.
        if array.ndim == 1 and array.dtype in _COMMON:
            total = array.dot(array) if array.size <= _LITTLE else _sum(array)
            if math.isfinite(total):
                return True
    elif _compat.is_lazy_array(array):
        return True
    elif _is_plain_tensor(array):
        return all_finite(_numpy(), array.numpy())  # NumPy looks without waking PyTorch's threads
    return all(bool(xp.all(xp.isfinite(block))) for _, block in _blocks(array))


def _blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Give some rows of a matrix at a time, and which is the first, since the mask of a large one would be large."""
    if array.ndim != 2:
        yield 0, array
        return
    num_rows = max(1, _BLOCK // max(1, array.shape[1]))
    for first in range(0, array.shape[0], num_rows):
        yield first, array[first : min(first + num_rows, array.shape[0]), ...]


def _sum(array: np.ndarray) -> float:
    if array.size <= _MUCH:
        return float(np.add.reduce(array))
    parts = np.array_split(array, num_threads())
    sums = np.empty(len(parts))

    def add_part(index: int) -> None:
        with quietly():  # this thread does not know of its caller's
            sums[index] = np.add.reduce(parts[index])

    in_threads(add_part, len(parts))
    return float(np.add.reduce(sums))


def nonnegative_number(name: str, value: Any) -> float:
    """Return `value` as a Python float, or raise unless it is a finite number of at least 0."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}: expected a number, got {value!r}") from error
    if not math.isfinite(number) or number < 0:
        raise ArgumentError(f"{name}: expected a finite number of at least 0, got {number}")
    return number


@cache
def _numpy() -> Any:
    # Asked for at the call: importing array_api_compat.numpy would take 40 ms of `import klimb`.
    return _compat.array_namespace(np.empty(0))


def _agree(values: list[Any]) -> bool:
    """Whether there is nothing to bring together: the frequent case, which should cost little."""
    if type(values[0]) is not np.ndarray or values[0].dtype not in _COMMON:
        return False
    dtype = values[0].dtype
    for value in values:  # noqa: SIM110  all() of a generator takes twice the time
        if type(value) is not np.ndarray or value.dtype is not dtype:
            return False
    return True


def _base(name: str, array: Array) -> Array:
    """A subclass of NumPy's array as the array that it is, since np.matrix and others compute otherwise."""
    if isinstance(array, np.ma.MaskedArray):
        raise ArgumentError(
            f"{name}: expected an array, got a masked one; fill in or leave out what is masked"
        )
    is_subclass = is_numpy(array) and type(array) is not np.ndarray
    return np.asarray(array) if is_subclass else array


def _is_kind(xp: Any, array: Array, kind: str | tuple[str, ...]) -> bool:
    try:
        return bool(xp.isdtype(array.dtype, kind))
    except TypeError:  # a dtype from outside the library
        return False


def _is_floating(xp: Any, array: Array) -> bool:
    # NumPy knows bfloat16 only through ml_dtypes, and not as one of its own kinds.
    return str(array.dtype) == "bfloat16" or _is_kind(xp, array, "real floating")


def _is_plain_tensor(array: Array) -> bool:
    """Whether this is a PyTorch tensor that NumPy can look at."""
    return (
        _compat.is_torch_array(array)
        and array.device.type == "cpu"
        and not array.requires_grad
        and str(array.dtype) != "torch.bfloat16"
    )


def is_numpy(array: Array) -> bool:
    """Whether this is a NumPy array, whose columns can be written a block at a time."""
    return isinstance(array, np.ndarray)


def _common_namespace(given: dict[str, Array]) -> Any:
    if not given:
        return _numpy()
    try:
        return _compat.array_namespace(*given.values())
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


def device_of(array: Array) -> Any:
    """Return the device that an array is on, as its library's functions take it."""
    return _compat.device(array)
