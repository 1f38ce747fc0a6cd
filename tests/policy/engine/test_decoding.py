"""Texts of completions: with the spaces that continue a prompt, without the tokens that are no text."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from klimb.model import chat
from klimb.policy.engine.decoding import TextDecoder
from templates import CHATML, DEEPSEEK_R1, LLAMA_2, byte_tokenizer

USER = {"role": "user", "content": "the movie"}
_WORDS = ["▁the", "▁movie", "▁was", "▁dull", "ly", "▁", "▁a", "[INST]", "▁[INST]", "[/INST]", "▁[/INST]"]


def sentencepiece(scheme, template=None):
    """Llama 2, TinyLlama and Mistral v0.1 in small: a decoder that strips one space on the left.

    `always` puts a space before every piece of text, also after a special token, as the old ones do; `first` before the
    text alone.
    """
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)] + [(word, -1.0) for word in _WORDS]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    if scheme == "always":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def ids_of(tokenizer, *tokens):
    return tokenizer.convert_tokens_to_ids(list(tokens))


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["▁dull"], " dull"),
        (["ly"], "ly"),
        (["▁dull", "ly", "</s>"], " dullly"),
        (["▁", "▁dull"], "  dull"),
        ([], ""),
    ],
)
def test_a_text_continues_its_prompt_with_the_space_that_it_begins_with(scheme, tokens, text):
    tokenizer = sentencepiece(scheme)
    prompt = tokenizer("the movie was", add_special_tokens=False).input_ids
    assert TextDecoder(tokenizer)([ids_of(tokenizer, *tokens)], [prompt]) == [text]


def test_prompt_and_text_are_what_both_together_decode_to():
    for tokenizer in (sentencepiece("always"), sentencepiece("first"), byte_tokenizer()):
        whole = tokenizer("the movie was dull the movie — naïve 🙂", add_special_tokens=False).input_ids
        for cut in range(1, len(whole)):
            (text,) = TextDecoder(tokenizer)([whole[cut:]], [whole[:cut]])
            before = tokenizer.decode(whole[:cut])
            if not before.endswith("\ufffd"):  # a prompt of text ends with a whole character
                assert before + text == tokenizer.decode(whole)


def test_bytes_that_are_no_character_leave_the_prompt_alone():
    tokenizer = sentencepiece("first")
    prompt = tokenizer("the €", add_special_tokens=False).input_ids
    stray = ids_of(tokenizer, "<0x80>", "▁dull")
    (text,) = TextDecoder(tokenizer)([stray], [prompt])
    assert text == "\ufffd dull"


def test_an_answer_does_not_begin_with_the_space_that_the_template_writes():
    tokenizer = sentencepiece("always", LLAMA_2)
    prompt = chat.encode(tokenizer, [USER])
    decode = TextDecoder(tokenizer)
    rows = [ids_of(tokenizer, "▁dull", "</s>")]
    assert decode(rows, [prompt], [[USER]]) == ["dull"]
    continued = [USER, {"role": "assistant", "content": "the movie"}]
    assert decode(rows, [chat.encode(tokenizer, continued)], [continued]) == [" dull"]


@pytest.mark.parametrize(("scheme", "text"), [("always", "dull"), ("first", " dull")])
def test_after_a_special_token_a_space_counts_where_the_tokenizer_writes_none(scheme, text):
    tokenizer = sentencepiece(scheme)
    # "</s>dull" is "</s>", "▁dull" to the one and "</s>", "dull" to the other.
    assert TextDecoder(tokenizer)([ids_of(tokenizer, "▁dull")], [ids_of(tokenizer, "▁was", "</s>")]) == [text]


def test_special_tokens_that_are_about_the_content_stay():
    tokenizer = byte_tokenizer(
        CHATML, extra=["<think>", "</think>", "<tool_call>", "</tool_call>", "[CALLS]"]
    )
    row = tokenizer("<think>hm</think>[CALLS]<tool_call>f</tool_call><|im_start|><s><|im_end|>").input_ids
    assert TextDecoder(tokenizer)([row], [[1]]) == ["<think>hm</think>[CALLS]<tool_call>f</tool_call>"]
    everything = TextDecoder(tokenizer, "all")
    assert everything([row], [[1]]) == ["hmf"]
    assert sorted(everything.tags.values()) == ["</think>", "</tool_call>", "<think>", "<tool_call>"]


def test_tags_that_a_template_writes_itself_stay_too():
    tokenizer = byte_tokenizer(DEEPSEEK_R1, extra=["<think>", "</think>"])
    row = tokenizer("hm</think>yes<think></s>").input_ids
    assert TextDecoder(tokenizer)([row], [[1]]) == ["hm</think>yes<think>"]


def test_tokens_that_end_a_completion_are_no_text_and_others_without_a_template_are():
    tokenizer = byte_tokenizer()
    row = tokenizer("a<|user|>b<|end|>").input_ids
    ends = ids_of(tokenizer, "<|end|>")
    assert TextDecoder(tokenizer, end_ids=ends)([row], [[1]]) == ["a<|user|>b"]


def test_spaces_before_punctuation_stay():
    tokenizer = byte_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    row = tokenizer(" was n't , so ?").input_ids
    assert TextDecoder(tokenizer)([row], [tokenizer("it").input_ids]) == [" was n't , so ?"]
