"""Recorded passes: the same log-probs and gradients as unrecorded ones, batch after batch.

There is no GPU here. What stands for a recording calls the function again and writes its results where those of the
first call are, as a CUDA graph does.
"""

import pytest
import torch

from klimb.model.trainable import Lora, add_lora, train_last_layers
from klimb.policy.engine import packed, recorded
from klimb.policy.policy import Policy, SampleKey

BATCHES = [
    [[5, 6, 7, 8, 9], [3], [1, 2]],
    [[1, 2, 3], [4, 5, 6, 7], [8, 9]],
    [[1], [9, 9, 9, 9], [2]],
    [[4, 5], [6, 7, 8], [1, 1, 1, 1]],
]


class Again:
    """A recording that does the work again and fills the tensors that the first call gave."""

    def __init__(self, function):
        self.is_differentiated = torch.is_grad_enabled()
        self.function, self.result, self.num_replays = function, function(), 0

    def replay(self):
        self.num_replays += 1
        with torch.set_grad_enabled(self.is_differentiated):
            found = self.function()
        for place, new in zip(
            *(x if isinstance(x, list) else [x] for x in (self.result, found)), strict=True
        ):
            if place is not None:
                place.data.copy_(new)


def make_policy(make_model, tokenizer, family="llama", moves="all weights"):
    model = make_model(family, vocab_size=10, dtype=torch.float64)
    if moves == "the last layer":
        train_last_layers(model, 1)
    elif moves == "an adapter":
        model = add_lora(model, Lora(2), seed=0).double()
    return Policy(model, tokenizer)


def record(policy):
    """Let a policy's passes be recorded; returns the recordings as they are made."""
    made = []

    def keep(function):
        made.append(Again(function))
        return made[-1], made[-1].result

    for engine in {id(e): e for e in (policy._engine, policy.reference._engine)}.values():
        engine.passes = recorded.RecordedPasses(engine.run_row, engine.model, record=keep)
    return made


def sample(policy, prompts, step=0, max_new_tokens=9):
    return policy.sample(
        prompts, 4, max_new_tokens=max_new_tokens, key=SampleKey(0, step, list(range(len(prompts))))
    )


def scores_and_gradients(policy, completions):
    log_probs = policy.log_probs(completions)
    weights = list(policy.trainable().values())
    return [log_probs.detach(), *torch.autograd.grad(log_probs.square().sum(), weights, allow_unused=True)]


@pytest.fixture
def both(make_model, bare_tokenizer, monkeypatch):
    """Makes two policies with the same weights that pack, of which the second records."""
    monkeypatch.setenv(packed.VARIABLE, "on")

    def make(family="llama", moves="all weights"):
        plain, recording = (make_policy(make_model, bare_tokenizer, family, moves) for _ in range(2))
        assert plain.way.packs
        return plain, recording, record(recording)

    return make


