"""Adapters as people bring them: merged into the weights, to the logits that peft gives beside them, or refused."""

import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from klimb.errors import ConfigError, ModelNotFoundError
from klimb.model.load import SCORER, WRITER, config_place, load
from klimb.model.trainable import Lora
from klimb.policy.policy import Policy
from klimb.reward.scorer import Scorer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # by peft's use of it
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
IDS = torch.tensor([[5, 6, 7, 8]])
TARGETS = ["q_proj", "v_proj"]


def lora(**options):
    return LoraConfig(**{"r": 2, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **options})


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def make_adapter(folder, base, config, *, loader=AutoModelForCausalLM, named=None, **options):
    """Save an adapter with weights of its own, and return the logits that it gives on its base."""
    model = get_peft_model(loader.from_pretrained(base, **options), config)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.requires_grad and "ia3" not in name:
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    expected = logits(model.eval())
    model.save_pretrained(folder)
    change_config(folder, base_model_name_or_path=str(base) if named is None else named)
    return expected


def change_config(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


MERGED = {
    "plain": lora(),
    "every linear layer": lora(target_modules="all-linear"),
    "rank-stabilised": lora(use_rslora=True),
    "DoRA": lora(use_dora=True),
    "ranks of their own": lora(rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 3}),
    "embeddings": lora(target_modules=["embed_tokens", "q_proj"]),
    "a head saved whole": lora(modules_to_save=["lm_head"]),
    "one layer": lora(layers_to_transform=[1]),
    "VeRA": VeraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", r=4),
    "IA3": IA3Config(target_modules=TARGETS, feedforward_modules=[], task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("case", MERGED)
def test_a_merged_adapter_gives_the_logits_that_it_gave_beside_its_model(case, model_folder, tmp_path):
    expected = make_adapter(tmp_path / "adapter", model_folder, MERGED[case])
    loaded = load(WRITER, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-5)
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert all(weight.requires_grad for weight in loaded.model.parameters())
    (note,) = loaded.notes
    assert "is merged into its weights" in note
    if case != "IA3":
        plain, _ = (load(WRITER, model_folder).model, None)
        assert not torch.allclose(logits(plain), expected, atol=1e-2)


def test_an_adapter_beside_its_model_is_merged_and_trained_on_in_every_way(model_folder, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(model_folder, folder)
    expected = make_adapter(folder, model_folder, lora(), named=str(folder))
    for way in ({}, {"num_trainable_layers": 1}, {"lora": Lora(2)}):
        policy = Policy.load(folder, device="cpu", **way)
        torch.testing.assert_close(logits(policy.model), expected, rtol=1e-4, atol=1e-5)
        policy.save(tmp_path / "saved")
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(logits(saved), expected, rtol=1e-4, atol=1e-5)
        assert not (tmp_path / "saved/adapter_config.json").exists()
        shutil.rmtree(tmp_path / "saved")


def test_what_is_trained_on_a_merged_adapter_is_saved(model_folder, tmp_path):
    make_adapter(tmp_path / "adapter", model_folder, lora())
    policy = Policy.load(tmp_path / "adapter", num_trainable_layers=1, device="cpu")
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.add_(0.1)
    policy.save(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(saved), logits(policy.model))


def test_a_whole_model_beside_another_models_adapter_is_refused(model_folder, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(model_folder, folder)
    make_adapter(folder, model_folder, lora())
    with pytest.raises(
        ModelNotFoundError, match=r"a whole model and an adapter.*remove adapter_config\.json if it has"
    ):
        load(WRITER, folder)


@pytest.mark.parametrize("named", ["basis", "../basis", "{base}"])
def test_the_model_of_an_adapter_is_found_by_path_from_where_it_lies(named, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "basis")
    named = named.format(base=tmp_path / "basis")
    expected = make_adapter(tmp_path / "adapter", model_folder, lora(), named=named)
    torch.testing.assert_close(
        logits(load(WRITER, tmp_path / "adapter").model), expected, rtol=1e-4, atol=1e-5
    )
    assert config_place(tmp_path / "adapter").endswith("basis")


def test_embeddings_that_grew_with_the_adapter_grow_with_it_again(model_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    base.resize_token_embeddings(270, mean_resizing=False)
    base.save_pretrained(tmp_path / "wide")
    config = lora(modules_to_save=["embed_tokens", "lm_head"])
    expected = make_adapter(tmp_path / "adapter", tmp_path / "wide", config, named=str(model_folder))
    model = load(WRITER, tmp_path / "adapter").model
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert model.config.vocab_size == 270


TIED = {
    "the head": lora(target_modules=["q_proj", "lm_head"]),
    "the embeddings": lora(target_modules=["q_proj", "embed_tokens"]),
    "both": lora(target_modules=["embed_tokens", "lm_head"]),
    "neither": lora(),
}


@pytest.mark.parametrize("case", TIED)
def test_an_adapter_of_one_of_two_layers_that_share_their_weights_leaves_the_other(
    case, model_folder, tmp_path
):
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    base.lm_head.weight, base.config.tie_word_embeddings = base.model.embed_tokens.weight, True
    base.save_pretrained(tmp_path / "tied")
    shutil.copy(model_folder / "tokenizer.json", tmp_path / "tied")
    shutil.copy(model_folder / "tokenizer_config.json", tmp_path / "tied")
    expected = make_adapter(tmp_path / "adapter", tmp_path / "tied", TIED[case])
    model = load(WRITER, tmp_path / "adapter").model
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(saved), expected, rtol=1e-4, atol=1e-5)
    assert saved.config.tie_word_embeddings == (case == "neither")


def test_embeddings_that_peft_wrote_twice_because_they_grew_are_read(model_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    base.resize_token_embeddings(270, mean_resizing=False)
    model = get_peft_model(base, lora(modules_to_save=["embed_tokens", "lm_head"]))
    model.base_model.model.lm_head.modules_to_save["default"].weight.data *= 2
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    change_config(tmp_path / "adapter", base_model_name_or_path=str(model_folder))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.lm_head.modules_to_save.weight" in stored
    found = load(WRITER, tmp_path / "adapter").model
    torch.testing.assert_close(logits(found), logits(model.eval()), rtol=1e-4, atol=1e-5)


REFUSED = {
    "no model": ({"base_model_name_or_path": None}, "does not name its base model; name the model"),
    "a model that is not there": (
        {"base_model_name_or_path": "/nowhere/m"},
        "adapter of /nowhere/m, and there is no such",
    ),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "began with init_lora_weights 'pissa_niter_4'"),
    "an activated LoRA": ({"alora_invocation_tokens": [5]}, "an activated LoRA"),
    "a setting of a newer peft": ({"new_knob": 3, "idle": None}, r"does not know .*\(new_knob=3\)"),
    "a kind of a newer peft": ({"peft_type": "NEWLORA"}, "of the kind NEWLORA, which peft .* does not know"),
    "no kind": ({"peft_type": None}, "has no peft_type"),
    "another rank": ({"r": 4}, "does not fit: .*size mismatch"),
    "fewer layers": ({"target_modules": ["q_proj"]}, "no place for 4 of its weights"),
    "more layers": ({"target_modules": [*TARGETS, "k_proj"]}, "its file lacks 4 of the weights"),
    "a reward": ({"task_type": "SEQ_CLS"}, "trained for SEQ_CLS, such as a reward"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_cannot_be_merged_is_refused_by_name(case, model_folder, tmp_path):
    changes, said = REFUSED[case]
    make_adapter(tmp_path / "adapter", model_folder, lora())
    change_config(tmp_path / "adapter", **changes)
    with pytest.raises(
        ModelNotFoundError, match=f"adapter: cannot load a causal language model from it: .*{said}"
    ):
        load(WRITER, tmp_path / "adapter")


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=16, num_attention_heads=4, num_layers=2
        ),
    ],
)
def test_tuned_prompts_are_refused_by_name(config, model_folder, tmp_path):
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(tmp_path)
    with pytest.raises(
        ModelNotFoundError, match=f"of the kind {config.peft_type.value}, which adds to what is read"
    ):
        load(WRITER, tmp_path)


def test_adapters_in_folders_of_their_own_below_are_named(model_folder, tmp_path):
    for name in ("one", "two"):
        make_adapter(tmp_path / name, model_folder, lora())
    with pytest.raises(
        ModelNotFoundError, match=rf"name one of them: {tmp_path / 'one'}, {tmp_path / 'two'}"
    ):
        load(WRITER, tmp_path)


def test_an_adapter_without_its_weights_or_with_pickled_ones_says_so(model_folder, tmp_path):
    make_adapter(tmp_path, model_folder, lora())
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no adapter_model\.safetensors: fetch"):
        load(WRITER, tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=r"its adapter's weights are pickled \(adapter_model\.bin\)"):
        load(WRITER, tmp_path)


def make_reward_adapter(folder, base):
    return make_adapter(
        folder, base, lora(task_type="SEQ_CLS"), loader=AutoModelForSequenceClassification, num_labels=1
    )


def test_an_adapter_of_a_reward_brings_its_head(model_folder, tmp_path):
    expected = make_reward_adapter(tmp_path / "adapter", model_folder)
    scorer = Scorer.load(tmp_path / "adapter", device="cpu")
    assert scorer.model.config.num_labels == 1
    torch.testing.assert_close(logits(scorer.model), expected, rtol=1e-4, atol=1e-5)
    scorer.save(tmp_path / "saved")
    again = Scorer.load(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(logits(again.model), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_a_reward_that_lost_its_head_is_refused(model_folder, tmp_path):
    make_reward_adapter(tmp_path, model_folder)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if "score" not in name}, file)
    with pytest.raises(ModelNotFoundError, match=r"reward .*does not fit: .*score"):
        Scorer.load(tmp_path)
    change_config(tmp_path, modules_to_save=None)
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 of its weights.*score\.weight"):
        Scorer.load(tmp_path)


def test_a_writers_adapter_is_a_base_for_a_reward(model_folder, tmp_path):
    make_adapter(tmp_path / "adapter", model_folder, lora(modules_to_save=["lm_head"]))
    inner = Scorer.from_base(tmp_path / "adapter", device="cpu").model.model.state_dict()
    merged = load(WRITER, tmp_path / "adapter").model.model.state_dict()
    for name, weight in merged.items():
        torch.testing.assert_close(inner[name], weight)


def test_merging_leaves_the_global_generator_alone(model_folder, tmp_path):
    make_adapter(tmp_path, model_folder, lora())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load(WRITER, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_device_that_is_not_there_is_still_an_option_refused(model_folder, tmp_path):
    make_adapter(tmp_path, model_folder, lora())
    with pytest.raises(ConfigError, match="device: cannot use 'cuda:7'"):
        load(SCORER, tmp_path, device="cuda:7", has_new_head=True)
