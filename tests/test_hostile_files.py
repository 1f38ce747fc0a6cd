"""Files of prompts and of feedback that are damaged in every way: an error that names them, or rows, and none lost.

benchmarks/fuzz_data.py runs the same cases by the thousand.
"""

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from klimb import KlimbError
from klimb.data.prompts import PromptFile
from klimb.data.rows import read_rows
from klimb.feedback.formats import Feedback, read_feedback
from klimb.feedback.formats.reading import take_row

CHAT = [{"role": "user", "content": "hi"}]
PROMPTS = [
    {"prompt": "Good morning, said", "topic": "greeting"},
    {"prompt": "naïve café 🙂 שלום مرحبا", "topic": "letters"},
    {"prompt": 'two\nlines, "quoted"', "topic": ""},
    {"prompt": "again", "topic": "same"},
    {"prompt": "again", "topic": "same"},
]
FEEDBACK = [
    {"prompt": "p", "chosen": "a é", "rejected": "b"},
    {"prompt": "p", "left": "a", "right": "b", "preferred": "tie", "rater": "ann"},
    {"prompt": "p", "completions": ["a", "b", "c"]},
    {"text": "alone 🙂", "score": "1.5"},
    {"prompt": CHAT, "chosen": [{"role": "assistant", "content": "x"}], "rejected": "y"},
    {"data": {"prompt": "p", "answer1": "a", "answer2": "b"}, "annotations": [
        {"completed_by": {"email": "x@y"}, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}]},
    {"fields": {"response1": "a", "response2": "b"}, "responses": {"preference": [{"value": "tie"}]}},
]  # fmt: skip
FLAT = [{"prompt": "p", "left": "a", "right": f"b{i}", "preferred": "left", "rater": "é"} for i in range(4)]
KINDS = ["prompts.jsonl", "prompts.csv", "prompts.parquet", "prompts.folder"]
KINDS += ["feedback.jsonl", "feedback.csv", "feedback.parquet", "feedback.folder", "feedback.json"]
ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp1252", "shift-jis"]
PIECES = [
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b'"',
    b"\\",
    b",",
    b"{",
    b"[",
    b"]" * 9,
    b"\xef\xbb\xbf",
]
NASTY = [
    None,
    True,
    -0.0,
    10**400,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [1],
    {"a": {}},
    CHAT,
    CHAT * 2,
    "",
    " ",
]
NASTY += [
    "\0",
    "\ud800",
    "\u202e\x1b[2J",
    "x" * 200_000,
    [{"role": 1, "content": 2}],
    [{"role": "user"}],
    ["a", "a"],
]


