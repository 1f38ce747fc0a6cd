"""Prompts from files, and the order in which steps take them."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from klimb import KlimbError
from klimb.config.train import TrainConfig
from klimb.data.prompts import indices_of_step, read_prompts
from klimb.training.run import train

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def test_jsonl_rows_keep_their_columns_and_places(write_jsonl):
    file = write_jsonl([{"prompt": "a", "wanted": 1}, {"prompt": CHAT, "wanted": None}])
    first, second = read_prompts(file)
    assert (first.prompt, first.columns, first.place) == ("a", {"wanted": 1}, f"{file}:1")
    assert (second.prompt, second.columns) == (CHAT, {"wanted": None})


def test_blank_lines_are_passed_over_and_counted(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [row.place for row in read_prompts(file)] == [f"{file}:1", f"{file}:3"]


def test_csv_with_quotes_and_a_byte_order_mark(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text('\ufeffprompt,topic\n"a, and\nb",x\nc,y\n', encoding="utf-8")
    rows = read_prompts(file)
    assert [row.prompt for row in rows] == ["a, and\nb", "c"]
    assert [row.columns for row in rows] == [{"topic": "x"}, {"topic": "y"}]


def test_parquet_with_messages(tmp_path):
    file = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pa.table({"prompt": [CHAT], "n": [3]}), file)
    (row,) = read_prompts(file)
    assert (row.prompt, row.columns, row.place) == (CHAT, {"n": 3}, f"{file}, row 1")


def test_another_column_can_be_chosen(write_jsonl):
    (row,) = read_prompts(write_jsonl([{"question": "a", "prompt": "b"}]), "question")
    assert (row.prompt, row.columns) == ("a", {"prompt": "b"})


GOOD = json.dumps({"prompt": "fine"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', r":17: not JSON: .* got \{\"prompt\": \"a\""),
        ('["a"]', ":17: expected a JSON object"),
        ('{"text": "a"}', ":17: no column 'prompt'; it has 'text'"),
        ('{"prompt": ""}', ":17: prompt: it is empty"),
        ('{"prompt": "  "}', ":17: prompt: it is empty"),
        ('{"prompt": 5}', ":17: prompt: expected text or a list of messages, got 5"),
        ('{"prompt": null}', ":17: prompt: expected text or a list of messages, got None"),
        ('{"prompt": []}', ":17: prompt: the list of messages is empty"),
        ('{"prompt": [{"role": "user"}]}', ":17: prompt: expected messages with a text `role` and `content`"),
        ('{"prompt": "\\ud800"}', ":17: prompt: half of a surrogate pair"),
        ('{"prompt": [{"role": "user", "content": "\\udfff"}]}', ":17: prompt: half of a surrogate pair"),
        ('{"prompt": "a", "completions": 1}', ":17: a column may not be named 'completions'"),
    ],
)
def test_a_malformed_line_is_named(line, message, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join([GOOD] * 16 + [line, GOOD]))
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(file)
    assert isinstance(caught.value, KlimbError)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"x", r"expected a \.jsonl, \.csv or \.parquet file"),
        ("p.jsonl", b"", "has no prompts"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', ":2: not UTF-8 text: byte 12 of the line"),
        ("p.csv", b"prompt,b\nx\n", ":2: expected 2 fields"),
        ("p.csv", b"prompt\nx,y\n", ":2: expected 1 fields"),
        ("p.csv", b'prompt\n"x', "not CSV"),
        ("p.parquet", b"nonsense", "not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KlimbError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(KlimbError, match=r"none\.jsonl: no such file"):
        read_prompts(tmp_path / "none.jsonl")


def test_jsonl_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "p.jsonl").write_text('\ufeff{"prompt": "a"}\n', encoding="utf-8")
    assert read_prompts(tmp_path / "p.jsonl")[0].prompt == "a"


def test_every_row_has_the_columns_of_the_whole_file(write_jsonl):
    rows = read_prompts(write_jsonl([{"prompt": "x", "a": 1}, {"prompt": "y", "b": 2}]))
    assert [row.columns for row in rows] == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_the_prompts_may_stand_in_a_column_named_prompts(write_jsonl):
    (row,) = read_prompts(write_jsonl([{"prompts": "x"}]), "prompts")
    assert row.columns == {}


def test_an_epoch_takes_every_prompt_once():
    taken = [index for step in range(4) for index in indices_of_step(step, 12, 3, seed=0)]
    assert sorted(taken) == list(range(12))


def test_the_next_epoch_takes_another_order():
    epochs = [[indices_of_step(step + 4 * e, 12, 3, seed=0) for step in range(4)] for e in (0, 1)]
    assert epochs[0] != epochs[1]


def test_no_step_has_a_prompt_twice_even_across_epochs():
    for step in range(50):
        indices = indices_of_step(step, 7, 3, seed=1)
        assert len(set(indices)) == 3


def test_a_batch_larger_than_the_file_is_refused():
    with pytest.raises(KlimbError, match="prompts_per_step: expected at most the 2 prompts there are, got 3"):
        indices_of_step(0, 2, 3, seed=0)


NOW = datetime.datetime(2023, 4, 9, 0, 2, tzinfo=datetime.UTC)


def wildchat(file):
    """Conversations as WildChat-1M has them, with values that JSON does not know in the messages and beside them."""
    rows = [
        {
            "conversation": [
                {
                    "content": f"Say {i}",
                    "role": "user",
                    "timestamp": NOW,
                    "header": {"agent": "x", "none": None},
                    "id": b"\xff",
                }
            ],
            "at": NOW,
            "cost": decimal.Decimal("1.50"),
            "share": float("nan"),
            "image": {"bytes": b"\x89PNG", "path": None},
            "scores": {"toxic": [0.5, None]},
        }
        for i in range(4)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("map", pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())))
    table = table.append_column("hash", pa.array([b"0" * 16] * 4, pa.binary(16)).cast(pa.uuid()))
    pyarrow.parquet.write_table(table, file)
    return file


def test_what_json_has_no_form_for_stands_in_messages_as_text_and_in_columns_as_it_is(tmp_path):
    row = read_prompts(wildchat(tmp_path / "wildchat.parquet"), "conversation")[0]
    assert row.prompt == [
        {
            "role": "user",
            "content": "Say 0",
            "timestamp": "2023-04-09T00:02:00+00:00",
            "header": {"agent": "x", "none": None},
            "id": "1 bytes",
        }
    ]
    assert row.columns["at"] == NOW
    assert row.columns["cost"] == decimal.Decimal("1.50")


def test_a_run_on_such_conversations_writes_whole_files(model_folder, tmp_path):
    (tmp_path / "reward.py").write_text(
        "def early(completions, at, cost, **_):\n    return [float(t.year) + float(c) for t, c in zip(at, cost)]\n"
    )
    config = TrainConfig(
        model=str(model_folder),
        prompts=wildchat(tmp_path / "wildchat.parquet"),
        prompt_column="conversation",
        reward=(f"{tmp_path / 'reward.py'}:early",),
        out=tmp_path / "run",
        num_steps=1,
        prompts_per_step=2,
        max_new_tokens=2,
        eval_completions_per_prompt=1,
    )
    train(config)
    lines = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"][0]["timestamp"] for line in lines} == {"2023-04-09T00:02:00+00:00"}
    assert {json.loads(line)["reward"] for line in lines} == {2024.5}


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "critic", "content": "x"}, "prompt: message 1: the role 'critic' is not known"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "klimb reads only text"),
        ({"role": "user", "content": None}, "it has no content"),
    ],
)
def test_messages_that_are_not_understood_are_named_with_their_line(message, why, write_jsonl):
    with pytest.raises(KlimbError, match=r"prompts\.jsonl:1: prompt: ") as error:
        read_prompts(write_jsonl([{"prompt": [message]}]))
    assert why in str(error.value)


def test_messages_of_other_tools_become_those_of_chat_templates(write_jsonl):
    (row,) = read_prompts(
        write_jsonl([{"conversations": [{"from": "human", "value": "x", "weight": None}]}]), "conversations"
    )
    assert row.prompt == [{"role": "user", "content": "x"}]
