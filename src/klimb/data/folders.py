"""Which files of a folder hold the rows of a data set: one that `datasets` saved, or a clone of one of the hub."""

import json
import re
from pathlib import Path

from klimb.data.lines import COMPRESSED, LINES, form_of
from klimb.errors import DataError
from klimb.io.show import cut, quote

_DATA = (*LINES, ".json", ".parquet", ".arrow", ".feather")
_NO_DATA = frozenset(
    [
        "readme",
        "license",
        "licence",
        "requirements",
        "dataset_infos",
        "dataset_info",
        "state",
        "metadata_info",
        "config",
        "croissant",
    ]
)
_OF = re.compile(r"-(\d{5})-of-(\d{5})$")
_NUMBER = re.compile(r"(?:[-_.]?(?:part|shard|chunk)?[-_.]?\d+)+$", re.IGNORECASE)


def files_of(folder: Path) -> list[Path]:
    """Find the files of a folder that hold its rows, in their order.

    Raises:
        DataError: There are none, they are of several splits, or one is missing.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent for path in folder.glob("*/state.json"))
        if len(splits) == 1:
            return saved_files(splits[0])
        names = ", ".join(path.name for path in splits)
        example = f", such as {splits[0]}" if splits else ""
        raise DataError(
            f"{folder}: has several splits; name one of them: {names or 'there are none'}{example}"
        )
    if (folder / "state.json").is_file():
        return saved_files(folder)
    splits = _splits(folder)
    if not splits:
        raise DataError(
            f"{folder}: not a folder that datasets' save_to_disk wrote, and no file in it ends in one of "
            f"{', '.join(_DATA)}"
        )
    if len(splits) > 1:
        shown = "; ".join(f"{name}: {_shown(folder, files)}" for name, files in splits.items())
        raise DataError(
            f"{folder}: has several splits or tables; name a file, or move the files of one into a folder of their "
            f"own: {shown}"
        )
    (files,) = splits.values()
    _require_all(folder, files)
    return files


def saved_files(folder: Path) -> list[Path]:
    """Find the files of a folder that `datasets.Dataset.save_to_disk` wrote, in their order.

    Raises:
        DataError: It is not such a folder, or names files that are not in it.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [part["filename"] for part in state["_data_files"]]
        has_index = bool(state.get("_indices_data_files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{folder}: not a folder that datasets' save_to_disk wrote: {cut(repr(error))}"
        ) from error
    if has_index:
        raise DataError(
            f"{folder}: holds a selection of its rows as an old version of datasets wrote it; "
            "load it with datasets and save it again"
        )
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".arrow"):
            raise DataError(
                f"{folder / 'state.json'}: names {quote(name)}, which is not a file in its folder"
            )
    return [folder / name for name in names]


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The files of each split or table: those whose names are alike but for numbers at their end."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or not path.is_file():
            continue
        stem = path.name[: -len("".join(_suffixes(path)))]
        if form_of(path) not in _DATA or stem.lower() in _NO_DATA:
            continue
        name = _NUMBER.sub("", _OF.sub("", stem)) or "data"
        inside_of = inside.parent.as_posix().removeprefix(".").removeprefix("data").strip("/")
        found.setdefault(f"{inside_of}/{name}".strip("/") + f" ({form_of(path)})", []).append(path)
    return found


def _suffixes(path: Path) -> list[str]:
    return path.suffixes[-2:] if path.suffix.lower() in COMPRESSED else [path.suffix]


def _shown(folder: Path, files: list[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0].relative_to(folder)}{more}"


def _require_all(folder: Path, files: list[Path]) -> None:
    """Raise where a name says of how many files it is one, and some are missing."""
    numbers = [
        (int(match[1]), int(match[2]))
        for file in files
        if (match := _OF.search(file.name[: -len("".join(_suffixes(file)))]))
    ]
    missing = sorted(
        set(range(max((total for _, total in numbers), default=0))) - {one for one, _ in numbers}
    )
    if numbers and missing:
        raise DataError(
            f"{folder}: incomplete: of {files[0].name} and {numbers[0][1] - 1} more, those with the numbers "
            f"{', '.join(map(str, missing[:5]))} are missing"
        )
