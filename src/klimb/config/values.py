"""Options given from Python: each checked against its field's type, and brought to it where the meaning is clear."""

import numbers
import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from klimb.config.names import unknown
from klimb.errors import ConfigError
from klimb.io.show import quote

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", Path: "a path"}


def typed_options(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against the fields of a configuration.

    A list becomes a tuple, one value where several may stand becomes a tuple of one, text becomes a path, a whole
    number a float, and a number of NumPy or of a tensor's `item()` a Python one.

    Args:
        kind: The configuration's dataclass.
        options: Values by field name.

    Raises:
        ConfigError: There is no such option, with the nearest that is, or a value is of another type.
    """
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    typed: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(unknown(name, known))
        typed[name] = _typed(name, value, hints[name])
    return typed


def _typed(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _typed_union(name, value, arguments)
    if origin is tuple:
        return _typed_tuple(name, value, arguments)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name}: expected one of {', '.join(map(str, arguments))}, got {quote(value)}")
        return value
    return _typed_plain(name, value, hint)


def _typed_plain(name: str, value: object, kind: Any) -> Any:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    is_path = isinstance(value, os.PathLike)
    is_as_it_should = isinstance(value, kind) and (is_number or kind not in (int, float))
    if is_as_it_should:
        return value.expanduser() if isinstance(value, Path) else value
    is_meant = {
        Path: is_path or isinstance(value, str),
        str: is_path,
        float: is_number,
        int: isinstance(value, numbers.Integral) and is_number,
    }
    if is_meant.get(kind):
        plain: Any = value  # its type is checked above
        return Path(plain).expanduser() if kind is Path else kind(plain)
    raise ConfigError(f"{name}: expected {_WORDS.get(kind, kind.__name__)}, got {quote(value)}")


def _typed_union(name: str, value: Any, hints: tuple[Any, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    rest = [hint for hint in hints if hint is not type(None)]
    for hint in rest[:-1]:
        try:
            return _typed(name, value, hint)
        except ConfigError:
            continue
    return _typed(name, value, rest[-1])


def _typed_tuple(name: str, value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    are_several = isinstance(value, Iterable) and not isinstance(value, str | os.PathLike)
    values: list[Any] = list(value) if are_several else [value]
    if hints[-1] is Ellipsis:
        return tuple(_typed(name, each, hints[0]) for each in values)
    if len(values) != len(hints):
        raise ConfigError(f"{name}: expected {len(hints)} values, got {quote(value)}")
    return tuple(_typed(name, each, hint) for each, hint in zip(values, hints, strict=True))
