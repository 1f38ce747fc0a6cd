"""Whatever a run reads and that has changed since it began is told when it is resumed."""

import json
import shutil
from dataclasses import replace
from datetime import datetime

import pyarrow
import pyarrow.ipc
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from klimb.cli.main import main
from klimb.errors import ConfigError
from klimb.model import clock
from klimb.training.storage.environment import describe_environment
from klimb.training.storage.fingerprint import check_fingerprints, take_fingerprints
from klimb.training.storage.folder import RunFolder

PROMPTS = ["one", "a longer one", "three", "x", "the fifth", "six"]
DATED = (
    "<|system|>It is {{ strftime_now('%H:%M:%S') }}<|end|>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_dataset(folder, prompts):
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    table = pyarrow.table({"prompt": prompts})
    with pyarrow.ipc.new_stream(str(folder / "data.arrow"), table.schema) as stream:
        stream.write_table(table)
    return folder


def test_prompts_in_a_folder_of_datasets_that_changed_are_refused(make_options, run, tmp_path):
    config = make_options(
        prompts=write_dataset(tmp_path / "prompts", PROMPTS), num_steps=2, checkpoint_every=1
    )
    run(config, cut_at=1)
    write_dataset(tmp_path / "prompts", [*PROMPTS[:-1], "sly"])  # as long as it was
    with pytest.raises(
        ConfigError, match=r"changed since the run began: prompts: data\.arrow differs .*--accept prompts"
    ):
        run(config, resume=True)
    write_dataset(tmp_path / "prompts", PROMPTS)
    assert "content has changed" not in run(config, resume=True)


def edit(file):
    file.write_text(file.read_text() + "\n")


def edit_weights(file):
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("eval_prompts", "held_out/data.arrow", lambda file: write_dataset(file.parent, ["other"])),
        ("model", "model/tokenizer.json", edit),
        ("model", "model/tokenizer_config.json", edit),
        ("model", "model/chat_template.jinja", edit),
        ("model", "model/generation_config.json", edit),
        ("model", "model/model.safetensors", edit_weights),
        ("learned", "learned/model.safetensors", edit_weights),
        ("learned", "learned/ensemble.safetensors", edit_weights),
        ("learned", "learned/chat_template.jinja", edit),
        ("adapted", "base/model.safetensors", edit_weights),
        ("rules.py:letters", "helpers.py", edit),
        ("rules.py:letters", "inside/deep.py", edit),
        ("judge.py:measure", "judge.py", edit),
    ],
)
def test_each_file_that_a_run_reads_is_refused_by_the_name_of_what_reads_it(
    name, file, change, make_options, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for copy in ("model", "learned", "base"):
        shutil.copytree(model_folder, tmp_path / copy)
    shutil.copy(tmp_path / "model/model.safetensors", tmp_path / "learned/ensemble.safetensors")
    (tmp_path / "adapted").mkdir()
    (tmp_path / "adapted/adapter_config.json").write_text(
        '{"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "base"}'
    )
    shutil.copy(tmp_path / "model/model.safetensors", tmp_path / "adapted/adapter_model.safetensors")
    (tmp_path / "inside").mkdir()
    (tmp_path / "rules.py").write_text("import helpers\n")
    (tmp_path / "helpers.py").write_text("from inside import deep\n")
    (tmp_path / "inside/deep.py").write_text("")
    (tmp_path / "judge.py").write_text("")
    config = make_options(
        model="model",
        reward=("rules.py:letters", "learned", "adapted"),
        judges=("judge.py:measure", "vader"),
        eval_prompts=write_dataset(tmp_path / "held_out", ["held out"]),
    )
    then = take_fingerprints(config)
    assert check_fingerprints(then, take_fingerprints(config)) == []
    change(tmp_path / file)
    with pytest.raises(ConfigError, match=f"changed since the run began: {name}: ") as caught:
        check_fingerprints(then, take_fingerprints(config))
    assert str(caught.value).endswith(f"--accept {name}")


def test_a_file_that_is_new_in_a_folder_is_refused_too(make_options, tmp_path):
    config = make_options(prompts=write_dataset(tmp_path / "prompts", PROMPTS))
    then = take_fingerprints(config)
    (tmp_path / "prompts/more.arrow").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"prompts: more\.arrow is new"):
        check_fingerprints(then, take_fingerprints(config))


