"""Rewards: functions, classifiers, their weighted sum, and what is refused."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from klimb import KlimbError
from klimb.reward.load import load_rewards
from klimb.reward.reward import Batch

CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def reward_file(tmp_path, monkeypatch):
    """Write a file of reward functions, in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(body, name="judge.py"):
        (tmp_path / name).write_text(body)
        return name

    return write


def judge(specs, batch=None, weights=None):
    return load_rewards(specs, weights)(batch or Batch(["p", "p"], ["good", "bad"])).complete()


def test_vader_prefers_pleasant_words():
    rewards = judge(["vader"], Batch(["I am"] * 3, [" so happy", " here", " sad and angry"]))
    assert rewards.total[0] > 0.5
    assert rewards.total[1] == 0
    assert rewards.total[2] < -0.5


def test_a_judge_is_asked_and_counts_for_nothing(reward_file):
    file = reward_file(
        "def one(completions):\n    return [1.0] * len(completions)\n"
        "def shy(completions):\n    return [None] * len(completions)\n"
    )
    rewards = load_rewards([f"{file}:one"], [3.0], judges=["vader", f"{file}:shy"])(Batch(["p"], ["good"]))
    assert rewards.total == [3.0]
    assert rewards.parts["vader"][0] > 0
    assert rewards.parts[f"{file}:shy"] == [None]
    with pytest.raises(KlimbError, match="every reward returned None or NaN"):
        load_rewards([f"{file}:shy"], judges=["vader"])(Batch(["p"], ["good"])).complete()
    with pytest.raises(KlimbError, match="each reward or judge may be named once"):
        load_rewards(["vader"], judges=["vader"])


def test_vader_by_hand():
    # The lexicon rates `good` 1.9, and the score is s / √(s² + 15), rounded to four digits.
    assert judge(["vader"], Batch(["p"], ["good"])).total == [round(1.9 / math.sqrt(1.9**2 + 15), 4)]


def test_vader_reads_the_content_of_messages():
    assert judge(["vader"], Batch([CHAT], ["good"])).total == judge(["vader"], Batch(["p"], ["good"])).total


def test_a_function_of_a_file_gets_prompts_completions_and_columns(reward_file):
    file = reward_file(
        "def f(prompts, completions, wanted, **_):\n"
        "    return [float(p == 'p') + 10 * c.count(w) for p, c, w in zip(prompts, completions, wanted)]\n"
    )
    batch = Batch(["p", "q"], ["aab", "bb"], {"wanted": ["a", "b"], "other": [1, 2]})
    assert judge([f"{file}:f"], batch).total == [21.0, 20.0]


def test_a_function_gets_only_the_columns_that_it_names(reward_file):
    file = reward_file("def f(completions):\n    return [len(c) for c in completions]\n")
    assert judge([f"{file}:f"], Batch(["p"], ["abc"], {"other": [1]})).total == [3.0]


def test_a_function_of_a_module_in_the_current_folder_is_found(reward_file):
    reward_file("def f(completions, **_):\n    return [1.0] * len(completions)\n", "module_of_rewards.py")
    assert judge(["module_of_rewards:f"]).total == [1.0, 1.0]


