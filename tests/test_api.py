"""The Python API: objects in, a run out, the same bits as from files and from the command line."""

import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import klimb
from klimb.cli.main import main
from klimb.errors import ConfigError, DataError, RewardError, RunFolderError
from klimb.io.atomic import sha256
from klimb.training.observer import Observer

WORDS = ["one", "a longer one", "three", "x", "the fifth", "six"]
SHORT = {
    "prompts_per_step": 2, "completions_per_prompt": 3, "eval_completions_per_prompt": 2, "max_new_tokens": 5,
    "num_steps": 3, "checkpoint_every": 1, "lr": 5e-3, "preflight": False,
}  # fmt: skip


def letters(completions, **_):
    return [text.count("e") + 0.1 * len(text) for text in completions]


class Silent(Observer):
    """Shows nothing; stops the run by a signal after a step, if asked."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after

    def step_finished(self, metrics, rollout):  # noqa: ARG002
        if metrics["step"] + 1 == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)  # Ctrl-C's is ignored in the background of a shell


@pytest.fixture
def train(model_folder):
    def train(model=model_folder, prompts=WORDS, reward=letters, **options):
        return klimb.train(model, prompts, reward, **{"observer": Silent(), **SHORT, **options})

    return train


def weights_of(model):
    """The checksum of a saved model's weights."""
    return sha256(model / "model.safetensors")


def rows(prompts):
    return [{"prompt": prompt} for prompt in prompts]


def test_a_list_of_texts_and_a_function_give_the_bits_that_files_give_on_the_command_line(
    train, model_folder, tmp_path, monkeypatch
):
    (tmp_path / "rules.py").write_text(
        "def letters(completions, **_):\n    return [text.count('e') + 0.1 * len(text) for text in completions]\n"
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(WORDS)))
    monkeypatch.chdir(tmp_path)
    flags = [
        part
        for name, value in SHORT.items()
        if not isinstance(value, bool)
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    code = main(
        [
            "train",
            "--model",
            str(model_folder),
            "--prompts",
            "prompts.jsonl",
            "--reward",
            "rules.py:letters",
            "--out",
            "by-cli",
            "--no-preflight",
            *flags,
        ]
    )
    assert code == 0
    run = train(out="by-python")
    assert weights_of(run.model) == weights_of(tmp_path / "by-cli" / "model")
    mine, theirs = run.metrics, klimb.Run("by-cli").metrics
    assert [row["reward"] for row in mine] == [row["reward"] for row in theirs]
    assert run.summary.after == klimb.Run("by-cli").summary.after


def table_of_pandas():
    return pd.DataFrame({"prompt": WORDS, "wanted": list("aeioua")})


def data_set():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"prompt": WORDS, "wanted": list("aeioua")})


@pytest.mark.parametrize(
    "make",
    [
        lambda: [{"prompt": word, "wanted": vowel} for word, vowel in zip(WORDS, "aeioua", strict=True)],
        lambda: ({"prompt": word, "wanted": vowel} for word, vowel in zip(WORDS, "aeioua", strict=True)),
        lambda: {"prompt": WORDS, "wanted": list("aeioua")},
        table_of_pandas,
        lambda: pytest.importorskip("polars").DataFrame({"prompt": WORDS, "wanted": list("aeioua")}),
        data_set,
    ],
    ids=["dictionaries", "generator", "columns", "pandas", "polars", "datasets"],
)
def test_prompts_of_every_kind_reach_the_reward_with_their_columns(train, make):
    seen = []

    def reward(prompts, completions, wanted, **_):
        seen.extend(zip(prompts, wanted, strict=True))
        return [1.0] * len(completions)

    train(prompts=make(), reward=reward, num_steps=1)
    assert set(seen) == set(zip(WORDS, "aeioua", strict=True))