def test_another_lexicon_of_vader_is_refused(make_options, monkeypatch, tmp_path):
    config = make_options(reward=("vader",))
    then = take_fingerprints(config)
    assert {"vader_lexicon.txt", "emoji_utf8_lexicon.txt"} < set(then["vader"])
    (tmp_path / "vader_lexicon.txt").write_text("good\t1.9\n")
    monkeypatch.setattr(
        "klimb.training.storage.fingerprint.files_of_package",
        lambda *_: {"vader_lexicon.txt": tmp_path / "vader_lexicon.txt"},
    )
    with pytest.raises(ConfigError, match=r"vader: "):
        check_fingerprints(then, take_fingerprints(config))


def test_of_a_service_it_is_said_that_nothing_can_be_told(make_options, run):
    config = make_options(num_steps=2, checkpoint_every=1)
    run(config, cut_at=1)
    options = json.loads((config.out / "config.json").read_text())
    url = "http://127.0.0.1:1/score"
    judged = RunFolder.find(config.out)
    judged.write_config(options | {"judges": [url]})
    from klimb.training.storage.resume import plan_resumption

    resumption = plan_resumption(replace(config, judges=(url,)))
    now = take_fingerprints(config)
    assert resumption.compare(now) == [f"{url}: a service; klimb cannot check that it answers as before"]


@pytest.mark.slow
def test_what_was_not_recorded_is_said(cut):
    from klimb.training.storage.resume import plan_resumption

    file = cut.out / "fingerprints.json"
    recorded = json.loads(file.read_text())
    del recorded["prompts"]
    file.write_text(json.dumps(recorded))
    (remark,) = plan_resumption(cut).compare(take_fingerprints(cut))
    assert remark.startswith("prompts: its content was not recorded when the run began")


def test_options_of_a_toml_file_that_changed_are_refused(cut, tmp_path, capsys):
    (tmp_path / "run.toml").write_text("seed = 3\n")
    assert main(["train", "--resume", str(cut.out), "--config", str(tmp_path / "run.toml")]) == 2
    assert "seed: 0 when it began, 3 now" in capsys.readouterr().err


def test_variables_by_which_libraries_compute_are_described_without_secrets(monkeypatch):
    import torch

    monkeypatch.setenv("KLIMB_KERNELS", "generic")
    monkeypatch.setenv("KLIMB_REWARD_TOKEN", "s3cret")
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    found = describe_environment(torch.device("cpu"))
    assert "KLIMB_KERNELS=generic" in found["variables"]
    assert "ONEDNN_DEFAULT_FPMATH_MODE=BF16" in found["variables"]
    assert "s3cret" not in str(found)
    assert {"python", "tokenizers", "peft", "jinja2"} < set(found)


class Later(datetime):
    @classmethod
    def now(cls, tz=None):  # noqa: ARG003
        return cls(2030, 5, 6, 7, 8, 9)


@pytest.fixture
def dated(make_options, model_folder, tmp_path):
    """Options of a run on chats with a model whose template writes the time, and is judged by one."""
    shutil.copytree(model_folder, tmp_path / "dated")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dated")
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path / "dated")
    config = make_options(model=str(tmp_path / "dated"))
    chats = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    config.prompts.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return config


def test_a_run_reads_the_time_of_its_start_when_it_is_resumed_later(dated, run, essence, monkeypatch):
    screen = run(dated, cut_at=2)
    began = json.loads((dated.out / "fingerprints.json").read_text())["<clock>"]["moment"]
    assert f"the chat template writes the time: {began.replace('T', ' ')} in this run" in screen
    with clock.clock_at(datetime.fromisoformat(began)):
        whole = replace(dated, out=dated.out.with_name("whole"))
        run(whole)
    monkeypatch.setattr(clock, "datetime", Later)
    assert f"the chat template writes the time: {began.replace('T', ' ')} in" in run(dated, resume=True)
    assert essence(dated.out) == essence(whole.out)
    assert "2030-05-06" not in (dated.out / "fingerprints.json").read_text()


def test_the_saved_model_writes_the_present_time_again(dated, run):
    run(replace(dated, num_steps=1))
    assert AutoTokenizer.from_pretrained(dated.out / "model").chat_template == DATED
