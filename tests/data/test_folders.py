"""Folders of data sets and files under other endings: which files are read, and what is refused in words."""

import gzip
import json

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from klimb import KlimbError
from klimb.data.prompts import PromptFile
from klimb.data.rows import read_rows

ROWS = [{"prompt": f"é {number}", "topic": "t"} for number in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values(file):
    rows = list(read_rows(file))
    assert [row.problem for row in rows] == [None] * len(rows)
    return [row.values for row in rows]


def write_parquet(file, rows=ROWS):
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)


def by_number(file):
    """Prompts read one by one, last first, as steps do."""
    found = PromptFile(file)
    assert [row.prompt for row in found] == [found[i].prompt for i in range(len(found))]
    return [found[len(found) - 1 - i].prompt for i in range(len(found))]


def test_compressed_lines_are_read_and_found_again_by_number(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(LINES.encode())
    (tmp_path / "a.csv.gz").write_bytes(
        gzip.compress(("prompt,topic\n" + "".join(f"é {n},t\n" for n in range(5))).encode())
    )
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.csv.gz"):
        assert values(tmp_path / name) == ROWS
        assert by_number(tmp_path / name) == [row["prompt"] for row in reversed(ROWS)]
    assert [row.place.rpartition(":")[2] for row in PromptFile(tmp_path / "a.csv.gz")] == [
        "2",
        "3",
        "4",
        "5",
        "6",
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.gz"])
def test_a_compressed_file_that_is_cut_or_not_compressed_is_named(name, tmp_path):
    file = tmp_path / name
    with pa.output_stream(str(file), compression="gzip" if name.endswith("gz") else "zstd") as stream:
        stream.write(LINES.encode() * 100)
    for content in (file.read_bytes()[:-20], b"plain text\n"):
        file.write_bytes(content)
        with pytest.raises(KlimbError, match=rf"{name}: not a whole"):
            list(read_rows(file))


def test_a_json_file_with_a_list_lines_or_one_list_in_an_object(tmp_path):
    file = tmp_path / "a.json"
    for content in (
        json.dumps(ROWS),
        "\ufeff" + json.dumps(ROWS),
        LINES,
        json.dumps({"version": 1, "data": ROWS}),
    ):
        file.write_text(content, encoding="utf-8")
        assert values(file) == ROWS
        assert by_number(file) == [row["prompt"] for row in reversed(ROWS)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"train": ROWS, "test": ROWS}), "got several lists; save one of them as a file of its own"),
        (json.dumps({"prompt": ["a"], "topic": ["b"]}), "got an object with 'prompt', 'topic'"),
        ('[{"a": 1},]', "not JSON"),
        ('"text"', "expected a list of objects, got 'text'"),
    ],
)  # fmt: skip
def test_a_json_file_that_is_something_else_is_refused_in_words(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(KlimbError, match=message):
        list(read_rows(tmp_path / "a.json"))


def test_a_json_list_under_the_name_of_lines_says_how_to_name_it(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS, indent=1))
    with pytest.raises(
        KlimbError, match=r"a\.jsonl: one list in JSON rather than an object on each line: name it \.json"
    ):
        list(read_rows(tmp_path / "a.jsonl"))


def test_lines_with_commas_after_them_are_refused_and_the_others_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1},\r\n{"a": 2}\r\n\r\n{"a": NaN}\r\n')
    rows = list(read_rows(tmp_path / "a.jsonl"))
    assert [row.place.rpartition(":")[2] for row in rows] == ["1", "2", "4"]
    assert "Extra data at column 9" in str(rows[0].problem)
    assert rows[1].values == {"a": 2}


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t"), ("a.csv", ",")])
def test_tables_with_other_marks_between_fields(tmp_path, name, mark):
    text = f'prompt{mark}topic\n"é {mark}0"{mark}t\n"two\nlines"{mark}\n'
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert values(tmp_path / name) == [
        {"prompt": f"é {mark}0", "topic": "t"},
        {"prompt": "two\nlines", "topic": ""},
    ]
    assert by_number(tmp_path / name) == ["two\nlines", f"é {mark}0"]


