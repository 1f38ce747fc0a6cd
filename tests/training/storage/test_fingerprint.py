"""What a run began with, by checksums."""

import hashlib

import pytest

from klimb.errors import ConfigError, RunFolderError
from klimb.training.storage.fingerprint import check_fingerprints, read_fingerprints, take_fingerprints
from klimb.training.storage.folder import RunFolder


def test_prompts_the_model_and_rewards_that_are_files_have_fingerprints(make_options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("def f(completions, **_):\n    return [1.0] * len(completions)\n")
    rules = f"{tmp_path / 'rules.py'}:letters"
    config = make_options(
        reward=(rules, "vader", "http://localhost:1/score"),
        judges=("here:f",),
        eval_prompts=tmp_path / "here.py",
    )
    found = take_fingerprints(config)
    assert set(found) == {"model", "prompts", "eval_prompts", rules, "vader", "here:f"}
    assert found["prompts"] == {"content": hashlib.sha256(config.prompts.read_bytes()).hexdigest()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} < set(found["model"])
    assert found["eval_prompts"] == found["here:f"]


THEN = {"prompts": {"content": "a" * 64}, "model": {"config.json": "b" * 64, "model.safetensors": "c" * 64}}


def test_the_same_content_passes():
    assert check_fingerprints(THEN, dict(THEN)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompts": {"content": "d" * 64}},
            "prompts: its content differs (SHA-256 aaaaaaaaaaaa… then, dddd",
        ),
        ({"prompts": {}}, "prompts: no longer found"),
        ({"model": {"config.json": "b" * 64}}, "model: model.safetensors is missing"),
        ({"model": THEN["model"] | {"more.json": "e"}}, "model: more.json is new"),
        ({"model": THEN["model"] | {"config.json": "e" * 64}}, "model: config.json differs"),
    ],
)
def test_other_content_is_named_with_what_differs(changes, message):
    with pytest.raises(ConfigError) as caught:
        check_fingerprints(THEN, THEN | changes)
    assert message in str(caught.value)
    (name,) = changes
    assert check_fingerprints(THEN, THEN | changes, [name]) == [name]


def test_content_that_is_accepted_does_not_excuse_other_content():
    now = {"prompts": {"content": "d" * 64}, "model": {}}
    with pytest.raises(ConfigError, match="model: no longer found") as caught:
        check_fingerprints(THEN, now, ["prompts"])
    assert "prompts:" not in str(caught.value)


def test_fingerprints_survive_their_file(tmp_path):
    folder = RunFolder(tmp_path)
    assert read_fingerprints(folder.fingerprints) is None
    folder.write_fingerprints(THEN)
    assert read_fingerprints(folder.fingerprints) == THEN


@pytest.mark.parametrize("content", ["{", "[]", '{"prompts": 7}'])
def test_a_file_of_fingerprints_that_is_damaged_is_named(content, tmp_path):
    file = tmp_path / "fingerprints.json"
    file.write_text(content)
    with pytest.raises(RunFolderError, match=r"fingerprints\.json: damaged or edited"):
        read_fingerprints(file)
