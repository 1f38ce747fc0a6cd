"""Judgements in the formats of other tools, each of which `klimb.feedback.formats` reads again."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klimb.errors import DataError
from klimb.feedback.annotation_tools import (
    SIDES,
    argilla_records,
    argilla_settings,
    label_studio_settings,
    label_studio_tasks,
)
from klimb.feedback.formats import ASSISTANT, HUMAN, SYSTEM
from klimb.feedback.formats.own import MARK, VERSION
from klimb.feedback.records import Judgement, PairRecord
from klimb.feedback.tables import write_csv, write_dataset, write_parquet
from klimb.io.atomic import write_file
from klimb.io.show import Message, Text

if TYPE_CHECKING:
    from klimb.feedback.store.store import Store

STORE = "store"
"""The form that holds all of a store: `export_records`."""
_TABLES = (".csv", ".parquet", "")
_UNFIT = "preferences whose prompt or texts it cannot hold"
_KINDS = {"tie": "ties", "both_bad": "of both bad", "skip": "skips", "first": _UNFIT, "second": _UNFIT}
_MARKS = {"user": HUMAN, "assistant": ASSISTANT, "system": SYSTEM}  # of a transcript's turns


@dataclass(frozen=True)
class Export:
    """A format that judgements can be written in.

    Attributes:
        says: What it is, in a line.
        suffix: Ending of its files.
        rows: Makes its rows.
        judgements_in: How many judgements per row holds.
        settings: Makes the settings of a project that takes the rows, which stand in a file of their own.
        settings_suffix: Ending of that file.
    """

    says: str
    suffix: str
    rows: Callable[[Sequence[Judgement]], list[dict[str, Any]]]
    judgements_in: Callable[[dict[str, Any]], int] = lambda _: 1
    settings: Callable[[Sequence[Judgement]], str] | None = None
    settings_suffix: str = ""


def count_left_out(judgements: Sequence[Judgement], form: str) -> int:
    """How many judgements a form has no place for."""
    export = EXPORTS[form]
    return len(judgements) - sum(map(export.judgements_in, export.rows(judgements)))


def words_of_left_out(judgements: Sequence[Judgement], form: str) -> str:
    """How many judgements of each kind a form has no place for; "" where it has one for all."""
    kinds = {kind: [said for said in judgements if said.preferred == kind] for kind in _KINDS}
    counts = {kind: count_left_out(some, form) for kind, some in kinds.items()}
    counts["second"] += counts.pop("first")
    return ", ".join(f"{count:,} {_KINDS[kind]}" for kind, count in counts.items() if count)


def export_judgements(judgements: Sequence[Judgement], form: str) -> bytes:
    """Write judgements as a file's content, in one of `EXPORTS`."""
    rows = EXPORTS[form].rows(judgements)
    if EXPORTS[form].suffix == ".json":
        return (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def export_file(judgements: Sequence[Judgement], form: str, file: Path, *, overwrite: bool = False) -> int:
    """Write judgements to a file, whole or not at all.

    Args:
        judgements: What to write.
        form: One of `EXPORTS`.
        file: Named by the form's ending; forms of rows may also be .csv, .parquet, or a folder (a name without an
            ending) that `datasets.load_from_disk` opens.
        overwrite: Whether a file, or folder of `datasets`, that is there already is replaced.

    Returns:
        How many rows were written.

    Raises:
        DataError: The name has another ending or is there already, there is nothing to write, or a table cannot hold
            it.
    """
    export = EXPORTS[form]
    rows = export.rows(judgements)
    if not rows:
        raise DataError(
            f"{file}: none of {len(judgements)} judgements can be written as {form}: {export.says}"
        )
    suffix = file.suffix.lower()
    if suffix != export.suffix and not (suffix in _TABLES and export.suffix == ".jsonl"):
        more = ", .csv, .parquet, or no ending for a folder of datasets" if export.suffix == ".jsonl" else ""
        raise DataError(f"{file}: {form} goes into a file that ends in {export.suffix}{more}")
    _require_free(file, overwrite=overwrite)
    if export.settings is not None:
        settings = settings_file(form, file)
        _require_free(settings, overwrite=overwrite)
        write_file(settings, export.settings(judgements))
    if suffix == export.suffix:
        write_file(file, export_judgements(judgements, form))
    elif suffix == ".parquet":
        write_parquet(rows, file)
    elif suffix == ".csv":
        write_csv(rows, file)
    else:
        write_dataset(rows, file, replaces=overwrite)
    return len(rows)


def settings_file(form: str, file: Path) -> Path:
    """The file, beside that of an export, with the settings of a project that takes it."""
    return file.with_suffix(EXPORTS[form].settings_suffix)


def export_store(store: "Store", form: str, file: Path, *, overwrite: bool = False) -> list[str]:
    """Write what a store holds to a file, and return for a person what was written and what was left out.

    Args:
        store: What to write.
        form: One of `EXPORTS`, or `STORE`.
        file: Named as `export_file` says; of the form `STORE` a .jsonl file.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        DataError: As `export_file`.
        StoreError: The store cannot be read.
    """
    records = store.records()
    num_unjudged = sum(not any(said.withdrawn_at is None for said in one.judgements) for one in records)
    if form == STORE:
        if file.suffix.lower() != ".jsonl":
            raise DataError(f"{file}: {form} goes into a file that ends in .jsonl")
        if not records:
            raise DataError(f"{file}: {store.where} has no pairs to write")
        _require_free(file, overwrite=overwrite)
        write_file(file, export_records(records))
        num_judgements = sum(len(one.judgements) for one in records)
        return [
            f"{file}: {len(records):,} pairs with {num_judgements:,} judgements: everything in {store.where}"
        ]
    judgements = store.judgements()
    lines = [f"{file}: {export_file(judgements, form, file, overwrite=overwrite):,} rows"]
    if EXPORTS[form].settings is not None:
        lines.append(f"{settings_file(form, file)}: the settings of a project that takes them")
    if left_out := words_of_left_out(judgements, form):
        lines.append(f"left out, as {form} has no place for it: {left_out}")
    if num_unjudged:
        lines.append(f"left out: {num_unjudged:,} pairs without a judgement; --form {STORE} has them")
    return lines


def export_content(store: "Store", form: str) -> bytes:
    """What a store holds as a file's content, in one of `FORMS`."""
    return export_records(store.records()) if form == STORE else export_judgements(store.judgements(), form)


def export_records(records: Sequence[PairRecord]) -> bytes:
    """Write all that a store holds as a file's content, a pair a line, from which it can be made again."""
    return "".join(json.dumps(_record(one), ensure_ascii=False) + "\n" for one in records).encode()


def _record(record: PairRecord) -> dict[str, Any]:
    sides = zip((record.first, record.second), record.numbers, strict=True)
    first, second = ({"text": one.text, "source": one.source, "number": number} for one, number in sides)
    return {
        MARK: VERSION,
        "prompt": record.prompt,
        "first": first,
        "second": second,
        "priority": record.priority,
        "judgements": [asdict(said) for said in record.judgements],
        "assigned": [{"rater": rater, "assigned_at": at} for rater, at in record.assigned],
    }


def _require_free(file: Path, *, overwrite: bool) -> None:
    if file.exists() and not overwrite:
        raise DataError(f"{file}: exists already; choose another name, or add --overwrite to replace it")
    if not file.parent.is_dir():
        raise DataError(f"{file}: there is no folder {file.parent}; make it first")


def _comparisons(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": said.prompt,
            "left": said.first.text,
            "right": said.second.text,
            "preferred": SIDES.get(said.preferred, said.preferred),
            "rater": said.rater,
            "shown_left": SIDES.get(said.shown_left, ""),
            "seconds": said.seconds,
            "note": said.note,
            "judged_at": said.judged_at,
            "key": said.key,
            "left_source": json.dumps(said.first.source, ensure_ascii=False),
            "right_source": json.dumps(said.second.source, ensure_ascii=False),
        }
        for said in judgements
    ]


