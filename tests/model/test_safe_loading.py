"""What a model's files may do: nothing is unpickled, none of their code runs unless it is allowed."""

import json
import shutil
import struct
import threading

import numpy as np
import pytest
import torch

from klimb import KlimbError, row_blocks
from klimb.cli.main import main
from klimb.cli.update import update_file
from klimb.model.gguf import convert_gguf
from klimb.model.load import load_model
from klimb.model.safe_loading import without_pickle
from klimb.reward.scorer import Scorer

ATTACK = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
class C(LlamaConfig):
    model_type = "foreign"
class M(LlamaForCausalLM):
    config_class = C
class S(LlamaForSequenceClassification):
    config_class = C
class T(PreTrainedTokenizerFast):
    pass
"""


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path):
    """A file that appears if what must not run has run."""
    return tmp_path / "it-ran"


@pytest.fixture
def copied(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    return folder


@pytest.fixture
def foreign(copied, marker, monkeypatch):
    """A model of an architecture that transformers does not know, with code that says what it is."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(marker.parent / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(marker.parent / "modules"))
    (copied / "code.py").write_text(ATTACK.format(marker=str(marker)))
    config = json.loads((copied / "config.json").read_text()) | {"model_type": "foreign"}
    names = {"AutoConfig": "C", "AutoModelForCausalLM": "M", "AutoModelForSequenceClassification": "S"}
    config["auto_map"] = {key: f"code.{value}" for key, value in names.items()}
    (copied / "config.json").write_text(json.dumps(config))
    return copied


def pickle_weights(file, marker):
    torch.save({"weight": Bomb(str(marker))}, file)


LOADERS = [load_model, Scorer.load, Scorer.from_base]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_by_their_name_with_the_remedy(load, name, copied, marker):
    (copied / "model.safetensors").unlink()
    pickle_weights(copied / name, marker)
    with pytest.raises(
        KlimbError, match=rf"its weights are pickled \({name}\).*only safetensors.*save_pretrained"
    ):
        load(copied)
    assert not marker.exists()


@pytest.mark.parametrize("load", LOADERS)
def test_a_pickled_adapter_beside_a_sound_model_is_refused(load, copied, marker):
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (copied / "adapter_config.json").write_text(
        json.dumps(adapter | {"base_model_name_or_path": str(copied)})
    )
    pickle_weights(copied / "adapter_model.bin", marker)
    with pytest.raises(KlimbError, match=r"cannot load .*adapter_model"):
        load(copied)
    assert not marker.exists()


def test_torch_load_is_itself_again_afterwards(tmp_path):
    usual = torch.load
    with without_pickle(), pytest.raises(KlimbError, match="is a pickle"):
        torch.load(tmp_path / "x.pt")
    assert torch.load is usual


@pytest.mark.parametrize("load", LOADERS)
def test_code_that_comes_with_a_model_does_not_run_unless_allowed(load, foreign, marker):
    with pytest.raises(
        KlimbError, match=r"Python code of its own, which does not run unless.*--trust-remote-code"
    ):
        load(foreign)
    assert not marker.exists()


def test_code_that_comes_with_a_model_runs_where_it_is_allowed(foreign, marker):
    model, _ = load_model(foreign, trust_remote_code=True)
    assert marker.read_text() == "ran"
    assert type(model).__name__ == "M"


def test_code_beside_a_model_of_a_known_kind_does_not_run(copied, marker, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody may be asked"))
    (copied / "code.py").write_text(ATTACK.format(marker=str(marker)))
    for name, auto_map in (
        ("config.json", {"AutoModelForCausalLM": "code.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["code.T", "code.T"]}),
    ):
        content = json.loads((copied / name).read_text()) | {"auto_map": auto_map}
        (copied / name).write_text(json.dumps(content))
    model, _ = load_model(copied)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_the_flag_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Run Python code that comes with a model. Only for models whose makers you trust." in shown


def test_what_lies_beside_a_gguf_file_is_not_taken_for_a_part_of_it(tmp_path, marker, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody may be asked"))
    beside = tmp_path / "models"
    beside.mkdir()
    (beside / "code.py").write_text(ATTACK.format(marker=str(marker)))
    (beside / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["code.T", None]}})
    )
    (beside / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "code.C"}}))
    (beside / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(KlimbError, match="cannot be read as a GGUF model"):
        convert_gguf(beside / "m.gguf")
    assert not marker.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "counts",
    [
        struct.pack("<IQQ", 3, 2**62, 0),
        struct.pack("<IQQ", 3, 0, 2**62),
        struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**61),
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 2**60),
        struct.pack("<IQQ", 99, 1, 1),
    ],
)
def test_a_gguf_header_that_promises_too_much_is_refused(counts, tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + counts + bytes(64))
    with pytest.raises(KlimbError, match="cannot be read as a GGUF model"):
        load_model(tmp_path / "m.gguf")


def header(content):
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


GRADS = "log_prob_grads"


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        header({GRADS: 5}),
        header({GRADS: {"dtype": "F32"}}),
        header({GRADS: {"dtype": [], "shape": [2, 2], "data_offsets": [0, 16]}}),
        header({GRADS: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}),
        header({GRADS: {"dtype": "F32", "shape": [-1, 2], "data_offsets": [0, 16]}}),
        header({GRADS: {"dtype": "F32", "shape": [2, 2], "data_offsets": [-100, 16]}}),
        header({GRADS: {"dtype": "F32", "shape": 7, "data_offsets": [0, 16]}}),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
)
def test_a_safetensors_header_that_lies_is_refused_everywhere(content, copied, tmp_path):
    file = tmp_path / "grads.safetensors"
    file.write_bytes(content)
    with pytest.raises(KlimbError, match=r"grads\.safetensors"):
        list(row_blocks(file))
    (copied / "model.safetensors").write_bytes(content)
    with pytest.raises(KlimbError, match="cannot load"):
        load_model(copied)


def test_arrays_of_python_objects_are_refused(tmp_path, marker):
    objects = np.empty((1, 1), dtype=object)
    objects[0, 0] = Bomb(str(marker))
    np.save(tmp_path / "grads.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "step.npz", **dict.fromkeys(("weights", "rewards", "policy_log_probs"), objects),
             ref_log_probs=objects, log_prob_grads=objects, allow_pickle=True)  # fmt: skip
    with pytest.raises(KlimbError, match="never unpickles"):
        list(row_blocks(tmp_path / "grads.npy"))
    with pytest.raises(KlimbError, match="an array in it cannot be read"):
        update_file(tmp_path / "step.npz", 0.1, 0.1, tmp_path / "out.npy")
    assert not marker.exists()


def test_an_array_header_that_promises_too_much_is_refused(tmp_path):
    file = tmp_path / "grads.npy"
    for shape in ("(10000000000000, 1000)", "(-1, 2)", "('a', 2)", "(1, 2", "__import__('os')"):
        text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
        file.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(16))
        with pytest.raises(KlimbError, match=r"grads\.npy"):
            list(row_blocks(file))


def test_other_threads_are_refused_too_meanwhile_and_not_afterwards():
    refused = []

    def look():
        refused.append(torch.load.__module__ == "klimb.model.safe_loading")

    with without_pickle():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert refused == [True, False]
