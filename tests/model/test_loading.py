"""What is loaded is what is in the files: each case is a folder that people bring, and what klimb says of it."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from klimb.errors import DataError, KlimbError, ModelNotFoundError
from klimb.model.load import SCORER, WRITER, load, load_model
from klimb.policy.policy import Policy
from klimb.reward.scorer import Scorer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9085657\n"


@pytest.fixture
def copied(model_folder, tmp_path):
    """A sound model, for one test to spoil."""
    shutil.copytree(model_folder, tmp_path / "copied")
    return tmp_path / "copied"


def change_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


def change_weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(part):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def under(prefix):
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


def plus(name, *shape):
    return lambda weights: {**weights, name: torch.ones(*shape)}


WRONG_WEIGHTS = {
    "no head": (without("lm_head"), {}, r"lacks 1 .*random: lm_head\.weight.*\"tie_word_embeddings\": true"),
    "no layer": (without("layers.1."), {}, r"lacks 9 of its weights.*model\.layers\.\*\.input_layernorm\.weight"),
    "fewer layers in the configuration": (dict, {"num_hidden_layers": 1}, r"no place for.*lost: model\.layers\.\*"),
    "more layers in the configuration": (dict, {"num_hidden_layers": 3}, r"lacks 9 of its weights"),
    "a bias that the model has not": (
        plus("model.layers.0.self_attn.q_proj.bias", 16), {}, r"lost: model\.layers\.\*\.self_attn\.q_proj\.bias"
    ),
    "a norm that the model has not": (plus("model.layers.0.self_attn.q_norm.weight", 4), {}, r"lost: .*q_norm"),
    "a bias of the last layer": (plus("lm_head.bias", 261), {}, r"lost: lm_head\.bias"),
    "another width": (dict, {"intermediate_size": 20}, r"down_proj\.weight is \(16, 24\), expected \(16, 20\)"),
    "a wrapper": (under("module."), {}, r"under names that begin with 'module\.'"),
    "an unmerged adapter": (
        lambda weights: {name.replace("q_proj.", "q_proj.base_layer."): weight for name, weight in weights.items()},
        {},
        r"an adapter that was never merged",
    ),
    "float8": (
        lambda weights: {name: w.to(torch.float8_e4m3fn) if w.ndim > 1 else w for name, w in weights.items()},
        {},
        r"stored in F8_E4M3.*quantised",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_are_not_the_models_are_refused_by_name(case, copied):
    change, config, said = WRONG_WEIGHTS[case]
    change_weights(copied, change)
    change_config(copied, **config)
    with pytest.raises(
        ModelNotFoundError, match=f"copied: cannot load a causal language model from it: .*{said}"
    ):
        load_model(copied)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(number, copied):
    def spoil(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 2] = number
        return weights

    change_weights(copied, spoil)
    with pytest.raises(ModelNotFoundError, match=r"NaN or infinite: model\.layers\.\*\.mlp\.up_proj\.weight"):
        load_model(copied)


def test_weights_beside_the_model_are_told_of_and_what_older_versions_saved_is_not(copied):
    change_weights(copied, plus("v_head.summary.weight", 1, 16))
    change_weights(copied, plus("model.layers.0.self_attn.rotary_emb.inv_freq", 2))
    (note,) = load(WRITER, copied).notes
    assert re.search(r"not in what klimb saves: v_head\.summary\.weight \(LlamaForCausalLM", note)


def test_a_base_without_a_prefix_or_a_head_of_its_own_is_whole_where_its_embeddings_are_the_head(copied):
    expected = load_model(copied)[0].model.state_dict()
    change_weights(
        copied, lambda weights: {n.removeprefix("model."): w for n, w in without("lm_head")(weights).items()}
    )
    change_config(copied, tie_word_embeddings=True)
    model, _ = load_model(copied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(weight, expected[name]) for name, weight in model.model.state_dict().items())


def test_a_configuration_that_ties_what_the_file_has_twice_is_corrected_in_what_is_saved(copied, tmp_path):
    change_config(copied, tie_word_embeddings=True)
    policy = Policy.load(copied)
    assert policy.notes == [
        "config.json ties the last layer to the embeddings, and the file has another: that one is used"
    ]
    policy.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False


def test_shards_are_all_needed(copied):
    model = AutoModelForCausalLM.from_pretrained(copied)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="8KB")
    shards = sorted(copied.glob("model-*-of-*"))
    assert len(shards) > 2
    load_model(copied)
    shards[1].rename(copied / "away")
    with pytest.raises(ModelNotFoundError, match=rf"1 of the {len(shards)} files.*{shards[1].name}: fetch"):
        load_model(copied)
    (copied / "away").rename(shards[1])
    (copied / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"the index .*index\.json is missing"):
        load_model(copied)


BROKEN_FILES = [
    ("config.json", "", "config.json is not JSON"),
    ("config.json", "[]", "config.json: expected a JSON object, got list"),
    ("config.json", POINTER, "config.json is a Git LFS pointer.*git lfs pull"),
    ("tokenizer.json", POINTER, "tokenizer.json is a Git LFS pointer.*git lfs pull"),
    ("model.safetensors", POINTER, "model.safetensors is a Git LFS pointer.*git lfs pull"),
    ("model.safetensors", "x" * 99, r"model.safetensors is cut off or not a safetensors file \(99 bytes\)"),
    ("tokenizer.json", "{}", "its tokenizer cannot be read.*fetch"),
    ("generation_config.json", "[", "generation_config.json is not JSON"),
    (
        "generation_config.json",
        '{"eos_token_id": "x"}',
        "eos_token_id: expected the number of a token.*got 'x'",
    ),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN_FILES)
def test_files_that_are_damaged_are_named(name, content, said, copied):
    (copied / name).write_text(content)
    with pytest.raises(ModelNotFoundError, match=said):
        Policy.load(copied)


def test_a_file_that_is_cut_off_is_named_with_what_it_should_have(copied):
    file = copied / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        ModelNotFoundError, match=f"cut off: it has {size - 8:,} bytes and its header says {size:,}"
    ):
        load_model(copied)


WRONG_CONFIGS = [
    (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "in 4 bits by bitsandbytes",
    ),
    (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantised by gptq.*take the original model",
    ),
    ({"quantization_config": {"quant_method": "mxfp4"}}, r"by mxfp4.*Mxfp4Config\(dequantize=True\)"),
    ({"model_type": "nosuch"}, "its model_type 'nosuch' is unknown to transformers"),
    ({"model_type": "gone"}, "has no model_type"),
    ({"hidden_size": "wide"}, "config.json is not what transformers.*hidden_size"),
    ({"pad_token_id": 999}, "pad_token_id 999 is not below its vocab_size"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "scores or labels text and does not generate"),
    ({"model_type": "t5", "is_encoder_decoder": True}, r"encoder-decoder \(t5\)"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG_CONFIGS)
def test_configurations_of_what_klimb_does_not_train_are_refused(changes, said, copied):
    change_config(copied, **changes)
    with pytest.raises(ModelNotFoundError, match=said):
        load_model(copied)


FOLDERS = {
    "nothing": ([], "it is empty"),
    "a pipeline": (["model_index.json", "unet/config.json"], "a pipeline of diffusers"),
    "GGUF": (["a.Q4_0.gguf"], r"name one of them: .*a\.Q4_0\.gguf"),
    "a training's state": (["optimizer.pt", "trainer_state.json"], "only the state of a training run"),
    "DeepSpeed": (["zero_to_fp32.py", "latest", "global_step5/x.pt"], r"zero_to_fp32\.py \. out"),
    "FSDP": (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
    "weights alone": (["model.safetensors"], r"model\.safetensors: put the model's config\.json"),
    "Meta's": (["params.json", "consolidated.00.pth"], "convert it to Hugging Face's"),
    "several": (["checkpoint-5/config.json", "checkpoint-10/adapter_config.json"], "name one of them: .*checkpoint-10"),
    "a run's checkpoint": (["weights.safetensors", "optimiser.safetensors"], "checkpoint of a klimb run"),
    "a run": (["config.json", "metrics.jsonl", "model/config.json"], "folder of a klimb run: name its model"),
    "the hub's cache": (["snapshots/abc/config.json", "refs/main"], "the model in .*snapshots/abc"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_something_else_is_told_for_what_it_is(case, tmp_path):
    files, said = FOLDERS[case]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelNotFoundError, match=said):
        load_model(tmp_path)


def test_a_model_without_a_tokenizer_or_with_an_old_one_says_what_to_do(copied):
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelNotFoundError, match=r"it has no tokenizer: put .* beside it"):
        load_model(copied)


def test_tokens_that_the_model_has_no_embeddings_for_are_refused_by_name(copied, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|new|>"})
    tokenizer.save_pretrained(copied)
    with pytest.raises(
        ModelNotFoundError, match=rf"{rows:,} embeddings, none for eos_token <\|new\|> \({rows}\)"
    ):
        load_model(copied)


def test_a_token_that_was_merely_added_is_refused_where_a_prompt_has_it(copied, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<image>"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copied)
    policy = Policy.load(copied)
    assert len(policy.encode("hello")) == 5
    with pytest.raises(
        DataError, match=rf"has the token <image> \({rows}\), and the model has {rows} embeddings"
    ):
        policy.encode("an <image>")


def test_another_models_tokenizer_is_refused(copied):
    change_config(copied, vocab_size=100)
    change_weights(copied, lambda weights: {n: w[:100] if len(w) == 261 else w for n, w in weights.items()})
    with pytest.raises(
        ModelNotFoundError, match="256 tokens and the model 100 embeddings: it belongs to another model"
    ):
        load_model(copied)


def bert_folder(model, model_folder, folder):
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


SMALL = {
    "vocab_size": 261, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "pad_token_id": 0,
}  # fmt: skip


def test_an_encoder_cannot_write(model_folder, tmp_path):
    folder = bert_folder(BertForMaskedLM(BertConfig(**SMALL)), model_folder, tmp_path / "bert")
    with pytest.raises(ModelNotFoundError, match="reads later tokens before it writes earlier ones"):
        load_model(folder)


def test_what_a_base_lacks_above_its_backbone_is_new_told_of_and_always_the_same(model_folder, tmp_path):
    folder = bert_folder(RobertaModel(RobertaConfig(**SMALL)), model_folder, tmp_path / "roberta")
    first, second = (Scorer.from_base(folder, device="cpu") for _ in range(2))
    assert first.notes == [
        "new, drawn at random from a seed that is always the same: classifier.dense.bias, classifier.dense.weight"
    ]
    other = second.model.state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in first.model.state_dict().items())


def test_a_bases_backbone_must_be_whole(copied):
    change_weights(copied, without("layers.1."))
    with pytest.raises(ModelNotFoundError, match=r"reward .*copied: .*lacks 9 of its weights"):
        Scorer.from_base(copied)


@pytest.fixture
def reward(model_folder, tmp_path):
    """A finished reward model."""
    Scorer.from_base(model_folder, device="cpu").save(tmp_path / "reward")
    return tmp_path / "reward"


def test_a_reward_whose_head_has_another_name_is_refused_with_that_name(reward):
    change_weights(
        reward, lambda weights: {n.replace("score.", "value_head."): w for n, w in weights.items()}
    )
    with pytest.raises(
        ModelNotFoundError, match=r"random: score\.weight; the file has value_head\.weight in its place"
    ):
        Scorer.load(reward)


def test_a_reward_whose_configuration_names_no_labels_is_refused_with_the_remedy(reward):
    change_config(reward, id2label="gone", label2id="gone", num_labels="gone")
    with pytest.raises(ModelNotFoundError, match=r'head has 1 output: set "num_labels": 1 in config\.json'):
        Scorer.load(reward)


def test_a_language_model_is_no_reward(model_folder):
    with pytest.raises(ModelNotFoundError, match=r"not a finished reward model.*klimb reward train --base"):
        Scorer.load(model_folder)


def test_a_reward_whose_padding_has_no_embedding_is_refused_with_the_remedy(reward):
    tokenizer = AutoTokenizer.from_pretrained(reward)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(reward)
    with pytest.raises(
        ModelNotFoundError, match=r"none for pad_token \[PAD\] .*set pad_token in tokenizer_config"
    ):
        Scorer.load(reward)


def test_a_name_may_begin_with_the_home_folder_and_end_in_a_slash(model_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(model_folder.parent))
    assert load(WRITER, f"~/{model_folder.name}/").folder == model_folder


def test_a_panic_in_rust_is_klimbs_error_and_an_interrupt_stays_one(copied, monkeypatch):
    panic = type("PanicException", (BaseException,), {})
    for raised, expected in (
        (panic("index out of range"), KlimbError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        def load_tokenizer(*_, raised=raised, **__):
            raise raised

        monkeypatch.setattr("klimb.model.load.AutoTokenizer.from_pretrained", load_tokenizer)
        with pytest.raises(expected):
            load(SCORER, copied)


def test_a_model_in_the_hubs_cache_is_loaded_as_a_folder_is(model_folder, tmp_path, monkeypatch):
    cache = tmp_path / "models--owner--tiny"
    shutil.copytree(model_folder, cache / "snapshots/abc")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    expected = load(WRITER, model_folder)
    found = load(WRITER, "owner/tiny")
    assert found.folder == cache / "snapshots/abc"
    assert all(torch.equal(w, expected.model.state_dict()[n]) for n, w in found.model.state_dict().items())
    (cache / "snapshots/abc/model.safetensors").write_text(POINTER)
    with pytest.raises(ModelNotFoundError, match=r"owner/tiny: .*Git LFS pointer"):
        load(WRITER, "owner/tiny")


def test_a_class_that_only_a_models_own_code_has_is_not_replaced_by_one_of_transformers(reward, copied):
    own = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    change_config(reward, auto_map=own, architectures=["LlamaForRewardModelWithGating"])
    with pytest.raises(
        ModelNotFoundError, match=r"a LlamaForRewardModelWithGating.*own.*--trust-remote-code"
    ):
        Scorer.load(reward)
    change_config(copied, auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})
    assert load_model(copied)[0].num_parameters()  # a class that transformers has by now needs no code


def test_a_process_reward_model_is_named_for_what_it_is(reward):
    change_config(reward, architectures=["LlamaForTokenClassification"])
    with pytest.raises(ModelNotFoundError, match="LlamaForTokenClassification, which labels tokens"):
        Scorer.load(reward)


def test_nothing_is_said_of_weights_that_a_pattern_for_older_ones_fits(make_model, tokenizer, tmp_path):
    make_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load(WRITER, tmp_path).notes == []


def test_a_kind_that_transformers_has_not_for_a_type_is_said_in_words(tokenizer, tmp_path):
    MambaForCausalLM(
        MambaConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, state_size=2)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ModelNotFoundError, match=r"transformers \S+ has none of the type 'mamba': choose another model$"
    ):
        Scorer.from_base(tmp_path)


def test_a_hub_that_cannot_be_reached_is_named_without_its_clients_traceback(monkeypatch):
    def fail(_):
        raise OSError("ConnectError: [Errno -2] Name or service not known")

    monkeypatch.setattr("klimb.model.load.fetch", fail)
    with pytest.raises(
        ModelNotFoundError, match=r"hub cannot be reached: check the network, or give the folder"
    ) as raised:
        load(WRITER, "someone/model")
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
