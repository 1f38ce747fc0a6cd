"""Judgements in the formats of other tools, each of which `klimb.feedback.formats` reads again."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klimb.errors import DataError
from klimb.feedback.formats import ASSISTANT, HUMAN, SYSTEM
from klimb.feedback.records import Judgement
from klimb.files import whole_folder, write_file
from klimb.text import Message, Text, cut

_SIDES = {"first": "left", "second": "right"}
_MARKS = {"user": HUMAN, "assistant": ASSISTANT, "system": SYSTEM}  # of a transcript's turns


@dataclass(frozen=True)
class Export:
    """A format that judgements can be written in.

    Attributes:
        says: What it is, in a line.
        suffix: Ending of its files.
        rows: Makes its rows.
        judgements_in: How many judgements a row holds.
    """

    says: str
    suffix: str
    rows: Callable[[Sequence[Judgement]], list[dict[str, Any]]]
    judgements_in: Callable[[dict[str, Any]], int] = lambda _: 1


def count_left_out(judgements: Sequence[Judgement], form: str) -> int:
    """How many judgements a form has no place for."""
    export = EXPORTS[form]
    return len(judgements) - sum(map(export.judgements_in, export.rows(judgements)))


def export_judgements(judgements: Sequence[Judgement], form: str) -> bytes:
    """Write judgements as a file's content, in one of `EXPORTS`."""
    rows = EXPORTS[form].rows(judgements)
    if EXPORTS[form].suffix == ".json":
        return (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def export_file(judgements: Sequence[Judgement], form: str, file: Path) -> int:
    """Write judgements to a file, whole or not at all.

    Args:
        judgements: What to write.
        form: One of `EXPORTS`.
        file: Named by the form's ending; `preferences` and `comparisons` may also be .parquet, or a folder (a name
            without an ending) that `datasets.load_from_disk` opens.

    Returns:
        How many rows were written.

    Raises:
        DataError: The name has another ending, there is nothing to write, or a table cannot hold it.
    """
    export = EXPORTS[form]
    rows = export.rows(judgements)
    if not rows:
        raise DataError(
            f"{file}: none of {len(judgements)} judgements can be written as {form}: {export.says}"
        )
    suffix = file.suffix.lower()
    if suffix == export.suffix:
        write_file(file, export_judgements(judgements, form))
    elif suffix == ".parquet" and export.suffix == ".jsonl":
        _write_parquet(rows, file)
    elif not suffix and export.suffix == ".jsonl":
        _write_dataset(rows, file)
    else:
        more = ", .parquet, or no ending for a folder of datasets" if export.suffix == ".jsonl" else ""
        raise DataError(f"{file}: {form} goes into a file that ends in {export.suffix}{more}")
    return len(rows)


def _comparisons(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": said.prompt,
            "left": said.first.text,
            "right": said.second.text,
            "preferred": _SIDES.get(said.preferred, said.preferred),
            "rater": said.rater,
            "shown_left": _SIDES.get(said.shown_left, ""),
            "seconds": said.seconds,
            "note": said.note,
            "judged_at": said.judged_at,
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


def _label_studio(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Its pairwise tasks know left and right alone."""
    tasks: dict[int, dict[str, Any]] = {}
    for said in judgements:
        if said.preferred not in _SIDES:
            continue
        data = {"prompt": said.prompt, "answer1": said.first.text, "answer2": said.second.text}
        task = tasks.setdefault(said.pair_id, {"id": said.pair_id, "data": data, "annotations": []})
        result = {
            "from_name": "preferred",
            "to_name": "answer1,answer2",
            "type": "pairwise",
            "value": {"selected": _SIDES[said.preferred]},
        }
        task["annotations"].append(
            {
                "id": said.id,
                "completed_by": {"email": said.rater},
                "lead_time": said.seconds,
                "result": [result],
            }
        )
    return list(tasks.values())


def _argilla(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    values = {"first": "response1", "second": "response2", "tie": "tie"}
    records: dict[int, dict[str, Any]] = {}
    for said in judgements:
        if said.preferred not in values:
            continue
        fields = {"prompt": said.prompt, "response1": said.first.text, "response2": said.second.text}
        record = records.setdefault(said.pair_id, {"fields": fields, "responses": {"preference": []}})
        record["responses"]["preference"].append({"value": values[said.preferred], "user_id": said.rater})
    return list(records.values())


EXPORTS = {
    "comparisons": Export("all that was said, with who, when and how long", ".jsonl", _comparisons),
    "preferences": Export("TRL's prompt, chosen, rejected; ties have no place in it", ".jsonl", _preferences),
    "transcripts": Export(
        "Anthropic's chosen and rejected transcripts, without ties", ".jsonl", _transcripts
    ),
    "label-studio": Export(
        "Label Studio's pairwise tasks, without ties",
        ".json",
        _label_studio,
        lambda row: len(row["annotations"]),
    ),
    "argilla": Export(
        "Argilla's records with a question named preference",
        ".json",
        _argilla,
        lambda row: len(row["responses"]["preference"]),
    ),
}
"""The formats by name."""


def _decided(judgements: Sequence[Judgement]) -> Iterable[tuple[Judgement, str, str]]:
    """Judgements in which one of the two was preferred, with that one and the other."""
    for said in judgements:
        if said.preferred == "first":
            yield said, said.first.text, said.second.text
        elif said.preferred == "second":
            yield said, said.second.text, said.first.text


def _table(rows: list[dict[str, Any]], file: Path) -> Any:
    """The rows as a table, each of whose columns has values of one kind.

    Raises:
        DataError: They have not.
    """
    import pyarrow

    for column in ("prompt", "chosen", "rejected"):
        texts = sum(isinstance(row.get(column), str) for row in rows)
        chats = sum(isinstance(row.get(column), list) for row in rows)
        if texts and chats:
            raise DataError(
                f"{file}: of {len(rows):,} rows {texts:,} have a {column} that is plain text and {chats:,} one of chat "
                "messages, which a table cannot hold in one column: export to a .jsonl file"
            )
    try:
        return pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{file}: messages with values of several kinds, which a table cannot hold in one column: export to a "
            f".jsonl file ({cut(str(error))})"
        ) from error


def _write_parquet(rows: list[dict[str, Any]], file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(_table(rows, file), sink)
    write_file(file, sink.getvalue().to_pybytes())


def _write_dataset(rows: list[dict[str, Any]], folder: Path) -> None:
    """As `datasets.Dataset.save_to_disk` does: an Arrow stream, and two small files about it."""
    import pyarrow
    import pyarrow.ipc

    if folder.exists():
        raise DataError(f"{folder}: exists already; choose another name")
    table = _table(rows, folder)
    name = "data-00000-of-00001.arrow"
    state = {
        "_data_files": [{"filename": name}],
        "_fingerprint": "klimb",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    with whole_folder(folder) as unfinished:
        with pyarrow.ipc.new_stream(str(unfinished / name), table.schema) as stream:
            stream.write_table(table)
        (unfinished / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        (unfinished / "dataset_info.json").write_text("{}\n", encoding="utf-8")
