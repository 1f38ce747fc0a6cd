"""The two words for arrays in klimb's signatures."""

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of any library with the array API: NumPy, PyTorch, JAX, CuPy, Dask."""

ArrayLike: TypeAlias = Any
"""An `Array`, or (nested) sequences of Python numbers."""
