"""Prompts that stay in their file: the same rows whichever way they are read, and little memory."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from klimb import KlimbError
from klimb.core.rng import permutation
from klimb.data import prompts as prompts_module
from klimb.data import row_index
from klimb.data.prompts import PromptFile, indices_of_step, read_prompts, require_held_out
from klimb.training.run import train

NUM = 1500  # more than the lines from one note of a line number to the next, and than a batch


def write(file, rows):
    if file.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text(
            "\ufeff\n" + "\n\n".join(lines), encoding="utf-8"
        )  # blank lines, and no end to the last
    elif file.suffix == ".csv":
        text = "".join(f'"{row["prompt"]}",{row["topic"]}\r\n' for row in rows)
        file.write_text("prompt,topic\r\n\r\n" + text, encoding="utf-8-sig", newline="")
    elif file.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=700)
    else:
        file.mkdir()
        table = pa.Table.from_pylist(rows)
        (file / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
        with pyarrow.ipc.new_stream(str(file / "a.arrow"), table.schema) as stream:
            stream.write_table(table, max_chunksize=400)
    return file


@pytest.fixture(params=["p.jsonl", "p.csv", "p.parquet", "folder"])
def file(request, tmp_path):
    rows = [{"prompt": f"é {i}" + "\nnext" * (i % 3), "topic": str(i % 7)} for i in range(NUM)]
    return write(tmp_path / request.param, rows)


def test_a_row_by_its_number_is_the_row_in_its_turn(file):
    found = PromptFile(file)
    in_turn = list(found)
    assert len(found) == len(in_turn) == NUM
    for index in (0, 1, 255, 256, 257, 399, 400, 1023, 1024, 1234, NUM - 1, -1):
        assert found[index] == in_turn[index]
    assert found[3:6] == in_turn[3:6]
    assert [row.prompt for row in in_turn] == [f"é {i}" + "\nnext" * (i % 3) for i in range(NUM)]
    with pytest.raises(IndexError):
        found[NUM]


def test_places_are_where_the_rows_stand(tmp_path):
    rows = [{"prompt": f"{i}" + "\nx" * (i % 3), "topic": "t"} for i in range(600)]
    lines = PromptFile(write(tmp_path / "p.jsonl", rows))
    assert [lines[i].place.rpartition(":")[2] for i in (0, 1, 300, 599)] == ["2", "4", "602", "1200"]
    records = PromptFile(write(tmp_path / "p.csv", rows))
    # Rows of 1, 2 and 3 lines in turn begin on line 3: row 300 on line 3 + 100 · 6.
    assert [records[i].place.rpartition(":")[2] for i in (0, 1, 2, 300, 301)] == [
        "3",
        "4-5",
        "6-8",
        "603",
        "604-605",
    ]


def test_parquet_beyond_what_is_kept_in_memory_goes_through_a_file_that_is_gone_at_once(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(row_index, "_IN_MEMORY", 1000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    file = write(tmp_path / "p.parquet", [{"prompt": f"text {i}", "topic": None} for i in range(NUM)])
    found = PromptFile(file)
    assert list(scratch.iterdir()) == []
    assert [found[i].prompt for i in (0, 1023, 1024, NUM - 1)] == [
        "text 0",
        "text 1023",
        "text 1024",
        "text 1499",
    ]


def test_every_row_has_the_columns_of_the_whole_file_whichever_way_it_is_read(write_jsonl):
    found = PromptFile(write_jsonl([{"prompt": "x", "a": 1}, {"prompt": "y", "b": 2}]))
    expected = [{"a": 1, "b": None}, {"a": None, "b": 2}]
    assert [row.columns for row in found] == [found[0].columns, found[1].columns] == expected


def test_memory_does_not_grow_with_the_texts(tmp_path):
    peaks = []
    for length in (10, 9000):
        file = write(tmp_path / f"{length}.jsonl", [{"prompt": f"{i} {'x' * length}"} for i in range(700)])
        tracemalloc.start()
        PromptFile(file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 700 * 9000 / 20
    assert peaks[1] < 700 * 9000 / 5


def test_a_file_that_changed_since_it_was_read_is_named(file):
    found = PromptFile(file)
    changed = file / "a.arrow" if file.is_dir() else file
    assert found[0].prompt == "é 0"
    if file.suffix == ".parquet":
        file.write_bytes(b"")  # its rows were unpacked
        assert found[0].prompt == "é 0"
        return
    changed.touch()
    os.utime(changed, ns=(1, 1))
    if file.is_dir():
        os.utime(file, ns=(1, 1))
    with pytest.raises(KlimbError, match="changed after it was read: restore it"):
        found[0]


def test_repeats_are_counted_and_the_first_are_shown(tmp_path):
    texts = [
        "a",
        "b",
        "a",
        [{"role": "user", "content": "a"}],
        "b",
        "a",
        [{"role": "user", "content": "a"}],
        "c",
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "n": n}) + "\n" for n, text in enumerate(texts)))
    repeats = PromptFile(file).repeats
    assert repeats.num_rows == 4
    assert repeats.first == [
        (f"{file}:{line}", f"{file}:{earlier}") for line, earlier in ((3, 1), (5, 2), (6, 1))
    ]
    assert str(repeats) == (
        f"4 prompts are duplicates of earlier ones, and all are sampled: {file}:3 as {file}:1, {file}:5 as {file}:2, "
        f"{file}:6 as {file}:1, …"
    )


def test_without_repeats_there_is_nothing_to_say(prompts_file):
    assert PromptFile(prompts_file).repeats is None


def test_prompts_of_one_digest_that_differ_are_no_repeats(write_jsonl, monkeypatch):
    monkeypatch.setattr(prompts_module, "_digest", lambda row: len(row.prompt))
    found = PromptFile(write_jsonl([{"prompt": text} for text in ("ab", "cd", "ab", "x")]))
    assert found.repeats.num_rows == 1
    assert [place.rpartition(":")[2] for place in found.repeats.first[0]] == ["3", "1"]
    assert found.find([found[1], found[3]]).keys() == {0, 1}


@pytest.mark.parametrize("at_once", [3, 1 << 20])
def test_repeats_are_those_that_a_set_finds(at_once, write_jsonl, monkeypatch):
    monkeypatch.setattr(prompts_module, "_AT_ONCE", at_once)
    texts = [str(n) for n in np.random.default_rng(0).integers(60, size=200)]
    found = PromptFile(write_jsonl([{"prompt": text} for text in texts])).repeats
    seen, expected = {}, []
    for line, text in enumerate(texts, 1):
        if text in seen:
            expected.append((str(line), str(seen[text])))
        seen.setdefault(text, line)
    assert found.num_rows == len(expected)
    assert [tuple(place.rpartition(":")[2] for place in pair) for pair in found.first] == expected[:3]


def test_a_prompt_that_is_held_out_and_trained_on_is_named_with_both_places(write_jsonl):
    trained = PromptFile(write_jsonl([{"prompt": text} for text in "abc"]))
    held_out = read_prompts(write_jsonl([{"prompt": text} for text in "xyb"], "held.jsonl"))
    require_held_out(held_out[:2], trained)
    with pytest.raises(
        KlimbError, match=r"held\.jsonl:3: .*not held out: it is trained on, .*prompts\.jsonl:2"
    ):
        require_held_out(held_out, trained)


def test_a_null_byte_in_a_prompt_is_refused_and_in_another_column_is_not(write_jsonl):
    (row,) = read_prompts(write_jsonl([{"prompt": "a\x1b\u202e", "other": "\0"}]))
    assert (row.prompt, row.columns) == ("a\x1b\u202e", {"other": "\0"})
    for prompt in ("a\0", [{"role": "user", "content": "a\0"}]):
        with pytest.raises(KlimbError, match=r":1: prompt: a null byte at character 1 is not text"):
            read_prompts(write_jsonl([{"prompt": prompt}]))


def count_or_refusal(file):
    try:
        return len(PromptFile(file))
    except KlimbError as error:
        return str(error)


def test_a_message_nested_too_deep_is_named(tmp_path):
    for depth in (400, 900, 960, 980):
        line = '{"prompt": [{"role": "user", "content": "x", "more": ' + "[" * depth + "]" * depth + "}]}"
        (tmp_path / "p.jsonl").write_text(line)
        outcome = count_or_refusal(tmp_path / "p.jsonl")
        assert outcome == 1 or "p.jsonl:1" in str(outcome)


def test_steps_take_what_they_took_before_the_order_was_kept():
    for step in (0, 3, 4, 9, 2):
        epoch, position = divmod(step, 3)
        order = permutation(seed=5, epoch=epoch, count=10)
        assert indices_of_step(step, 10, 3, seed=5) == order[position * 3 : position * 3 + 3].tolist()


def test_a_run_tells_of_repeats(model_folder, tmp_path, write_jsonl, capsys):
    from klimb.config.train import TrainConfig

    reward = tmp_path / "reward.py"
    reward.write_text("def long(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    config = TrainConfig(
        model=str(model_folder),
        prompts=write_jsonl([{"prompt": text, "system": "Be brief."} for text in ("a", "b", "a")]),
        reward=(f"{reward}:long",),
        out=tmp_path / "run",
        num_steps=1,
        prompts_per_step=2,
        max_new_tokens=2,
        eval_completions_per_prompt=1,
    )
    train(config)
    shown = capsys.readouterr().out
    assert "1 prompts are duplicates of earlier ones" in shown
    assert "'system' (3 rows)" in shown
    assert Path(config.out / "report.html").is_file()


def test_columns_that_may_belong_to_the_prompt_and_prompts_to_be_continued_are_counted(write_jsonl):
    user, assistant = {"role": "user", "content": "Be brief. Hi"}, {"role": "assistant", "content": "I"}
    rows = PromptFile(
        write_jsonl(
            [
                {"prompt": "Sum up:", "input": "a long text", "system": "Be brief.", "images": []},
                {"prompt": [user], "system": "Be brief.", "history": [["a", "b"]]},
                {"prompt": [user, assistant], "input": "", "images": [{"path": "a.png"}], "answer": "4"},
            ]
        )
    )
    assert rows.unread == {"input": 1, "system": 1, "history": 1, "images": 1}
    assert rows.num_continued == 1