@pytest.mark.parametrize("moves", ["all weights", "the last layer", "an adapter"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt2"])
def test_recorded_passes_give_the_same_scores_and_gradients(family, moves, both):
    plain, policy, made = both(family, moves)
    for step, prompts in enumerate(BATCHES):
        completions = sample(plain, prompts, step)
        expected, found = (scores_and_gradients(one, completions) for one in (plain, policy))
        for theirs, ours in zip(expected, found, strict=True):
            assert (theirs is None) == (ours is None)
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        reference = [one.reference.log_probs(completions) for one in (plain, policy)]
        torch.testing.assert_close(*reference, rtol=1e-9, atol=1e-9)
        for one in (plain, policy):  # the weights move where they are
            with torch.no_grad():
                for weight in one.trainable().values():
                    weight.add_(0.01 * (step + 1))
            one.moved()
    differentiated = [again for again in made if again.num_replays == 3]
    assert len(made) == 3  # forwards, backwards, and the reference's
    assert len(differentiated) == len(made)  # the first of four batches is not recorded


def test_lengths_are_rounded_to_few_sizes():
    assert [recorded.rounded(length) for length in (1, 8, 9, 64, 65, 100, 129, 512, 513)] == [
        8, 8, 16, 64, 72, 104, 144, 512, 576,
    ]  # fmt: skip
    sizes = {recorded.rounded(length) for length in range(1, 4097)}
    assert len(sizes) == 8 + 6 * 8
    assert all(recorded.rounded(length) < length + max(8, length / 8) for length in range(1, 4097))


def test_a_batch_of_one_length_and_a_ragged_one_have_recordings_of_their_own(both):
    plain, policy, made = both()
    for step in range(3):
        for prompts in ([[1, 2, 3], [4, 5, 6]], [[1, 2], [4, 5, 6]], [[1, 2, 3, 4], [5, 6, 7, 8]]):
            completions = sample(plain, prompts, step)
            expected, found = (scores_and_gradients(one, completions)[0] for one in (plain, policy))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(made) == 4  # two of one length share a shape


def test_a_pass_that_waits_for_its_gradient_is_not_overwritten(both):
    plain, policy, made = both()
    batches = [sample(plain, prompts, step) for step, prompts in enumerate(BATCHES)]
    for completions in batches[:2]:
        scores_and_gradients(policy, completions)
    weights = list(policy.trainable().values())
    first, second = (policy.log_probs(completions) for completions in batches[2:])
    found = [torch.autograd.grad(scores.square().sum(), weights) for scores in (first, second)]
    for completions, gradients in zip(batches[2:], found, strict=True):
        _, *expected = scores_and_gradients(plain, completions)
        torch.testing.assert_close(list(gradients), expected, rtol=1e-9, atol=1e-9)
    del first, second
    replays = made[0].num_replays
    abandoned = policy.log_probs(batches[0])
    assert made[0].num_replays == replays + 1
    del abandoned  # never differentiated
    policy.log_probs(batches[0])
    assert made[0].num_replays == replays + 2


def test_a_pass_is_not_differentiated_twice(both):
    plain, policy, _ = both()
    completions = sample(plain, BATCHES[0])
    scores_and_gradients(policy, completions)
    scores = policy.log_probs(completions).square().sum()
    weights = list(policy.trainable().values())
    torch.autograd.grad(scores, weights, retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice; set KLIMB_CUDA_GRAPHS=off"):
        torch.autograd.grad(scores, weights)


def test_weights_in_another_place_are_recorded_anew(both):
    plain, policy, made = both()
    completions = sample(plain, BATCHES[0])
    for _ in range(2):
        scores_and_gradients(policy, completions)
    assert len(made) == 2
    for one in (plain, policy):
        for weight in one.trainable().values():
            weight.data = weight.data * 1.1
    expected, found = (scores_and_gradients(one, completions)[0] for one in (plain, policy))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(made) == 4


def test_a_hook_is_called_though_the_shape_was_recorded_before(both):
    plain, policy, made = both()
    completions = sample(plain, BATCHES[0])
    for _ in range(2):
        expected = scores_and_gradients(policy, completions)[0]
    assert len(made) == 2
    called = []
    hook = policy.model.model.layers[0].register_forward_hook(lambda *_: called.append(1))
    torch.testing.assert_close(scores_and_gradients(policy, completions)[0], expected, rtol=1e-9, atol=1e-9)
    assert called == [1]
    hook.remove()
    replays = made[0].num_replays
    scores_and_gradients(policy, completions)
    assert (called, made[0].num_replays, len(made)) == ([1], replays + 1, 2)


def test_no_more_than_eight_shapes_are_kept(both):
    plain, policy, made = both()
    for length in range(1, 80, 8):
        completions = sample(plain, [[1] * length])
        for _ in range(2):
            scores_and_gradients(policy, completions)
    assert len(made) == 2 * 10
    assert len(policy._engine.passes._passes) == 8


def test_large_passes_and_what_cannot_be_recorded_are_run_as_they_are(both, monkeypatch):
    plain, policy, made = both()
    completions = sample(plain, BATCHES[0])
    expected = scores_and_gradients(plain, completions)[0]
    size = sum(weight.numel() for weight in policy._engine.model.parameters())
    monkeypatch.setattr(recorded, "MOST_WORK", packed.size(completions) * size - 1)
    for _ in range(3):
        torch.testing.assert_close(
            scores_and_gradients(policy, completions)[0], expected, rtol=1e-9, atol=1e-9
        )
    assert made == []
    monkeypatch.setattr(recorded, "MOST_WORK", packed.size(completions) * size)

    def fail(_):
        raise RuntimeError("operation not permitted when stream is capturing")

    policy._engine.passes._record = fail
    for _ in range(3):
        torch.testing.assert_close(
            scores_and_gradients(policy, completions)[0], expected, rtol=1e-9, atol=1e-9
        )
    assert "operation not permitted" in policy._engine.passes.why_not


@pytest.mark.parametrize(("asked", "is_taken"), [("", True), ("once", False)])
def test_nothing_is_recorded_where_nothing_may_be_kept(asked, is_taken, make_model, monkeypatch):
    monkeypatch.setattr(recorded, "can_replay", lambda _: True)
    monkeypatch.setenv("KLIMB_CUDA_GRAPHS", asked)
    model = make_model("llama", vocab_size=10)
    passes = recorded.RecordedPasses(lambda row, _: row, model)  # as on a GPU
    assert passes.takes(10) is is_taken