def test_both_formats_of_arrow_and_columns_of_every_kind_of_text(tmp_path):
    table = pa.table(
        {
            "prompt": pa.array(["a", "b", "a"]).dictionary_encode(),
            "topic": pa.array(["x", None, "y"], pa.large_string()),
        }
    )
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    with pyarrow.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as sink:
        sink.write_table(table)
    with pyarrow.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as sink:
        sink.write_table(table)
    for name in ("a.feather", "file.arrow", "stream.arrow"):
        assert values(tmp_path / name) == table.to_pylist()
        assert by_number(tmp_path / name) == ["a", "b", "a"]
    (tmp_path / "file.arrow").write_bytes((tmp_path / "file.arrow").read_bytes()[:-10])
    with pytest.raises(KlimbError, match="not an Arrow file that can be read"):
        list(read_rows(tmp_path / "file.arrow"))


def test_a_clone_of_a_data_set_of_one_split_is_read_in_order(tmp_path):
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[3:])
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:3])
    (tmp_path / "README.md").write_text("# A card\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.json").write_text("[]")
    assert values(tmp_path) == ROWS
    assert by_number(tmp_path) == [row["prompt"] for row in reversed(ROWS)]
    assert list(read_rows(tmp_path))[3].place == f"{tmp_path}, row 4"


def test_shards_of_lines_are_read_in_order(tmp_path):
    (tmp_path / "part-2.jsonl").write_text(LINES)
    (tmp_path / "part-1.jsonl").write_text(json.dumps({"prompt": "first", "topic": "t"}) + "\n")
    assert values(tmp_path)[0]["prompt"] == "first"
    assert by_number(tmp_path)[-1] == "first"
    assert len(values(tmp_path)) == 6


def test_a_clone_of_several_splits_is_refused_with_their_names_and_files(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(
        KlimbError,
        match=r"has several splits or tables; name a file.*test \(\.parquet\): data/test-0.*train \(",
    ):
        list(read_rows(tmp_path))
    assert values(tmp_path / "data" / "test-00000-of-00001.parquet") == ROWS


def test_a_shard_that_is_missing_is_named(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00003.parquet")
    write_parquet(tmp_path / "train-00002-of-00003.parquet")
    with pytest.raises(KlimbError, match=r"incomplete: .* those with the numbers 1 are missing"):
        list(read_rows(tmp_path))


def test_a_folder_of_one_saved_split_is_that_split(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    table = pa.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(str(folder / "data.arrow"), table.schema) as sink:
        sink.write_table(table)
    assert values(tmp_path / "set") == values(folder) == ROWS


def test_a_folder_without_data_and_a_file_of_another_kind_say_what_is_expected(tmp_path):
    with pytest.raises(KlimbError, match=r"no file in it ends in one of \.jsonl"):
        list(read_rows(tmp_path))
    for name in ("a.xlsx", "a.parquet.gz", "a.pkl", "a.gz", "a.txt"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(KlimbError, match=rf"{name}: expected a \.jsonl"):
            list(read_rows(tmp_path / name))


def test_names_of_classes_stand_for_their_numbers_where_they_are_asked_for(tmp_path):
    features = {
        "info": {"features": {"preferred": {"names": ["left", "right", "tie"], "_type": "ClassLabel"}}}
    }
    table = pa.table({"left": ["a"], "right": ["b"], "preferred": [1]})
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet"
    )
    assert values(tmp_path / "a.parquet")[0]["preferred"] == 1
    from klimb.feedback.formats import read_feedback

    assert [c.preferred for c in read_feedback(tmp_path / "a.parquet").comparisons] == ["right"]


def test_a_name_that_is_too_long_is_refused_in_words(tmp_path):
    with pytest.raises(KlimbError, match=r"…: cannot be accessed: File name too long"):
        list(read_rows(tmp_path / ("x" * 5000)))
