"""A tiny language model, prompts and a reward, made on the spot: for trying a run many times, or for long."""

import json
from pathlib import Path

_REWARD = '''"""A reward that likes vowels, and a judge that likes the letter e, once."""

def vowels(completions, **_):
    return [sum(c.count(vowel) for vowel in "aeiou") + 0.1 * len(c) for c in completions]

def one_e(completions, **_):
    return [-((c.count("e") - 1) ** 2) for c in completions]
'''
_NUM_PROMPTS = 8


def make_model(folder: Path) -> None:
    """Write a Llama of 40,000 weights that reads bytes, as Hugging Face does."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from klimb.model.progress_bars import without_progress_bars

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")  # noqa: S106  not a secret
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=len(tokenizer),
                max_position_embeddings=128,
                bos_token_id=None,
                eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"),  # pyright: ignore[reportArgumentType]
                pad_token_id=None,
            )
        )
        for parameter in model.parameters():
            if parameter.ndim > 1:  # wide enough that predictions differ from token to token
                torch.nn.init.normal_(parameter, std=0.2)
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_data(folder: Path) -> tuple[Path, Path]:
    """Write prompts and a file of rewards, and return where they are."""
    prompts, rules = folder / "prompts.jsonl", folder / "rules.py"
    rows = [{"prompt": f"{number} things of which"} for number in range(_NUM_PROMPTS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules.write_text(_REWARD)
    return prompts, rules
