"""Files that are something else than their names say."""

import gzip

import pytest

from klimb.data.prompts import PromptFile
from klimb.data.rows import read_rows
from klimb.errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9085657\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", POINTER, "a Git LFS pointer.*git lfs pull"),
        ("rows.csv", POINTER, "a Git LFS pointer"),
        ("rows.json", POINTER, "a Git LFS pointer"),
        ("rows.jsonl.gz", POINTER, "a Git LFS pointer"),
        ("train-00000-of-00001.parquet", POINTER, "a Git LFS pointer.*hf download"),
        (
            "rows.jsonl",
            gzip.compress(b'{"prompt": "a"}\n', mtime=0),
            r"compressed by gzip: add \.gz to its name",
        ),
        ("rows.csv", b"PK\x03\x04\x14\0\6\0", "a ZIP archive or an Excel workbook.*save the sheet as CSV"),
        ("rows.jsonl", b"PAR1\x15\4\x15", r"a Parquet file: name it \.parquet"),
        ("rows.csv", b"\xef\xbb\xbf\n<!DOCTYPE html><html><head>", "a page in HTML"),
        ("rows.parquet", b"<HTML><body>Log in", "a page in HTML"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(name, content, said, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: is {said}"):
        list(read_rows(file))
    with pytest.raises(DataError, match=f"{name}: is {said}"):
        PromptFile(file)


def test_a_clone_whose_files_were_not_fetched_says_so(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(POINTER)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: is a Git LFS pointer"):
        list(read_rows(tmp_path))


def test_texts_that_begin_like_another_kind_are_texts(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt\nPK\nPAR1\n<html>\n")
    assert [row.values["prompt"] for row in read_rows(file)] == ["PK", "PAR1", "<html>"]