@pytest.mark.slow
def test_texts_in_an_array_or_series_are_prompts(train):
    for prompts in (np.array(WORDS), pd.Series(WORDS), tuple(WORDS)):
        run = train(prompts=prompts, num_steps=1)
        lines = (run.folder / "inputs" / "prompts.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows(WORDS)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "has no prompts"),
        ([1, 2], r"prompts\[0\]: expected a text, a list of messages or a dictionary, got 1"),
        ([{"role": "user", "content": "hi"}], "got the messages of one conversation"),
        ({"prompt": "x"}, "got one dictionary"),
        ({"prompt": ["a", "b"], "n": [1]}, "columns have unequal lengths: {'prompt': 2, 'n': 1}"),
        (3, "prompts: expected a list of texts"),
        (b"text", "prompts: expected a list of texts"),
        ([{"text": "x"}], "no column 'prompt'; it has 'text'"),
        ("hf:nonsense", "hf:nonsense: expected hf:org/name:split"),
        ("missing.jsonl", "missing.jsonl"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused_in_words_and_leave_no_folder(
    train, tmp_path, prompts, message
):
    with pytest.raises((DataError, ConfigError), match=message):
        train(prompts=prompts, out=tmp_path / "out" / "run")
    assert not (tmp_path / "out" / "run").exists()


async def asynchronous(completions, **_):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (None, "expected a function, a name, a folder or a klimb.RewardModel, got None"),
        (3.0, "got 3.0"),
        ([letters, letters], None),
        (asynchronous, None),
        (lambda completions, **_: np.ones(len(completions)), None),
        (dict, "is a class"),
    ],
)
def test_rewards_are_taken_where_they_can_be_called_and_refused_by_name_elsewhere(train, reward, message):
    if message is None:
        assert len(train(reward=reward, num_steps=1).metrics) == 1
        return
    with pytest.raises((ConfigError, RewardError), match=message):
        train(reward=reward)


def test_a_coroutine_or_a_model_as_a_reward_is_refused_with_what_to_give(train, model_folder):
    coroutine = asynchronous(["x"])
    with pytest.raises(ConfigError, match="without the parentheses"):
        train(reward=coroutine)
    coroutine.close()
    with pytest.raises(ConfigError, match="got a model; give the folder"):
        train(reward=AutoModelForCausalLM.from_pretrained(model_folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1e-5}, "lr"),
        ({"num_stepps": 3}, "num_steps"),
        ({"lr": "1e-5"}, "lr: expected a number, got '1e-5'"),
        ({"num_steps": 2.5}, "num_steps: expected a whole number, got 2.5"),
        ({"num_steps": True}, "num_steps: expected a whole number, got True"),
        ({"preflight": 1}, "preflight: expected True or False, got 1"),
        ({"precision": "fp8"}, "precision: expected one of"),
        ({"adam_betas": (0.9,)}, "adam_betas: expected 2 values"),
    ],
)
def test_an_option_of_another_name_or_type_is_refused_before_anything_is_loaded(train, options, message):
    with pytest.raises(ConfigError, match=message):
        train(model="nowhere/at-all", **options)


def test_numbers_of_numpy_and_single_values_are_taken(train):
    run = train(num_steps=np.int64(1), lr=np.float32(1e-3), reward_weights=2)
    assert (run.config.num_steps, run.config.reward_weights) == (1, (2.0,))


def test_two_functions_of_one_name_are_told_apart(train):
    def make(weight):
        def rule(completions, **_):
            return [weight * len(text) for text in completions]

        return rule

    run = train(reward=[make(1.0), make(2.0)], judges=make(-1.0), num_steps=1)
    assert set(run.metrics[0]["rewards"]) == {"python:rule", "python:rule_2", "python:rule_3"}