def write_rows(file, rows):
    """Write rows in the format that the file's name says."""
    if file.suffix == ".jsonl":
        file.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".csv":
        names = list(rows[0])
        quoted = [
            [f'"{str(row.get(name, "")).replace(chr(34), chr(34) * 2)}"' for name in names] for row in rows
        ]
        file.write_bytes("".join(",".join(line) + "\n" for line in [names, *quoted]).encode(errors="replace"))
    elif file.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    else:
        file.mkdir()
        (file / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
        table = pa.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(str(file / "data.arrow"), table.schema) as stream:
            stream.write_table(table, max_chunksize=2)


def damaged_bytes(data, chance):
    """Flip, cut, insert, swap or encode anew."""
    way = chance.choice(
        ["flip", "cut", "insert", "encode", "swap", "repeat", "nest", "digits", "twice", "return"]
    )
    place = chance.randrange(len(data) + 1)
    if way == "flip":
        flipped = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return way, bytes(flipped)
    pieces = {
        "cut": lambda: data[:place],
        "insert": lambda: data[:place] + chance.choice(PIECES) * chance.randint(1, 3) + data[place:],
        "encode": lambda: data.decode(errors="replace").encode(chance.choice(ENCODINGS), errors="replace"),
        "swap": lambda: data[place:] + data[:place],
        "repeat": lambda: data[:place] + data[place // 2 : place] + data[place:],
        "nest": lambda: data[:place] + b"[" * chance.choice([10, 900, 990, 1100, 100_000]) + data[place:],
        "digits": lambda: data.replace(b'"', b"9" * chance.choice([400, 5000]), 1),
        "twice": lambda: data.replace(b"topic", b"prompt").replace(b"left", b"right"),
        "return": lambda: data.replace(b"\n", chance.choice([b"\r", b"\r\n", b"\n\n", b"\x0b", "\u2028".encode()])),
    }  # fmt: skip
    return way, pieces[way]()


def damaged_rows(rows, chance):
    """Put other types into a row or two, leave columns out, or put others in."""
    rows = json.loads(json.dumps(rows))
    for _ in range(chance.randint(1, 2)):
        row = chance.choice(rows)
        name = chance.choice([*row, "prompt", "prompts", "completions", "rater"])
        if chance.random() < 0.2:
            row.pop(name, None)
        else:
            row[name] = chance.choice(NASTY)
    return rows


def make_case(number, folder):
    """Write the file of a case, and say what was done to it."""
    chance = random.Random(number)  # noqa: S311  repeatable, not secret
    file = folder / KINDS[number % len(KINDS)]
    good = (
        PROMPTS
        if file.stem == "prompts"
        else FLAT
        if file.suffix in (".csv", ".parquet", ".folder")
        else FEEDBACK
    )
    rows = good * chance.randint(1, 3)
    way = "types"
    if chance.random() < 0.35:
        try:
            write_rows(file, damaged_rows(rows, chance))
        except (pa.ArrowException, ValueError, OverflowError, TypeError):  # such a file cannot be made
            if file.is_dir():
                (file / "data.arrow").unlink(missing_ok=True)
            else:
                write_rows(file, rows)
        return file, way
    write_rows(file, rows)
    parts = [file] if file.is_file() else [file / chance.choice(["data.arrow", "data.arrow", "state.json"])]
    for _ in range(chance.choice([1, 1, 1, 2])):
        data = parts[0].read_bytes()
        if data:
            way, data = damaged_bytes(data, chance)
            parts[0].write_bytes(data)
    return file, way


def check_lines(file, rows):
    """Every line is a row's, blank, or the header of a CSV file; no line is of two rows."""
    lines = [line.decode(errors="replace") for line in file.read_bytes().split(b"\n")]
    lines[0] = lines[0].removeprefix("\ufeff")
    owned = []
    for row in rows:
        first, _, last = row.place.removeprefix(f"{file}:").partition("-")
        owned += range(int(first), int(last or first) + 1)
    assert owned == sorted(set(owned))
    has_header = file.suffix == ".csv"  # the first line that is not empty, be it of spaces alone
    header = next((number for number, line in enumerate(lines, 1) if has_header and line.strip("\r")), None)
    rest = [number for number, line in enumerate(lines, 1) if number not in set(owned) and line.strip()]
    assert rest == [number for number in [header] if number and lines[number - 1].strip()]


def check_prompts(file):
    try:
        found = PromptFile(file)
    except KlimbError:
        return "refused"
    rows = list(found)
    assert len(rows) == len(found) > 0
    for index in {0, len(rows) // 2, len(rows) - 1}:
        assert repr(found[index]) == repr(rows[index])
    if file.suffix in (".jsonl", ".csv"):
        check_lines(file, rows)
    elif file.suffix == ".parquet":
        assert len(rows) == pyarrow.parquet.ParquetFile(file).metadata.num_rows
    return "read"


def check_feedback(file):
    try:
        rows = list(read_rows(file))
    except KlimbError as error:
        with pytest.raises(type(error)):
            read_feedback(file)
        return "refused"
    kept = 0
    for row in rows:
        one = Feedback()
        take_row(row, one)
        outcomes = [bool(one.comparisons or one.ratings), one.num_skipped == 1, len(one.refused) == 1]
        assert sum(outcomes) == 1, (row, one)
        kept += outcomes[0]
    if file.suffix in (".jsonl", ".csv"):
        check_lines(file, rows)
    try:
        together = read_feedback(file)
    except KlimbError:
        assert kept == 0
        return "refused"
    assert together.num_rows == len(rows) == kept + together.num_skipped + len(together.refused)
    return "read in part" if together.refused else "read"


def check_case(number, folder):
    """Read the file of a case; return what was done to it and what came of it."""
    file, way = make_case(number, folder)
    outcome = check_prompts(file) if file.stem == "prompts" else check_feedback(file)
    return file.name, way, outcome


def test_damaged_files_are_refused_or_read_and_no_row_is_lost(tmp_path):
    outcomes = Counter()
    for number in range(450):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcomes[check_case(number, folder)[2]] += 1
    assert min(outcomes[name] for name in ("refused", "read", "read in part")) > 20, outcomes


@pytest.mark.parametrize("name", KINDS)
def test_undamaged_files_are_read_whole(name, tmp_path):
    file = tmp_path / name
    rows = (
        PROMPTS
        if file.stem == "prompts"
        else FLAT
        if name.endswith((".csv", "parquet", "folder"))
        else FEEDBACK
    )
    write_rows(file, rows)
    if file.stem == "prompts":
        assert [row.prompt for row in PromptFile(file)] == [row["prompt"] for row in rows]
    else:
        found = read_feedback(file)
        assert (found.num_rows, found.num_skipped, found.refused) == (len(rows), 0, [])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=80)
    | st.text(alphabet='{}[]",:\n\r\\ué\0"promt 19', max_size=60).map(lambda text: text.encode(errors="replace"))
    | st.lists(st.sampled_from(['{"prompt": "a"}', '"a,b",c', "prompt,b", "a,b", "", "\r", '"', "\ufeff"]), max_size=9)
    .map("\n".join)
    .map(str.encode),
    st.sampled_from([*(name for name in KINDS if not name.endswith("folder"))]),
)  # fmt: skip
@example(data=b"\t", name="feedback.csv")
def test_whatever_bytes_a_file_has_it_is_refused_or_its_rows_are_all_there(tmp_path_factory, data, name):
    file = Path(tmp_path_factory.mktemp("bytes")) / name
    file.write_bytes(data)
    assert (check_prompts if file.stem == "prompts" else check_feedback)(file)
