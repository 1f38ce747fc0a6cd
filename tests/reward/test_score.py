"""`klimb reward score`: a completion is its text or its messages, and a strange row costs itself."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from klimb.errors import DataError, RewardError
from klimb.reward.score import score_file
from klimb.reward.scorer import Scorer
from templates import GEMMA, MISTRAL, byte_tokenizer

USER = {"role": "user", "content": "How was it?"}
ANSWER = {"role": "assistant", "content": "Wonderful."}
LENGTH = """
def length(completions, **kwargs):
    return [float(len(c if isinstance(c, str) else c[0]["content"])) for c in completions]

def spy(prompts, completions, log_extra, **kwargs):
    log_extra("seen", [[p, c] for p, c in zip(prompts, completions)])
    return [1.0] * len(prompts)
"""


@pytest.fixture
def score(write_jsonl, tmp_path):
    (tmp_path / "judge.py").write_text(LENGTH)

    def score(rows, reward="length"):
        spec = reward if "/" in reward else f"{tmp_path / 'judge.py'}:{reward}"
        words = score_file(write_jsonl(rows), (spec,), tmp_path / "scores.jsonl")
        return [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()], words

    return score


@pytest.fixture
def make_reward(tmp_path):
    def make(template, seed=0):
        import torch

        tokenizer = byte_tokenizer(template)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForSequenceClassification(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=16,
                    intermediate_size=24,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    num_labels=1,
                    pad_token_id=tokenizer.eos_token_id,
                )
            )
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.4)
        model.save_pretrained(tmp_path / "rm")
        tokenizer.save_pretrained(tmp_path / "rm")
        return str(tmp_path / "rm")

    return make


SAME = [
    {"prompt": [USER], "completion": [ANSWER]},
    {"prompt": [USER], "completion": "Wonderful."},
    {"prompt": "How was it?", "completion": [ANSWER]},
    {"completion": [USER, ANSWER]},
    {"messages": [USER, ANSWER]},
    {"prompt": "How was it?", "completion": [USER, ANSWER]},
    {"prompt": [USER], "text": [USER, ANSWER]},
    {"prompt": [USER, {"role": "assistant", "content": "Wonder"}], "completion": "ful."},
    {"completion": [{"from": "human", "value": "How was it?"}, {"from": "gpt", "value": "Wonderful."}]},
    {
        "prompt": [USER | {"name": None}],
        "completion": [ANSWER | {"content": [{"type": "text", "text": "Wonderful."}]}],
    },
    {
        "prompt": [USER, {"role": "assistant", "content": "Wonder"}],
        "completion": [ANSWER | {"content": "ful."}],
    },
]


def test_a_completion_scores_the_same_as_text_and_as_messages(score, make_reward):
    rows, words = score([*SAME, {"prompt": "How was it?", "completion": "Wonderful."}])
    assert [row["score"] for row in rows] == [10.0] * 12
    assert "12 texts, mean score 10.000" in words
    rows, _ = score([*SAME, {"prompt": [USER], "completion": "other"}], make_reward(MISTRAL))
    scores = [row["score"] for row in rows]
    assert len(set(scores[:-1])) == 1
    assert scores[-1] != scores[0]


def test_functions_see_messages_as_trl_hands_them_over(score):
    rows, _ = score(SAME, "spy")
    assert [row["extra"]["seen"] for row in rows] == [[[USER], [ANSWER]]] * len(SAME)


def test_what_is_scored_is_the_conversation_in_the_template(make_reward):
    scorer = Scorer.load(make_reward(MISTRAL), device="cpu")
    ids = scorer.encode([USER, {"role": "assistant", "content": "Wonder"}], "ful.")
    assert scorer.tokenizer.decode(ids) == "<s>[INST] How was it? [/INST]Wonderful.</s>"
    turns = [ANSWER, USER, ANSWER]
    assert scorer.tokenizer.decode(scorer.encode([USER], turns)).count("[INST]") == 2


def test_a_row_that_a_template_refuses_costs_itself(score, make_reward):
    system = {"role": "system", "content": "b"}
    strange = {"prompt": [system, USER], "completion": "x"}
    rows, words = score([SAME[0], strange, SAME[1]], make_reward(GEMMA))
    assert rows[0]["score"] == rows[2]["score"]
    assert rows[1]["score"] is None
    assert "System role not supported; move the system message" in rows[1]["failure"]
    assert "prompts.jsonl:2: " in words
    assert "1 rows have no score" in words
    with pytest.raises(RewardError, match=r"no row could be scored: .*System role not supported"):
        score([strange], make_reward(GEMMA))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "no text: expected a column completion, text or messages, got 'prompt'"),
        ({"completion": [USER]}, "completion: expected a message of the assistant's, got user"),
        (
            {"completion": [{"role": "assistant"}]},
            "completion: expected messages with a text `role` and `content`",
        ),
        (
            {"completion": [{"role": "assistant", "content": [{"type": "image", "url": "x"}]}]},
            "its content has a part of type 'image'; klimb reads only text",
        ),
        ({"prompt": 3, "completion": "x"}, "prompt: expected text or a list of messages, got 3"),
    ],
)
def test_a_row_without_an_answer_costs_itself_and_is_named_with_its_line(row, message, score):
    rows, words = score([SAME[0], row, SAME[1]])
    assert [line["score"] for line in rows] == [10.0, None, 10.0]
    assert rows[1].items() >= row.items()
    assert message in rows[1]["failure"]
    assert "prompts.jsonl:2: " in words
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: "):
        score([row])


def test_a_line_that_cannot_be_read_keeps_its_place(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"text": \n{"text": "bad"}\n')
    score_file(tmp_path / "in.jsonl", ("vader",), tmp_path / "out.jsonl")
    first, broken, last = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert first["score"] > 0 > last["score"]
    assert broken["score"] is None
    assert broken["failure"].startswith("not JSON: ")


def test_a_model_that_ends_at_once_has_a_score(score, make_reward):
    rows, _ = score([{"prompt": "How was it?", "completion": ""}, SAME[0]])
    assert [row["score"] for row in rows] == [0.0, 10.0]
    rows, _ = score([{"prompt": [USER], "completion": ""}, SAME[0]], make_reward(MISTRAL))
    assert all(isinstance(row["score"], float) for row in rows)


def test_messages_of_other_tools_and_values_that_json_has_not_are_read_and_written(tmp_path):
    now = datetime.datetime(2023, 4, 9, tzinfo=datetime.UTC)
    turn = {"from": "gpt", "value": "abc", "at": now}
    pyarrow.parquet.write_table(
        pa.Table.from_pylist([{"completion": [turn], "at": now}]), tmp_path / "in.parquet"
    )
    (tmp_path / "own.py").write_text(
        "def year(completions, at, **_):\n    return [float(time.year) for time in at]\n"
    )
    score_file(tmp_path / "in.parquet", (f"{tmp_path / 'own.py'}:year",), tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["at"], row["score"]) == ("2023-04-09T00:00:00+00:00", 2023.0)
    assert row["completion"] == [{"role": "assistant", "content": "abc", "at": "2023-04-09T00:00:00+00:00"}]


def test_a_role_that_is_not_known_is_refused_with_its_line(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"completion": [{"role": "critic", "content": "x"}]}\n')
    with pytest.raises(
        DataError, match=r"in\.jsonl:1: completion: message 1: the role 'critic' is not known"
    ):
        score_file(tmp_path / "in.jsonl", ("vader",), tmp_path / "out.jsonl")
