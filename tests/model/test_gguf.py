"""A GGUF file is converted once, to the model that was written into it."""

import gguf
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from klimb.model.gguf import convert_gguf
from klimb.model.load import load_model

HEADS, KEY_VALUE_HEADS, LAYERS = 4, 2, 2


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=259,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=KEY_VALUE_HEADS,
                max_position_embeddings=64,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                bos_token_id=257,
                eos_token_id=258,
                tie_word_embeddings=False,
            )
        ).eval()


def interleave(weight, num_heads):
    """GGUF keeps the two halves of each head's rotary dimensions interleaved."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model, file):
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), "He", "<s>", "</s>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["H e"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    writer.add_tensor("output.weight", weights["lm_head.weight"])
    for layer in range(LAYERS):
        for ours, theirs in names.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            if ours.endswith("q_proj"):
                weight = interleave(weight, HEADS)
            elif ours.endswith("k_proj"):
                weight = interleave(weight, KEY_VALUE_HEADS)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_converted_model_predicts_what_the_original_does_and_is_cached(model, tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    write_gguf(model, file)

    converted, tokenizer = load_model(file, device="cpu")

    ids = torch.tensor([tokenizer("Hello, world").input_ids])
    torch.testing.assert_close(converted(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "Hello, world"

    folder = convert_gguf(file)
    assert folder.is_relative_to(tmp_path / "cache")
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert convert_gguf(file) == folder
    assert weights.stat().st_mtime_ns == written
