"""What ranks send each other, as bytes: JSON, and tensors as safetensors. Nothing is pickled."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

_LENGTH = 8  # bytes that hold the length of the JSON


def pack(value: Any) -> bytes:
    """Write a value of JSON types and tensors as bytes; tuples become lists.

    Raises:
        TypeError: There is something else in it.
    """
    tensors: list[tuple[list[str | int], Tensor]] = []
    plain = _without_tensors(value, [], tensors)
    text = json.dumps({"value": plain, "places": [place for place, _ in tensors]}).encode()
    stored = save({str(number): tensor for number, (_, tensor) in enumerate(tensors)}) if tensors else b""
    return len(text).to_bytes(_LENGTH, "little") + text + stored


def unpack(data: bytes) -> Any:
    """Read what `pack` wrote."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    read = json.loads(data[_LENGTH:end])
    tensors = load(data[end:]) if read["places"] else {}
    for number, place in enumerate(read["places"]):
        node: Any = read
        for key in ("value", *place[:-1]) if place else ():
            node = node[key]
        node[place[-1] if place else "value"] = tensors[str(number)]
    return read["value"]


def _without_tensors(value: Any, place: list[str | int], found: list[tuple[list[str | int], Tensor]]) -> Any:
    """Replace tensors by None, and note where they stood."""
    if isinstance(value, Tensor):
        found.append(
            (place, value.detach().to("cpu", copy=True).contiguous())
        )  # a copy: memory may be shared
        return None
    if isinstance(value, Mapping):
        return {key: _without_tensors(part, [*place, key], found) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(part, [*place, number], found) for number, part in enumerate(value)]
    return value