def test_a_model_object_is_copied_into_the_run_and_left_as_it_is(train, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    run = train(model=model, tokenizer=tokenizer)
    assert all((weight == before[name]).all() for name, weight in model.state_dict().items())
    assert weights_of(run.model) == weights_of(train().model)
    assert weights_of(train(model=(model, tokenizer)).model) == weights_of(run.model)
    assert weights_of(train(model=model).model) == weights_of(
        run.model
    )  # the tokenizer of where it came from
    model.name_or_path = ""
    with pytest.raises(ConfigError, match=r"tokenizer: .*also give tokenizer="):
        train(model=model)
    with pytest.raises(ConfigError, match="model: expected a name of the hub"):
        train(model=object())


def test_a_policy_that_was_trained_is_where_another_run_begins(train):
    first = train()
    second = train(model=first.policy)
    assert weights_of(second.folder / "inputs" / "model") == weights_of(first.model)


def test_an_interrupted_run_resumes_in_python_to_the_same_bits(train, tmp_path):
    whole = train()
    with pytest.raises(klimb.RunInterrupted, match="stopped after 1"):
        train(out=tmp_path / "cut", observer=Silent(stop_after=1))
    run = klimb.Run(tmp_path / "cut")
    with pytest.raises(ConfigError, match="started in Python with the function letters; give it again"):
        run.resume()
    with pytest.raises(ConfigError, match="got asynchronous"):
        run.resume(reward=[letters, asynchronous])
    resumed = run.resume(reward=letters, observer=Silent())
    assert weights_of(resumed.model) == weights_of(whole.model)
    assert resumed.summary.after == whole.summary.after
    longer = resumed.resume(num_steps=4, observer=Silent())
    assert len(longer.metrics) == 4


def test_a_function_of_another_source_is_refused_unless_it_is_accepted(train, tmp_path):
    def make(weight):
        def rule(completions, **_):
            return [weight * len(text) for text in completions]

        return rule

    def rule(completions, **_):
        return [2.0 for _ in completions]

    with pytest.raises(klimb.RunInterrupted):
        train(reward=make(1.0), out=tmp_path / "cut", observer=Silent(stop_after=1))
    run = klimb.Run(tmp_path / "cut")
    with pytest.raises(ConfigError, match=r"python:rule: source differs.*--accept python:rule"):
        run.resume(reward=rule)
    run.resume(reward=make(3.0), observer=Silent())  # what it closes over is not seen, as the docs say


def test_a_folder_of_a_run_begun_in_python_may_be_moved(train, tmp_path):
    with pytest.raises(klimb.RunInterrupted):
        train(out=tmp_path / "a", observer=Silent(stop_after=1))
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(klimb.Run(tmp_path / "b").resume(reward=letters, observer=Silent()).metrics) == 3


def test_the_command_line_says_that_a_function_is_needed_from_python(train, tmp_path, capsys):
    with pytest.raises(klimb.RunInterrupted):
        train(out=tmp_path / "cut", observer=Silent(stop_after=1))
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 2
    assert f"klimb.Run('{tmp_path / 'cut'}').resume(reward=letters)" in capsys.readouterr().err


def test_the_folder_of_a_run_is_not_overwritten(train, tmp_path):
    run = train(out=tmp_path / "run")
    before = (run.folder / "inputs" / "prompts.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="exists already"):
        train(out=tmp_path / "run", prompts=["others"] * 4)
    assert (run.folder / "inputs" / "prompts.jsonl").read_bytes() == before


def test_a_policy_generates_the_same_texts_for_the_same_seed(train):
    policy = train(num_steps=1).policy
    texts = policy.generate("one", n=3, max_new_tokens=4, seed=7)
    assert texts == policy.generate("one", n=3, max_new_tokens=4, seed=7)
    assert len(set(policy.generate("one", n=12, max_new_tokens=4))) > 1
    assert [len(group) for group in policy.generate(WORDS, n=2, max_new_tokens=3)] == [2] * 6
    assert policy.generate(["one", "x"], n=3, max_new_tokens=4, seed=7)[0] == texts
    assert len(set(policy.generate("one", n=5, temperature=1e-6))) == 1
    with pytest.raises(ValueError, match="n: expected at least 1"):
        policy.generate("one", n=0)


def test_two_models_are_compared_by_functions_and_the_better_one_wins(train, model_folder):
    run = train(num_steps=40, lr=2e-2)
    result = klimb.compare(run, model_folder, WORDS, by=letters, say=lambda _: None, max_new_tokens=5)
    assert result.win_rate > 0.6
    assert result.win_rate == result.tallies[0].win_rate
    assert result.page.is_file()
    against_objects = klimb.compare(
        run.policy, (AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)),
        WORDS, by=[letters], say=lambda _: None, max_new_tokens=5,
    )  # fmt: skip
    assert against_objects.win_rate == result.win_rate


def test_a_reward_is_learned_from_rows_scores_texts_and_trains_a_policy(train, model_folder, tmp_path):
    feedback = [
        {"prompt": f"say {word} {number}", "chosen": " good good", "rejected": " bad"}
        for word in WORDS
        for number in range(6)
    ]
    lines = []
    reward = klimb.RewardModel.fit(feedback, base=model_folder, say=lines.append)
    assert reward.beats_chance
    assert reward.verdict in lines
    good, bad = reward.score("say one 1", [" good good", " bad"])
    assert good > bad
    assert reward.score("say one 1", " good good") == pytest.approx(good, rel=1e-5)
    copy = reward.save(tmp_path / "copy")
    assert copy.score("say one 1", " bad") == pytest.approx(bad, rel=1e-5)
    with pytest.raises(ConfigError, match="exists already"):
        reward.save(tmp_path / "copy")
    with pytest.raises(ValueError, match="expected one, or 1"):
        reward.score(["a", "b"], " bad")
    run = train(reward=[reward, letters], reward_weights=[1.0, 0.5], judges=[copy], num_steps=1)
    assert set(run.metrics[0]["rewards"]) == {str(reward.folder), "python:letters", str(copy.folder)}


def test_a_data_set_of_the_hub_is_copied_into_the_run(train, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(WORDS)))
    monkeypatch.chdir(tmp_path)  # a folder of that name stands for the hub
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    run = train(prompts="hf:org/name:train", num_steps=1)
    assert (run.folder / "inputs" / "prompts.jsonl").read_text().count("\n") == len(WORDS)
    with pytest.raises(DataError, match="hf:org/name:nonsense: cannot be loaded"):
        train(prompts="hf:org/name:nonsense")


