"""Loading, the reference, adapters, the chat template, and saving."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from klimb import KlimbError
from klimb.model.trainable import Lora
from klimb.policy.policy import Policy, SampleKey


def sample(policy, texts=("hello", "a b c"), max_new_tokens=6):
    prompts = [policy.encode(text) for text in texts]
    return policy.sample(
        prompts, 3, max_new_tokens=max_new_tokens, key=SampleKey(0, 0, list(range(len(prompts))))
    )


def move(policy, amount=0.05):
    with torch.no_grad():
        for parameter in policy.trainable().values():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(amount * noise.to(parameter.device))
    policy.num_updates += 1


CHOICES = {
    "all weights": {},
    "last layer": {"num_trainable_layers": 1},
    "adapter": {"lora": Lora(rank=2, alpha=4.0)},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_at_the_start_policy_and_reference_agree_to_the_bit(choice, model_folder):
    policy = Policy.load(model_folder, **CHOICES[choice])
    completions = sample(policy)
    assert torch.equal(policy.ref_log_probs(completions), completions.token_log_probs)
    # The pass through the reference, too, which later steps take.
    scores = policy.log_probs(completions).detach()
    assert torch.equal(policy.reference.log_probs(completions), scores)
    torch.testing.assert_close(scores, completions.token_log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_reference_stays_where_the_policy_began(choice, model_folder):
    policy = Policy.load(model_folder, **CHOICES[choice])
    completions = sample(policy)
    before = policy.reference.log_probs(completions)
    move(policy)
    assert torch.equal(policy.ref_log_probs(completions), before)
    moved = policy.log_probs(completions).detach()
    assert (moved - before).abs().max() > 1e-3


def test_only_the_last_layers_are_trained(model_folder):
    policy = Policy.load(model_folder, num_trainable_layers=1)
    assert policy.trainable()
    assert all(name.startswith("model.layers.1.") for name in policy.trainable())


def test_the_reference_shares_what_is_frozen(model_folder):
    policy = Policy.load(model_folder, num_trainable_layers=1)
    reference = policy.reference._model
    assert reference.model.embed_tokens.weight is policy.model.model.embed_tokens.weight
    assert reference.model.layers[1].mlp.up_proj.weight is not policy.model.model.layers[1].mlp.up_proj.weight
    assert not any(p.requires_grad for p in reference.parameters())


def test_more_layers_than_there_are_is_refused(model_folder):
    with pytest.raises(KlimbError, match="num_trainable_layers: expected 1 to 2"):
        Policy.load(model_folder, num_trainable_layers=3)


def test_an_adapter_and_last_layers_exclude_each_other(model_folder):
    with pytest.raises(KlimbError, match="exclude each other"):
        Policy.load(model_folder, num_trainable_layers=1, lora=Lora())


def test_an_adapter_depends_on_its_seed_and_leaves_the_global_generator_alone(model_folder):
    state = torch.random.get_rng_state()
    first, again, other = (Policy.load(model_folder, lora=Lora(2), lora_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in first.trainable().items():
        assert torch.equal(value, again.trainable()[name])
    assert any(not torch.equal(value, other.trainable()[name]) for name, value in first.trainable().items())


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_saved_opens_in_transformers_and_predicts_the_same(choice, model_folder, tmp_path):
    policy = Policy.load(model_folder, **CHOICES[choice])
    move(policy)
    completions = sample(policy)
    policy.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert isinstance(plain, LlamaForCausalLM)
    saved = Policy(plain.to(policy.model.device), AutoTokenizer.from_pretrained(tmp_path / "model"))
    assert saved.end_ids == policy.end_ids
    torch.testing.assert_close(
        saved.log_probs(completions).sum(dim=1), policy.log_probs(completions).sum(dim=1), rtol=0, atol=1e-4
    )


def test_plain_text_is_taken_as_it_is(model_folder):
    policy = Policy.load(model_folder)
    assert policy.tokenizer.decode(policy.encode("héllo")) == "héllo"


def test_messages_go_through_the_chat_template(model_folder):
    policy = Policy.load(model_folder)
    ids = policy.encode([{"role": "user", "content": "hi"}])
    assert policy.tokenizer.decode(ids) == "<|user|>hi<|end|><|assistant|>"


def test_an_assistants_last_message_is_continued(model_folder):
    policy = Policy.load(model_folder)
    ids = policy.encode([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}])
    assert policy.tokenizer.decode(ids) == "<|user|>hi<|end|><|assistant|>well"


def test_messages_without_a_chat_template_are_refused(model_folder):
    policy = Policy.load(model_folder)
    policy.tokenizer.chat_template = None
    with pytest.raises(KlimbError, match="no chat template"):
        policy.encode([{"role": "user", "content": "hi"}])


def test_texts_are_decoded_up_to_the_end_and_without_end_tokens(model_folder):
    policy = Policy.load(model_folder)
    completions = sample(policy, max_new_tokens=50)
    assert "end" in completions.finish_reasons
    for text, ids, length in zip(
        policy.decode(completions), completions.ids.tolist(), completions.lengths.tolist(), strict=True
    ):
        assert "<|" not in text
        assert text == policy.tokenizer.decode(ids[:length], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", r"\./nowhere: no such folder or file"),
        ("nowhere", "nowhere: no such folder or file; give a model folder, a .gguf file, or a hub name"),
        ("model.gguf", r"model\.gguf: no such folder or file"),
        ("nobody/nothing", "nobody/nothing: cannot load a causal language model"),
    ],
)
def test_a_missing_model_says_what_would_be_one(source, message):
    with pytest.raises(FileNotFoundError, match=message) as caught:
        Policy.load(source)
    assert isinstance(caught.value, KlimbError)


def test_a_path_below_a_folder_that_is_here_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "learned" / "first").mkdir(parents=True)
    (tmp_path / "learned" / "first" / "reward.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="learned/second: no such folder; learned has first"):
        Policy.load("learned/second")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty/model: no such folder; empty has no folders"):
        Policy.load("empty/model")
    # Beside a model that was downloaded, a name may be another one of the same owner.
    (tmp_path / "owner" / "small").mkdir(parents=True)
    (tmp_path / "owner" / "small" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="owner/large: cannot load a causal language model"):
        Policy.load("owner/large")


def test_a_folder_without_a_model_and_a_file_of_another_kind_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Policy.load(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="got another kind of file"):
        Policy.load(tmp_path / "model.bin")


def test_weights_that_are_cut_off_and_devices_that_are_not_there_are_refused(model_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match="broken: cannot load a causal language model"):
        Policy.load(broken)
    for device in ("nonsense", "cuda:7"):
        with pytest.raises(KlimbError, match=f"device: cannot use '{device}'"):
            Policy.load(model_folder, device=device)


def test_pickled_weights_are_never_read(model_folder, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(model_folder, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="cannot load a causal language model"):
        Policy.load(pickled)


def test_a_broken_gguf_file_is_refused_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(FileNotFoundError, match=r"broken\.gguf: cannot be read as a GGUF model"):
        Policy.load(file)
    assert not list(tmp_path.glob("cache/**/*"))
