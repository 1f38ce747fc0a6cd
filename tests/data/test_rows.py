"""Rows of files: encodings, places, and what of a damaged file can be read."""

import json

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from klimb import KlimbError
from klimb.data.rows import read_rows

UNUSUAL = ["naïve", "🙂 👨‍👩‍👧", "שלום", "مرحبا \u202e", "日本語", "a\x1b[2Jb", "\u2028", "\x85"]


def problems(file):
    return {row.place.rpartition(":")[2]: row.problem for row in read_rows(file) if row.problem}


def write_folder(folder, table, name="data.arrow"):
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pyarrow.ipc.new_stream(str(folder / "data.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    return folder


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "folder"])
def test_letters_of_any_script_and_control_characters_come_through_as_they_are(name, tmp_path):
    file = tmp_path / name
    if name == "a.jsonl":
        file.write_text(
            "".join(json.dumps({"t": t}, ensure_ascii=False) + "\n" for t in UNUSUAL), encoding="utf-8"
        )
    elif name == "a.csv":
        file.write_text("t\n" + "".join(f'"{t}"\n' for t in UNUSUAL), encoding="utf-8", newline="")
    elif name == "folder":
        write_folder(file, pa.table({"t": UNUSUAL}))
    else:
        pyarrow.parquet.write_table(pa.table({"t": UNUSUAL}), file)
    assert [row.values["t"] for row in read_rows(file)] == UNUSUAL


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_another_encoding_is_named_with_what_to_do(encoding, name, tmp_path):
    (tmp_path / name).write_bytes('{"prompt": "x"}\n{"prompt": "y"}\n'.encode(encoding))
    with pytest.raises(KlimbError, match=r"UTF-(16|32).*save it as UTF-8"):
        list(read_rows(tmp_path / name))


def test_lines_of_latin_1_are_named_and_the_others_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"a": "x"}\n{"a": "é"}\n{"a": "z"}\n'.encode("latin-1"))
    assert problems(tmp_path / "a.jsonl") == {"2": "not UTF-8 text: byte 7 of the line cannot be read"}
    assert [row.values for row in read_rows(tmp_path / "a.jsonl")] == [{"a": "x"}, {}, {"a": "z"}]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    for name, text in (("a.jsonl", '{"a": "x"}\n'), ("a.csv", "a\nx\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert [row.values for row in read_rows(tmp_path / name)] == [{"a": "x"}]


def test_a_key_that_stands_twice_is_named_not_half_lost(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a", "prompt": "b"}\n{"m": [{"role": 1, "role": 2}]}\n{"m": 1}\n'
    )
    assert problems(tmp_path / "a.jsonl") == {
        "1": "the key 'prompt' occurs twice in one object",
        "2": "the key 'role' occurs twice in one object",
    }


@pytest.mark.parametrize("line", ['{"a": ' + "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_a_line_that_goes_too_deep_or_counts_too_far_is_named(line, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    assert list(problems(tmp_path / "a.jsonl")) == ["2"]


def test_after_a_record_that_cannot_be_read_come_those_below_it(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,2\n"x"y,3\n4,5\n6\n7,8\n')
    rows = list(read_rows(tmp_path / "a.csv"))
    assert [row.values for row in rows if not row.problem] == [
        {"a": "1", "b": "2"},
        {"a": "4", "b": "5"},
        {"a": "7", "b": "8"},
    ]
    assert {place: why[:8] for place, why in problems(tmp_path / "a.csv").items()} == {
        "3": "not CSV:",
        "5": "expected",
    }


def test_a_quote_that_is_never_closed_names_all_the_lines_it_swallows(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,2\n"x,3\n4,5\n6,7\n')
    assert list(problems(tmp_path / "a.csv")) == ["3-5"]


def test_a_record_with_a_line_that_is_no_text_is_refused_not_mended(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'a,b\n"one\n\xff\nthree",2\n3,4\n')
    assert problems(tmp_path / "a.csv") == {"2-4": "not UTF-8 text: byte 0 of the line cannot be read"}
    assert [row.values for row in read_rows(tmp_path / "a.csv")][1] == {"a": "3", "b": "4"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,a\n1,2,3\n", r":1: the header names the column 'a' twice"),
        (b"\n\na,\xff\n1,2\n", r":3: the header cannot be read: not UTF-8"),
        (b'a,"b\n1,2\n3,4"\n5,6\n', r":1-3: the header runs over several lines"),
        (b'"a"b\n1\n', r":1: the header cannot be read: not CSV"),
    ],
)
def test_a_header_that_would_lose_a_column_or_a_row_is_refused(content, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(KlimbError, match=message):
        list(read_rows(tmp_path / "a.csv"))


def test_a_field_too_long_for_csv_says_what_to_do(tmp_path):
    (tmp_path / "a.csv").write_text(f"a\n{'x' * 200_000}\ny\n")
    assert "go into a .jsonl file" in problems(tmp_path / "a.csv")["2"]
    assert [row.values for row in read_rows(tmp_path / "a.csv") if not row.problem] == [{"a": "y"}]


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for file in (tmp_path / "a.parquet", write_folder(tmp_path / "folder", table)):
        with pytest.raises(KlimbError, match="two columns are named 'prompt'"):
            list(read_rows(file))


@pytest.mark.parametrize(
    "name", ["../outside.arrow", "/etc/passwd", "..", "", "a/b.arrow", 7, None, "./data.arrow"]
)
def test_a_name_in_a_folder_never_leads_out_of_it(name, tmp_path):
    folder = write_folder(tmp_path / "folder", pa.table({"a": ["x"]}))
    write_folder(tmp_path, pa.table({"a": ["secret"]}))
    (tmp_path / "data.arrow").rename(tmp_path / "outside.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(KlimbError, match=r"is not a file in its folder"):
        list(read_rows(folder))


def test_a_folder_that_was_cut_between_two_batches_is_refused(tmp_path):
    folder = write_folder(tmp_path / "folder", pa.table({"a": ["x", "y", "z"]}))
    file = folder / "data.arrow"
    whole = file.read_bytes()
    assert [row.values["a"] for row in read_rows(folder)] == ["x", "y", "z"]
    file.write_bytes(whole[:-8])
    with pytest.raises(KlimbError, match="cut short: its end is missing"):
        list(read_rows(folder))


def test_a_selection_that_an_old_datasets_wrote_is_refused(tmp_path):
    folder = write_folder(tmp_path / "folder", pa.table({"a": ["x"]}))
    state = json.loads((folder / "state.json").read_text()) | {
        "_indices_data_files": [{"filename": "i.arrow"}]
    }
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(KlimbError, match="load it with datasets and save it again"):
        list(read_rows(folder))


def test_text_of_a_parquet_file_that_is_no_text_is_refused(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
    )
    pyarrow.parquet.write_table(pa.table({"prompt": broken}), tmp_path / "a.parquet")
    with pytest.raises(KlimbError, match=r"not a Parquet file that can be read.*UTF"):
        list(read_rows(tmp_path / "a.parquet"))


def test_a_value_that_python_has_not_is_named_with_its_row(tmp_path):
    times = pa.array([1, 2**62], type=pa.timestamp("us"))
    pyarrow.parquet.write_table(pa.table({"at": times}), tmp_path / "a.parquet")
    good, bad = read_rows(tmp_path / "a.parquet")
    assert good.problem is None
    assert bad.place.endswith("row 2")
    assert "cannot be read" in bad.problem