def _preferences(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for said, chosen, rejected in _decided(judgements):
        if isinstance(said.prompt, str):
            rows.append({"prompt": said.prompt, "chosen": chosen, "rejected": rejected})
        else:
            turns = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
            rows.append({"prompt": said.prompt, "chosen": turns[0], "rejected": turns[1]})
    return rows


def _transcripts(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for said, chosen, rejected in _decided(judgements):
        start = _transcript(said.prompt)
        texts = [message["content"] for message in _turns(said.prompt)] + [chosen, rejected]
        if start is not None and not any(mark in text for text in texts for mark in _MARKS.values()):
            rows.append(
                {"chosen": f"{start}{ASSISTANT} {chosen}", "rejected": f"{start}{ASSISTANT} {rejected}"}
            )
    return rows


def _turns(prompt: Text) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _transcript(prompt: Text) -> str | None:
    """A prompt as a transcript; None where it has turns that transcripts do not know, such as those of tools."""
    turns = _turns(prompt)
    if any(turn["role"] not in _MARKS or turn.keys() > {"role", "content"} for turn in turns):
        return None
    return "".join(f"{_MARKS[turn['role']]} {turn['content']}" for turn in turns)


EXPORTS = {
    "comparisons": Export(
        "all judgements not taken back, with rater, time and duration", ".jsonl", _comparisons
    ),
    "preferences": Export("TRL's prompt, chosen, rejected; ties have no place in it", ".jsonl", _preferences),
    "transcripts": Export(
        "Anthropic's chosen and rejected transcripts, without ties", ".jsonl", _transcripts
    ),
    "label-studio": Export(
        "Label Studio's pairwise tasks, without ties",
        ".json",
        label_studio_tasks,
        lambda row: len(row["annotations"]),
        label_studio_settings,
        ".xml",
    ),
    "argilla": Export(
        "Argilla's records with a question named preference",
        ".json",
        argilla_records,
        lambda row: len(row["responses"]["preference"]),
        argilla_settings,
        ".settings.json",
    ),
}
"""The formats of judgements by name."""
FORMS = {
    **{form: (export.says, export.suffix) for form, export in EXPORTS.items()},
    STORE: ("the whole store; klimb feedback import reads it back", ".jsonl"),
}
"""Of each format what it is, in a line, and the ending of its files."""


def _decided(judgements: Sequence[Judgement]) -> Iterable[tuple[Judgement, str, str]]:
    """Judgements in which one of the two was preferred, with that one and the other."""
    for said in judgements:
        if said.preferred == "first":
            yield said, said.first.text, said.second.text
        elif said.preferred == "second":
            yield said, said.second.text, said.first.text
