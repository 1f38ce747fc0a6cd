"""Stop strings: found across tokens and bytes, cut from texts, and never in the prompt."""

import pytest
import torch

from klimb import KlimbError
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.decoding import TextDecoder
from klimb.policy.engine.sampling import DecodeOptions, DecodeState
from klimb.policy.engine.stopping import StopRules, StopStrings
from klimb.policy.policy import Policy, SampleKey
from templates import CHATML, byte_tokenizer


def decode(tokenizer, strings, tokens, *, prompt="a prompt", min_new_tokens=0, limit=None):
    """Let a completion take given tokens, and return what was taken, why it ended, and its text."""
    context = tokenizer(prompt, add_special_tokens=False).input_ids
    decoder = TextDecoder(tokenizer, end_ids=[tokenizer.eos_token_id])
    stops = StopStrings(strings, decoder, tokenizer)
    state = DecodeState(
        torch.zeros(1, limit or len(tokens), dtype=torch.float64),
        [tokenizer.eos_token_id],
        DecodeOptions(min_new_tokens, stops),
        [context],
    )
    for token in tokens:
        logits = torch.full((1, len(tokenizer)), -100.0)
        logits[0, token] = 100.0
        state.draw(logits, SamplingDistribution())
        if state.is_done:
            break
    completions = state.completions([context], torch.tensor([0]))
    (ids,), (reason,) = completions.rows_of_ids(), completions.finish_reasons
    (text,) = stops.cut([ids], [context]) if reason == "stop" else decoder([ids], [context])
    return len(ids), reason, text


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single bytes."""
    return byte_tokenizer()


@pytest.mark.parametrize(
    ("strings", "text", "taken", "left"),
    [
        (["###"], "one ### two", 7, "one "),
        (["\n\n"], "a\n\nb", 3, "a"),
        (["User:", "###"], "hi User: x ###", 8, "hi "),
        (
            ["ab", "b"],
            "xab",
            3,
            "x",
        ),  # both are completed by the same token: the one that begins first counts
        (["é"], "caféine", 5, "caf"),  # two bytes, two tokens
        (["。"], "好。又", 6, "好"),
        (["🙂"], "a🙂b", 5, "a"),
        (["naïve 🙂"], "so naïve 🙂!", 14, "so "),
        (["aa"], "baaa", 3, "b"),
        (["x"], "x", 1, ""),
    ],
)
def test_a_stop_string_ends_a_completion_and_its_text_ends_before(strings, text, taken, left, letters):
    tokens = ids_of(letters, text)
    assert decode(letters, strings, tokens) == (taken, "stop", left)


def test_a_stop_string_that_begins_in_the_prompt_does_not_count(letters):
    assert decode(letters, ["User:"], ids_of(letters, ": hello"), prompt="User") == (7, "length", ": hello")
    assert decode(letters, ["###"], ids_of(letters, "# b"), prompt="##") == (3, "length", "# b")


def test_a_stop_string_at_the_limit_is_a_stop_and_half_of_one_is_text(letters):
    tokens = ids_of(letters, "ab###")
    assert decode(letters, ["###"], tokens, limit=5) == (5, "stop", "ab")
    assert decode(letters, ["###"], tokens, limit=4) == (4, "length", "ab##")


def test_the_end_token_is_an_end_although_a_stop_string_is_sought(letters):
    tokens = [*ids_of(letters, "ab"), letters.eos_token_id]
    assert decode(letters, ["###"], tokens) == (3, "end", "ab")


def test_a_string_before_the_shortest_length_is_text_and_the_next_one_counts(letters):
    tokens = ids_of(letters, "a#b#c")
    assert decode(letters, ["#"], tokens, min_new_tokens=3) == (4, "stop", "a#b")
    assert decode(letters, ["#"], tokens, min_new_tokens=2) == (2, "stop", "a")
    assert decode(letters, ["#"], tokens, min_new_tokens=5) == (5, "length", "a#b#c")


def test_text_after_the_string_in_its_last_token_is_cut():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["#x", "ab#"])
    tokens = tokenizer.convert_tokens_to_ids(["ab#", "#x"])
    assert decode(tokenizer, ["##"], tokens) == (2, "stop", "ab")


def test_a_special_token_that_is_no_text_is_sought_as_a_token():
    tokenizer = byte_tokenizer(CHATML)
    name = "<|im_start|>"
    special = tokenizer.convert_tokens_to_ids(name)
    decoder = TextDecoder(tokenizer, end_ids=[tokenizer.eos_token_id])
    assert special in decoder.left_out
    tokens = [*ids_of(tokenizer, "ab"), special, *ids_of(tokenizer, "c")]
    assert decode(tokenizer, [name], tokens) == (3, "stop", "ab")
    assert decode(tokenizer, ["bc"], tokens) == (4, "stop", "a")  # text goes on across tokens that are none


def test_a_string_much_longer_than_what_is_decoded_at_a_time_is_found(letters):
    long = "x" * 300 + "y"
    assert decode(letters, [long], ids_of(letters, "ab" + long + "c")) == (303, "stop", "ab")


def test_empty_strings_and_negative_lengths_are_refused():
    with pytest.raises(KlimbError, match="stop: expected texts of at least one character"):
        StopRules(strings=("a", ""))
    with pytest.raises(KlimbError, match="min_new_tokens: expected at least 0, got -1"):
        StopRules(min_new_tokens=-1)


@pytest.fixture
def policy(model_folder):
    return Policy.load(model_folder)


def draw(policy, micro_batch_size=None):
    policy.micro_batch_size = micro_batch_size
    prompts = [policy.encode(text) for text in ("hello", "a b c")]
    return policy.sample(prompts, 4, max_new_tokens=12, key=SampleKey(0, 0, [0, 1]))


def test_completions_are_those_without_stop_strings_up_to_the_first(policy):
    free = draw(policy)
    texts = policy.decode(free)
    letter = max("abcdefghijklmnopqrstuvwxyz", key=lambda each: sum(each in text for text in texts))
    policy.stop_rules = StopRules(strings=(letter,))
    stopped = draw(policy)
    assert stopped.finish_reasons.count("stop") == sum(letter in text for text in texts) > 0
    assert policy.decode(stopped) == [text.partition(letter)[0] for text in texts]
    for row, length in enumerate(stopped.lengths.tolist()):
        assert torch.equal(stopped.ids[row, :length], free.ids[row, :length])
    torch.testing.assert_close(policy.log_probs(stopped).detach(), stopped.token_log_probs, rtol=0, atol=1e-5)
    split = draw(policy, 3)
    assert split.finish_reasons == stopped.finish_reasons
    assert torch.equal(split.ids[split.mask], stopped.ids[stopped.mask])


def test_the_plain_way_stops_at_the_same_tokens(policy):
    letter = max(
        "abcdefghijklmnopqrstuvwxyz",
        key=lambda each: sum(each in text for text in policy.decode(draw(policy))),
    )
    policy.stop_rules = StopRules(strings=(letter, "zz"))
    shared = draw(policy)
    policy.way = type(policy.way)(False)
    plainly = draw(policy)
    assert plainly.finish_reasons == shared.finish_reasons
    assert torch.equal(plainly.lengths, shared.lengths)
    assert torch.equal(plainly.ids[plainly.mask], shared.ids[shared.mask])


def test_generated_texts_end_before_the_stop(policy):
    (text,) = policy.generate("hello", 1, max_new_tokens=12)
    first = text[1]
    (cut,) = policy.generate("hello", 1, max_new_tokens=12, stop=first)
    assert cut == text.partition(first)[0]
    assert policy.generate("hello", 1, max_new_tokens=12, stop=[first, text[0]]) == [""]
    assert policy.stop_rules == StopRules()
