"""What makes the engine fast changes no result: products, layers, vocabulary, trunk, lean decoding, precision."""

import copy
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from klimb.config.train import TrainConfig
from klimb.model.layers import use_fast_layers
from klimb.model.matmul import product
from klimb.model.trainable import Lora, add_lora, train_last_layers
from klimb.model.trunk import decoder_layers
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import cpu_decoder, sampling
from klimb.policy.engine.vocabulary import Vocabulary
from klimb.policy.policy import Policy, SampleKey
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.surrogates import SumOfCompletions

PROMPTS = [[5, 6, 7, 8, 9], [3], [1, 2]]


def sample(policy, group=4, max_new_tokens=12):
    return policy.sample(PROMPTS, group, max_new_tokens=max_new_tokens, key=SampleKey(0, 0, [0, 1, 2]))


@pytest.mark.usefixtures("every_product_path")
@pytest.mark.parametrize("rows", [(7,), (3, 5), (1,), (0,)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_and_its_gradients_are_those_of_a_linear_layer(rows, has_bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, 24, generator=generator, requires_grad=True)
    weight = torch.randn(24, 40, generator=generator).t().requires_grad_()  # on its side, as GPT-2's are
    bias = torch.randn(40, generator=generator, requires_grad=True) if has_bias else None
    up = torch.randn(*rows, 40, generator=generator)
    arguments = [x, weight] if bias is None else [x, weight, bias]
    ours = product(x, weight, bias)
    theirs = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    gradients = (
        torch.autograd.grad((ours * up).sum(), arguments),
        torch.autograd.grad((theirs * up).sum(), arguments),
    )
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("every_product_path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_norm_and_gated_layer_are_those_of_transformers(dtype, make_model):
    config = make_model("llama").config
    for module in (LlamaRMSNorm(16, eps=1e-3).to(dtype), LlamaMLP(config).to(dtype)):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        fast = copy.deepcopy(module)
        use_fast_layers(fast)
        assert type(fast) is not type(module)
        results = []
        for layer in (module, fast):
            x = torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
            out = layer(x)
            up = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
            results.append([out, *torch.autograd.grad((out * up).sum(), [x, *layer.parameters()])])
            with torch.no_grad():
                assert torch.allclose(layer(x), out, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
        tolerance = {"rtol": 0.05, "atol": 0.3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize(
    ("family", "is_used"),
    [("llama", True), ("mistral", True), ("qwen2", True), ("qwen3", True), ("gemma", False), ("phi3", False)],
)
def test_the_gated_layer_is_used_by_the_models_whose_activation_is_silu(family, is_used, make_model):
    model = make_model(family)
    use_fast_layers(model)
    out = model.model.layers[0].mlp(torch.ones(2, 16))
    assert ("GatedProduct" in type(out.grad_fn).__name__) == is_used


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])  # phi's has a bias, gemma2's is softly capped
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("pieces", [(1 << 24, 1 << 22), (40, 20), (30, 1)])
def test_the_vocabulary_in_chunks_is_the_whole_one(family, temperature, pieces, make_model, monkeypatch):
    monkeypatch.setattr("klimb.policy.engine.vocabulary._CHUNK_ELEMENTS", pieces[0])
    monkeypatch.setattr("klimb.policy.engine.vocabulary._PIECE_ELEMENTS", pieces[1])
    model = make_model(family, vocab_size=10, dtype=torch.float64)
    distribution = SamplingDistribution(temperature)
    vocabulary = Vocabulary(model)
    generator = torch.Generator().manual_seed(0)
    hidden = (20 * torch.randn(13, 16, generator=generator, dtype=torch.float64)).requires_grad_()
    ids = torch.randint(10, (13,), generator=generator)
    up = torch.randn(13, generator=generator, dtype=torch.float64)
    arguments = [hidden, *model.get_output_embeddings().parameters()]
    whole = distribution.token_log_probs(vocabulary.logits(hidden), ids)
    chunked = vocabulary.token_log_probs(hidden, ids, distribution)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((log_probs * up).sum(), arguments) for log_probs in (whole, chunked)]
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_no_more_logits_are_held_than_a_piece_of_them(make_model, monkeypatch):
    monkeypatch.setattr("klimb.policy.engine.vocabulary._PIECE_ELEMENTS", 50)
    seen = []
    usual = SamplingDistribution.token_log_probs

    def watched(self, logits, ids, support=None):
        seen.append(logits.numel())
        return usual(self, logits, ids, support)

    monkeypatch.setattr(SamplingDistribution, "token_log_probs", watched)
    model = make_model("llama", vocab_size=10)
    Vocabulary(model).token_log_probs(
        torch.randn(33, 16), torch.zeros(33, dtype=torch.long), SamplingDistribution()
    )
    assert sum(seen) == 330
    assert max(seen) <= 50


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt2", "phi"])
def test_the_frozen_trunk_runs_once_and_its_states_change_nothing(
    family, dtype, size, make_model, bare_tokenizer
):
    model = make_model(family, vocab_size=10, num_layers=3, dtype=dtype)
    train_last_layers(model, 1)
    policy = Policy(model, bare_tokenizer)
    completions = sample(policy)
    assert completions.states is not None
    below: list[str] = []
    needs_gradient: list[bool] = []
    handles = []
    for whose in (model, policy.reference._model):
        layers = decoder_layers(whose)
        products = [
            m for layer in layers[:2] for m in layer.modules() if hasattr(m, "weight") and m.weight.ndim == 2
        ]
        handles += [m.register_forward_hook(lambda module, *_: below.append(str(module))) for m in products]
        handles.append(
            layers[2].register_forward_pre_hook(
                lambda _, inputs: needs_gradient.append(inputs[0].requires_grad)
            )
        )
    from_states = policy.log_probs(completions)
    reference = policy.reference.log_probs(completions)
    for handle in handles:
        handle.remove()
    assert below == [], "the trunk does not run again"
    assert needs_gradient == [False] * 4, "no gradient below the first layer that moves"
    without = policy.log_probs(completions.with_states(None))
    torch.testing.assert_close(from_states, without, rtol=0, atol=size)
    torch.testing.assert_close(reference, without.detach(), rtol=0, atol=size)
    parameters = list(policy.trainable().values())
    for ours, expected in zip(
        torch.autograd.grad(from_states.sum(), parameters),
        torch.autograd.grad(without.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=size, atol=size)


def test_micro_batches_take_their_own_part_of_the_trunks_states(make_model, bare_tokenizer):
    model = make_model("llama", vocab_size=10, num_layers=3)
    train_last_layers(model, 1)
    scores = []
    for micro_batch_size in (None, 3):
        policy = Policy(model, bare_tokenizer, micro_batch_size=micro_batch_size)
        completions = sample(policy)
        total = torch.zeros(len(completions))
        for rows in completions.micro_batches(micro_batch_size):
            part = completions.rows(rows)
            assert part.states.tokens.shape[:2] == (len(rows), part.ids.shape[1] - 1)
            total[rows] = policy.log_probs(part).sum(dim=1).detach()
        scores.append(total)
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("choice", ["whole", "adapter", "last layer"])
@pytest.mark.parametrize("leave_at", [0.01, 2.0])
def test_lean_decoding_draws_what_the_models_own_layers_draw(
    family, choice, leave_at, make_model, bare_tokenizer, monkeypatch
):
    model = make_model(family, vocab_size=10)
    if choice == "adapter":
        model = add_lora(model, Lora(2, 4.0), 0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
    elif choice == "last layer":
        train_last_layers(model, 1)
    monkeypatch.setattr(sampling, "_LEAVE_AT", leave_at)
    policy = Policy(model, bare_tokenizer)
    assert cpu_decoder.CPUDecoder.fits(policy._engine.backbone)
    ours = sample(policy)
    monkeypatch.setattr(cpu_decoder.CPUDecoder, "fits", staticmethod(lambda _: False))
    theirs = sample(policy)
    assert torch.equal(ours.ids * ours.mask, theirs.ids * theirs.mask)
    torch.testing.assert_close(ours.token_log_probs, theirs.token_log_probs, rtol=0, atol=1e-5)
    if choice == "last layer":
        mask = ours.mask[:, 1:]
        torch.testing.assert_close(ours.states.tokens[mask], theirs.states.tokens[mask], rtol=1e-4, atol=1e-4)


def test_the_ended_leave_the_batch(make_model, bare_tokenizer, monkeypatch):
    sizes = []
    usual = SamplingDistribution.log_probs

    def watched(self, logits):
        sizes.append(len(logits))
        return usual(self, logits)

    monkeypatch.setattr(SamplingDistribution, "log_probs", watched)
    completions = sample(Policy(make_model("llama", vocab_size=10), bare_tokenizer), group=8)
    assert sizes[0] == 24
    assert sizes == sorted(sizes, reverse=True)
    still_open = [int((completions.lengths > place).sum()) for place in range(len(sizes))]
    for size, num_open in zip(sizes, still_open, strict=True):
        assert num_open <= size <= max(num_open / 0.75, num_open + 1)


def test_micro_batches_are_sorted_by_length_where_that_leaves_less_to_run(make_model, bare_tokenizer):
    completions = sample(
        Policy(make_model("llama", vocab_size=10), bare_tokenizer), group=8, max_new_tokens=30
    )
    parts = completions.micro_batches(4)
    assert sorted(torch.cat(parts).tolist()) == list(range(24))

    def padded(splits):
        return sum(len(rows) * int(completions.lengths[rows].max()) for rows in splits)

    assert padded(parts) < padded(torch.arange(24).split(4))


@pytest.mark.usefixtures("every_product_path")
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_bfloat16_moves_float32_weights_by_gradients_of_their_rounded_copy(model_folder, micro_batch_size):
    policy = Policy.load(model_folder, precision="bfloat16", micro_batch_size=micro_batch_size)
    working = policy._working.model
    assert {p.dtype for p in working.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    completions = policy.sample(
        [policy.encode(t) for t in ("hello", "a b c")], 3, max_new_tokens=6, key=SampleKey(0, 0, [0, 1])
    )
    advantages = torch.linspace(-1, 1, 6, device=policy.model.device)
    config = TrainConfig(model="", prompts=Path(), reward=("r",), out=Path(), lr=1e-2, precision="bfloat16")
    metrics = PolicyOptimizer(policy, config).step(SumOfCompletions(advantages), completions)
    assert metrics.grad_norm > 0
    assert any(not torch.equal(p, before[name]) for name, p in policy.trainable().items())
    for (name, weight), copied in zip(policy.model.named_parameters(), working.parameters(), strict=True):
        assert torch.equal(copied, weight.to(torch.bfloat16)), name
        assert copied.grad is None
        assert weight.grad is None


@pytest.mark.usefixtures("every_product_path")
def test_bfloat16_gradients_are_near_those_in_float32_and_summed_over_passes_in_it(model_folder):
    gradients = []
    for precision in ("float32", "bfloat16", "bfloat16"):
        policy = Policy.load(model_folder, precision=precision)
        if precision == "float32":
            completions = policy.sample(
                [policy.encode(t) for t in ("hello", "a b c")],
                3,
                max_new_tokens=6,
                key=SampleKey(0, 0, [0, 1]),
            )
        passes = torch.arange(6).split(2 if len(gradients) == 2 else 6)
        for rows in passes:
            log_probs = policy.log_probs(completions.rows(rows)).sum(dim=1)
            (log_probs * torch.linspace(-1, 1, 6, device=log_probs.device)[rows]).sum().backward()
            if len(passes) > 1:
                policy.widen_gradients()
        taken = policy.take_gradients()
        summed_in = torch.bfloat16 if len(gradients) == 1 else torch.float32
        assert {gradient.dtype for _, gradient in taken} == {summed_in}
        gradients.append(torch.cat([gradient.flatten().float() for _, gradient in taken]))
    for half in gradients[1:]:
        assert float(torch.nn.functional.cosine_similarity(gradients[0], half, dim=0)) > 0.999


OFF_CPU = ("llama", "qwen3", "mistral", "gemma2", "gpt2", "phi")


@pytest.mark.parametrize("replayed", ["none", "prefix", "token_loop"])
@pytest.mark.parametrize(
    ("family", "moves"),
    [
        *((family, "all weights") for family in OFF_CPU),
        *(
            pytest.param(family, moves, marks=[] if family in ("gemma2", "gpt2") else pytest.mark.slow)
            for family in OFF_CPU
            for moves in ("the last layer", "an adapter")
        ),
    ],
)
def test_what_runs_off_the_cpu_gives_the_same_numbers(
    family, moves, replayed, make_model, bare_tokenizer, monkeypatch
):
    """The operations that an accelerator is given, run here: the same tokens, log-probs and gradient."""

    def run():
        model = make_model(family, vocab_size=10, dtype=torch.float64)
        if moves == "the last layer":
            train_last_layers(model, 1)
        elif moves == "an adapter":
            model = add_lora(model, Lora(2), seed=0).double()
        policy = Policy(model, bare_tokenizer)
        completions = sample(policy)
        log_probs = policy.log_probs(completions)
        log_probs.square().sum().backward()
        gradients = [weight.grad for weight in policy.trainable().values()]
        is_run = completions.mask[:, 1:, None]  # what else stands there has no meaning
        states = [completions.states.tokens * is_run] if completions.states else []
        return policy, completions, [completions.token_log_probs, log_probs.detach(), *states, *gradients]

    _, completions, expected = run()
    for name in (
        "model.matmul.is_on_cpu",
        "policy.engine.attention.is_on_cpu",
        "policy.distribution.on_cpu.can_take",
    ):
        monkeypatch.setattr(f"klimb.{name}", lambda _: False)
    if replayed != "none":
        monkeypatch.setattr(f"klimb.policy.engine.{replayed}.can_replay", lambda _: True)
    policy, again, found = run()
    assert policy.way.shares_prompts, policy.way.reason
    assert len(set(completions.lengths.tolist())) > 2  # some leave early
    assert not cpu_decoder.CPUDecoder.fits(policy.model.base_model)
    assert torch.equal(again.ids * again.mask, completions.ids * completions.mask)
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lengths", [[(3, 15), (3, 60)], [(14, 2), (56, 8)]], ids=["completions", "prompts"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_scores_of_attention_are_not_kept_for_the_gradient(
    family, lengths, make_model, bare_tokenizer, monkeypatch
):
    """Memory grows with the tokens, not with their square, off the CPU and for attention that is no plain softmax."""
    monkeypatch.setattr("klimb.model.matmul.is_on_cpu", lambda _: False)
    monkeypatch.setattr("klimb.policy.engine.attention.is_on_cpu", lambda _: False)
    policy = Policy(make_model(family, vocab_size=10), bare_tokenizer)
    policy.end_ids = []
    kept = []
    for num_of_prompt, num_new in lengths:
        prompts = [[1 + number % 9 for number in range(num_of_prompt)]] * 4
        drawn = policy.sample(prompts, 2, max_new_tokens=num_new, key=SampleKey(0, 0, [0, 1, 2, 3]))
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            policy.log_probs(drawn)
        kept.append(sum(sizes.values()))
    assert kept[1] < 4.1 * kept[0]
