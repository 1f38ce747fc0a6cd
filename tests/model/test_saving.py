"""What is saved opens wherever the folder that it came from did."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
)

from klimb.model.saving import companions
from klimb.model.trainable import Lora
from klimb.policy.policy import Policy

WAYS = {"all weights": {}, "last layer": {"num_trainable_layers": 1}, "adapter": {"lora": Lora(2)}}


@pytest.fixture(scope="module")
def gemma_folder(tokenizer, tmp_path_factory):
    """A tiny Gemma 3 that sees, with the files of its processor."""
    folder = tmp_path_factory.mktemp("gemma") / "seeing"
    rows = len(tokenizer)
    text = {
        "vocab_size": rows + 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
        "sliding_window": 16, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None, "bos_token_id": None,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config=text,
                vision_config=vision,
                mm_tokens_per_image=4,
                image_token_index=rows,
                boi_token_index=rows + 1,
                eoi_token_index=rows + 2,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in {
        "preprocessor_config.json": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28}},
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        "chat_template.json": {"chat_template": "{{ messages }}"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_sees_keeps_its_eyes_and_its_processor(way, gemma_folder, tmp_path):
    policy = Policy.load(gemma_folder, device="cpu", **WAYS[way])
    policy.save(tmp_path / "saved")
    saved, source = (
        {file.name for file in folder.iterdir()} for folder in (tmp_path / "saved", gemma_folder)
    )
    assert saved >= source
    for name in ("preprocessor_config.json", "processor_config.json", "chat_template.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (gemma_folder / name).read_bytes()
    first, second = (
        Gemma3ForConditionalGeneration.from_pretrained(folder).state_dict()
        for folder in (gemma_folder, tmp_path / "saved")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.fixture
def copied(model_folder, tmp_path):
    """A sound model, for one test to change."""
    shutil.copytree(model_folder, tmp_path / "copied")
    return tmp_path / "copied"


def test_settings_of_generation_that_transformers_does_not_write_lose_no_model(copied, tmp_path):
    said = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": [256, 257]}
    (copied / "generation_config.json").write_text(json.dumps(said))
    policy = Policy.load(copied)
    policy.model.generation_config.top_k = (
        7  # transformers writes what is invalid where nothing changed it, if at all
    )
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        policy.model.generation_config.save_pretrained(tmp_path / "elsewhere")
    for folder in ("first", "second"):
        policy.save(tmp_path / folder)
        assert json.loads((tmp_path / folder / "generation_config.json").read_text()) == said
    assert Policy.load(tmp_path / "second").end_ids == policy.end_ids
    assert policy.model.generation_config.temperature == 0.6


def test_settings_that_have_no_file_keep_their_end_tokens(model_folder, tmp_path):
    policy = Policy.load(model_folder)
    policy.companions = {}
    policy.model.generation_config.temperature = 0.5
    ends = policy.model.generation_config.eos_token_id
    policy.save(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == ends


def test_older_files_of_the_tokenizer_and_code_of_the_processors_are_carried_over(copied, tmp_path):
    (copied / "tokenizer.model").write_bytes(b"pieces")
    (copied / "processor_config.json").write_text(
        json.dumps({"auto_map": {"AutoProcessor": "processing_x.X"}})
    )
    (copied / "processing_x.py").write_text("X = 1\n")
    (copied / "unrelated.py").write_text("Y = 1\n")
    Policy.load(copied).save(tmp_path / "saved")
    assert (tmp_path / "saved/tokenizer.model").read_bytes() == b"pieces"
    assert (tmp_path / "saved/processing_x.py").read_text() == "X = 1\n"
    assert not (tmp_path / "saved/unrelated.py").exists()
    assert "tokenizer.model" not in companions(copied, has_same_tokenizer=False)


def test_what_is_saved_says_in_what_width_it_is(copied, tmp_path):
    AutoModelForCausalLM.from_pretrained(copied).to(torch.bfloat16).save_pretrained(copied)
    policy = Policy.load(copied)
    policy.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["dtype"] == "float32"
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == policy.tokenizer.get_vocab()