def test_a_run_shows_itself_as_its_report_and_says_where_it_is(train):
    run = train(num_steps=1)
    assert "<iframe" in run._repr_html_()
    assert repr(run) == f"klimb.Run({str(run.folder)!r})"
    assert run.report.is_file()


def test_a_home_folder_is_expanded_wherever_a_path_is_given(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(WORDS)))
    run = train(prompts="~/prompts.jsonl", out="~/runs/one", num_steps=1)
    assert run.folder == tmp_path / "runs" / "one"
    assert klimb.Run("~/runs/one").metrics == run.metrics
    result = klimb.compare("~/runs/one", run.config.model, "~/prompts.jsonl", by=letters, out="~/c.html",
        say=lambda _: None, max_new_tokens=3, completions_per_prompt=1)  # fmt: skip
    assert result.page == tmp_path / "c.html"


def test_a_model_that_cannot_be_saved_is_refused_with_what_to_do(train, model_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder).to("meta")
    with pytest.raises(ConfigError, match=r"model: cannot be copied .*give the folder"):
        train(model=model, tokenizer=AutoTokenizer.from_pretrained(model_folder), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"model: cannot be copied"):
        train(model=(AutoModelForCausalLM.from_pretrained(model_folder), object()))


def test_checks_alone_take_the_same_objects_and_leave_nothing_behind(train, model_folder, tmp_path):
    options = {name: value for name, value in SHORT.items() if name != "preflight"}
    found = klimb.check(model_folder, WORDS, letters, out=tmp_path / "later", observer=Silent(), **options)
    assert {result.outcome for result in found.results} <= {"passed", "warned"}
    assert found.memory.peak > 0
    assert not (tmp_path / "later").exists()
    run = train(out=tmp_path / "run", num_steps=1)
    with pytest.raises(RunFolderError, match="exists already"):
        klimb.check(model_folder, WORDS, letters, out=run.folder, **options)
    with pytest.raises(ConfigError, match="lr: expected a number"):
        klimb.check(object(), WORDS, letters, lr="1")  # before the model is looked at
