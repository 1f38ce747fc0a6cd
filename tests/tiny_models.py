"""Tiny models and tokenizers made on the spot."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """One token a byte, two end tokens, and a chat template."""
    vocab = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        additional_special_tokens=["<|stop|>", "<|user|>", "<|assistant|>", "<|system|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


SHAPE = {
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_dropout": 0.3,
}
WINDOW = 5  # tokens: the tests' prompts and completions are longer


def _gpt2(*, hidden_size, num_hidden_layers, vocab_size, max_position_embeddings, **special):
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=hidden_size,
            n_layer=num_hidden_layers,
            n_head=4,
            vocab_size=vocab_size,
            n_positions=max_position_embeddings,
            resid_pdrop=0.3,
            embd_pdrop=0.3,
            attn_pdrop=0.3,
            **special,
        )
    )


def _bloom(*, hidden_size, num_hidden_layers, vocab_size, max_position_embeddings, **special):  # noqa: ARG001  it has no limit
    return BloomForCausalLM(
        BloomConfig(
            hidden_size=hidden_size, n_layer=num_hidden_layers, n_head=4, vocab_size=vocab_size, **special
        )
    )


FAMILIES = {
    "llama": lambda **sizes: LlamaForCausalLM(LlamaConfig(**sizes, **SHAPE)),
    "qwen2": lambda **sizes: Qwen2ForCausalLM(Qwen2Config(**sizes, **SHAPE)),
    "qwen3": lambda **sizes: Qwen3ForCausalLM(Qwen3Config(**sizes, **SHAPE, head_dim=8)),
    "mistral": lambda **sizes: MistralForCausalLM(MistralConfig(**sizes, **SHAPE, sliding_window=WINDOW)),
    "gemma": lambda **sizes: GemmaForCausalLM(GemmaConfig(**sizes, **SHAPE, head_dim=8)),
    "gemma2": lambda **sizes: Gemma2ForCausalLM(
        Gemma2Config(**sizes, **SHAPE, head_dim=8, sliding_window=WINDOW, attn_implementation="eager")
    ),
    "phi": lambda **sizes: PhiForCausalLM(PhiConfig(**sizes, **SHAPE)),
    "phi3": lambda **sizes: Phi3ForCausalLM(Phi3Config(**sizes, **SHAPE)),
    "gpt2": _gpt2,
    "bloom": _bloom,
}


@pytest.fixture(scope="session")
def make_model():
    """Build a tiny random model of a family; its configuration has dropout."""

    def make(family="llama", *, vocab_size=261, num_layers=2, dtype=torch.float32, seed=0, spread=0.4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FAMILIES[family](
                hidden_size=16,
                num_hidden_layers=num_layers,
                vocab_size=vocab_size,
                max_position_embeddings=64,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
            for parameter in model.parameters():
                if parameter.ndim > 1:  # wide enough that predictions differ from token to token
                    torch.nn.init.normal_(parameter, std=spread)
        return model.to(dtype)

    return make


@pytest.fixture(scope="session")
def bare_tokenizer():
    """What a policy needs of a tokenizer where no text is involved: token 0 ends."""
    return SimpleNamespace(eos_token_id=0)


class LetterTokenizer:
    """Each letter a to j is a token; a ends."""

    eos_token_id = 0
    all_special_ids = (0,)
    chat_template = None

    def __call__(self, text, add_special_tokens=True):  # noqa: ARG002  it has none to add
        return type("Encoded", (), {"input_ids": [ord(letter) - ord("a") for letter in text]})

    def batch_decode(self, rows, **_):
        return ["".join(chr(ord("a") + token) for token in row) for row in rows]

    def convert_ids_to_tokens(self, ids):
        return [chr(ord("a") + token) for token in ids]


@pytest.fixture(scope="session")
def letter_tokenizer():
    """One token a letter, for texts as short as their test."""
    return LetterTokenizer()


@pytest.fixture(scope="session")
def model_folder(make_model, tokenizer, tmp_path_factory):
    """A tiny Llama, saved as Hugging Face does, that names both end tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model = make_model("llama", vocab_size=len(tokenizer), spread=0.1)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|end|>", "<|stop|>"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