def test_a_file_finds_its_neighbours(reward_file, tmp_path, monkeypatch):
    reward_file("BONUS = 7.0\n", "neighbour_of_judge.py")
    file = reward_file(
        "import neighbour_of_judge as n\ndef f(completions):\n    return [n.BONUS] * len(completions)\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert judge([f"../{file}:f"]).total == [7.0, 7.0]


def test_a_generator_and_a_function_without_a_signature_are_taken(reward_file):
    file = reward_file("def f(completions):\n    for c in completions:\n        yield len(c)\n")
    assert judge([f"{file}:f"]).total == [4.0, 3.0]
    with pytest.raises(KlimbError, match="reward builtins:max raised TypeError"):
        judge(["builtins:max"])


def test_chat_completions_come_as_messages(reward_file):
    file = reward_file("def f(completions, **_):\n    return [len(c[0]['content']) for c in completions]\n")
    assert judge([f"{file}:f"], Batch([CHAT], ["four"])).total == [4.0]


def test_several_rewards_are_weighted_and_added(reward_file):
    file = reward_file(
        "def one(completions, **_):\n    return [1.0] * len(completions)\n"
        "def half(completions, **_):\n    return [2.0, None]\n"
    )
    rewards = judge([f"{file}:one", f"{file}:half"], weights=[3.0, 0.5])
    assert rewards.total == [4.0, 3.0]  # 3·1 + ½·2, and 3·1 where the second has no opinion
    assert rewards.parts == {f"{file}:one": [1.0, 1.0], f"{file}:half": [2.0, None]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "expected 2 numbers, one per completion, got 1"),
        ("return [1.0, float('nan')]", "every reward returned None or NaN, at completion 1 of 2: 'bad'"),
        ("return [float('inf'), 1.0]", "expected a finite number, got inf, at completion 0"),
        ("return [1.0, 'x']", "expected a number or None, got 'x', at completion 1"),
        ("return 1.0", "expected a list of 2 numbers, one per completion, got float"),
        ("return None", "expected a list of 2 numbers, one per completion, got NoneType"),
        ("yield 1 / 0", r"raised ZeroDivisionError: division by zero \(.*judge\.py:2\)"),
        ("return [None, 1.0]", "every reward returned None or NaN, at completion 0"),
        ("return [1 / 0]", r"raised ZeroDivisionError: division by zero \(.*judge\.py:2\)"),
    ],
)
def test_what_a_function_may_not_do_is_said(body, message, reward_file):
    file = reward_file(f"def f(completions, **_):\n    {body}\n")
    with pytest.raises(KlimbError, match=message):
        judge([f"{file}:f"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "reward nonsense: unknown; expected a built-in"),
        ("missing.py:f", "reward missing.py:f: no file missing.py"),
        ("judge.py:g", "judge.py has no function 'g'; it has f"),
        ("no_such_module:f", "importing no_such_module raised ModuleNotFoundError"),
        ("broken.py:f", "loading broken.py raised SyntaxError"),
    ],
)
def test_a_reward_that_cannot_be_found_is_said(spec, message, reward_file):
    reward_file("def f(completions):\n    return [0.0]\n")
    reward_file("def f(:\n", "broken.py")
    with pytest.raises(KlimbError, match=message):
        load_rewards([spec])


def test_weights_must_match_the_rewards():
    with pytest.raises(KlimbError, match="reward_weights: expected 1 weights, one for each reward, got 2"):
        load_rewards(["vader"], [1.0, 2.0])
    with pytest.raises(KlimbError, match="each reward or judge may be named once"):
        load_rewards(["vader", "vader"])
    with pytest.raises(KlimbError, match="expected at least one reward"):
        load_rewards([])


@pytest.fixture
def classifier_folder(tokenizer, tmp_path):
    def make(num_labels):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=64,
                num_labels=num_labels,
                pad_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                eos_token_id=None,
            )
            model = LlamaForSequenceClassification(config)
        model.save_pretrained(tmp_path / "judge")
        tokenizer.save_pretrained(tmp_path / "judge")
        return tmp_path / "judge", model.eval()

    return make


def test_a_classifier_with_one_output_scores_prompt_and_completion(classifier_folder, tokenizer):
    folder, model = classifier_folder(1)
    batch = Batch(["ab", "abcd", CHAT], ["c", "", "ok"])
    rewards = judge([str(folder)], batch)
    chat = "<|user|>hi<|end|><|assistant|>ok<|end|>"
    for reward, text in zip(rewards.total, ["abc", "abcd", chat], strict=True):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            assert reward == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-5)


def test_a_classifier_with_several_outputs_is_refused(classifier_folder):
    folder, _ = classifier_folder(2)
    with pytest.raises(KlimbError, match="expected a model with 1 output, a score, got 2 labels"):
        load_rewards([str(folder)])


def test_a_text_longer_than_the_classifier_reads_fails_alone(classifier_folder):
    folder, _ = classifier_folder(1)
    with pytest.raises(KlimbError, match="have 65 tokens and it reads at most 64"):
        judge([str(folder)], Batch(["a" * 60], ["b" * 5]))
    rewards = load_rewards([str(folder)])(Batch(["a", "a" * 60, "ab"], ["b", "b" * 5, "c"]))
    assert [failure.index for failure in rewards.failures] == [1]
    expected = judge([str(folder)], Batch(["a", "ab"], ["b", "c"])).total
    assert rewards.given == pytest.approx(expected, abs=1e-6)


def test_a_reward_model_that_is_not_there_is_said():
    with pytest.raises(KlimbError, match="reward nobody/nothing: cannot load a classification model"):
        load_rewards(["nobody/nothing"])
