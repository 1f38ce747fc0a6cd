"""On a GPU: the numbers that the CPU gives. `make test-gpu` runs these, and the tests of whole runs, there."""

import copy
import functools

import numpy as np
import pytest
import torch

import klimb
from klimb.config.train import TrainConfig
from klimb.core.advantages import BASELINES
from klimb.data.prompts import PromptRow
from klimb.kernels import gpu, vocabulary_gpu
from klimb.model.trainable import Lora, add_lora, train_last_layers
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine.gpu_decoder import attend_to_prompts_and_own
from klimb.policy.engine.static_cache import StaticCache
from klimb.policy.policy import Policy, SampleKey
from klimb.reward.function import FunctionReward
from klimb.reward.reward import WeightedSum
from klimb.rl.optimizer import PolicyOptimizer
from klimb.rl.step import take_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or it is hidden: see `make test-gpu`"),
]

ROWS = [PromptRow(text, {}, text) for text in ("abc", "d", "fghij")]  # unequal lengths: padding
KINDS = {
    "all weights": lambda model: model,
    "the last layer": lambda model: train_last_layers(model, 1) or model,
    "LoRA": lambda model: add_lora(model, Lora(2, 4.0), seed=0),
}


def arrays(library):
    """What makes an array of a library on the GPU."""
    if library == "torch":
        return lambda array: torch.asarray(array, device="cuda")
    return pytest.importorskip("cupy").asarray


def to_numpy(array):
    return array.cpu().numpy() if isinstance(array, torch.Tensor) else array.get()


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_the_equations_give_the_same_and_stay_where_their_arguments_are(library):
    rng, convert = np.random.default_rng(0), arrays(library)
    sizes = {"weights": 5, "rewards": 8, "policy_log_probs": 8, "ref_log_probs": 8, "log_prob_grads": (8, 5)}
    given = {name: rng.normal(size=size) for name, size in sizes.items()}
    converted = {name: convert(array) for name, array in given.items()}
    updated = klimb.rlhf_weight_update(**converted, beta=0.3, lr=0.1)
    assert type(updated) is type(converted["weights"])
    assert updated.device == converted["weights"].device
    np.testing.assert_allclose(
        to_numpy(updated), klimb.rlhf_weight_update(**given, beta=0.3, lr=0.1), rtol=1e-13
    )
    with pytest.raises(ValueError, match=r"rewards: expected finite numbers, got nan at \[2\]"):
        klimb.rlhf_weight_update(
            **(converted | {"rewards": convert(np.where(np.arange(8) == 2, np.nan, given["rewards"]))}),
            beta=0.3, lr=0.1,
        )  # fmt: skip
    rewards = rng.normal(size=(3, 4))
    is_valid = np.array([[True, False, True, True], [False] * 4, [False, True, False, False]])
    for baseline in BASELINES.values():
        found = baseline(convert(rewards), is_valid=convert(is_valid))
        np.testing.assert_allclose(to_numpy(found), baseline(rewards, is_valid=is_valid), atol=1e-13)


def take_steps(model, tokenizer, device, *, num_steps=4, micro_batch_size=None):
    """Take a few steps and return what was drawn, how likely, and the weights at the end."""
    options = {
        "model": "", "prompts": "p", "reward": ("r",), "out": "o", "prompts_per_step": 3, "max_new_tokens": 7,
        "completions_per_prompt": 4, "beta": 0.3, "lr": 0.02, "micro_batch_size": micro_batch_size,
    }  # fmt: skip
    config = TrainConfig.from_dict(options | {"eval_prompts": None})
    policy = Policy(model.to(device), tokenizer, micro_batch_size=micro_batch_size)
    assert policy.way.shares_prompts, policy.way.reason
    optimizer = PolicyOptimizer(policy, config)
    count = FunctionReward(
        "bs", lambda completions, **_: [text.count("b") - 0.3 * len(text) for text in completions]
    )
    drawn = []
    for step in range(num_steps):
        judged, metrics = take_step(
            policy, WeightedSum([count]), optimizer, ROWS, SampleKey(0, step, [0, 1, 2]), config
        )
        assert metrics.sampler_gap_max < 1e-10
        drawn.append((judged.texts, judged.completions.token_log_probs.cpu(), torch.tensor(judged.kl)))
    return drawn, {name: weight.detach().cpu() for name, weight in policy.trainable().items()}


NORMS_IN_FLOAT32 = {"gemma2", "phi3"}  # whatever the model is in, and klimb leaves them as they are
FAMILIES = ["gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3"]


def with_double_angles(model):
    """Let rotary embeddings find their angles in float64.

    transformers has them in float32 whatever the model is, and each device rounds their cosines in its own way: half a
    unit in the last place of them moves the log-probs of the tiny Llama here by 1e-4 within four steps of AdamW.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = functools.partial(double_angles, module)
    return model


def double_angles(module, values, position_ids, *_, **__):
    angles = position_ids[:, :, None].double() * module.inv_freq.double()
    angles = torch.cat([angles, angles], dim=-1)
    found = angles.cos() * module.attention_scaling, angles.sin() * module.attention_scaling
    return tuple(table.to(values.dtype) for table in found)


@pytest.mark.parametrize("micro_batch_size", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_on_the_gpu_are_those_of_the_cpu(family, kind, micro_batch_size, make_model, letter_tokenizer):
    model = with_double_angles(KINDS[kind](make_model(family, vocab_size=10, dtype=torch.float64)).double())
    expected, moved = take_steps(
        copy.deepcopy(model), letter_tokenizer, "cpu", micro_batch_size=micro_batch_size
    )
    found, also_moved = take_steps(model, letter_tokenizer, "cuda", micro_batch_size=micro_batch_size)
    size = 1e-5 if family in NORMS_IN_FLOAT32 else 1e-9
    for (texts, log_probs, kl), (their_texts, their_log_probs, their_kl) in zip(found, expected, strict=True):
        assert texts == their_texts
        torch.testing.assert_close(log_probs, their_log_probs, rtol=size, atol=size)
        torch.testing.assert_close(kl, their_kl, rtol=size, atol=size)
    assert float(found[-1][2].abs().max()) > 1e-3
    for name, weight in moved.items():
        torch.testing.assert_close(also_moved[name], weight, rtol=size, atol=size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_update_is_replayed_from_the_third_batch_on(
    family, kind, make_model, letter_tokenizer, monkeypatch
):
    replays = []
    usual = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or usual(graph))
    model = KINDS[kind](make_model(family, vocab_size=10, dtype=torch.float64)).double().cuda()
    monkeypatch.setenv("KLIMB_CUDA_GRAPHS", "off")
    plain = Policy(model, letter_tokenizer)
    plain.end_ids = []
    drawn = [
        plain.sample(prompts, 3, max_new_tokens=9, key=SampleKey(0, step, [0, 1]))
        for step, prompts in enumerate([[[1, 2, 3], [4]], [[5], [6, 7]], [[1], [2, 3, 4, 5]], [[8, 9], [1]]])
    ]
    weights = list(plain.trainable().values())

    def found(policy, completions):
        scores = policy.log_probs(completions)
        return [scores.detach(), *torch.autograd.grad(scores.square().sum(), weights, allow_unused=True)]

    expected = [found(plain, completions) for completions in drawn]
    assert not replays
    monkeypatch.delenv("KLIMB_CUDA_GRAPHS")
    counts = []
    policy = Policy(model, letter_tokenizer)
    if family == "gemma2":
        assert not policy.way.packs  # its scores are capped, for which PyTorch has no kernel
        return
    assert policy.way.packs, policy.way.why_unpacked
    for completions, wanted in zip(drawn, expected, strict=True):
        before = len(replays)
        ours = found(policy, completions)
        counts.append(len(replays) - before)
        for one, other in zip(ours, wanted, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert policy._engine.passes.why_not == ""
    assert counts == [0, 2, 2, 2]  # the second batch is recorded, and replayed at once


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [7, 1000, 49152, 151936])
def test_the_kernels_of_the_vocabulary_give_what_the_equations_do(size, dtype):
    if not gpu.is_installed():
        pytest.skip("Triton is not installed")
    generator = torch.Generator("cuda").manual_seed(size)
    logits = (3 * torch.randn(33, size, generator=generator, device="cuda", dtype=torch.float64)).to(dtype)
    ids = torch.randint(size, (33,), generator=generator, device="cuda")
    expected = torch.log_softmax(logits.double() / 0.7, dim=-1)
    found = vocabulary_gpu.token_log_probs(logits, ids, 0.7)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(
        found.double(), expected.gather(1, ids[:, None])[:, 0], rtol=tolerance, atol=tolerance
    )
    grad = torch.linspace(-2, 3, len(ids), device="cuda", dtype=found.dtype)
    slopes = torch.nn.functional.one_hot(ids, size) - expected.exp()
    wanted = grad.double()[:, None] * slopes / 0.7
    given = vocabulary_gpu.token_log_prob_gradients_(logits, ids, grad, 0.7)
    relative = 2**-7 if dtype == torch.bfloat16 else 20 * tolerance
    torch.testing.assert_close(given.double(), wanted, rtol=relative, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_tokens_but_the_first_few_are_replayed(family, kind, make_model, letter_tokenizer, monkeypatch):
    replays = []
    usual = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or usual(graph))
    model = KINDS[kind](make_model(family, vocab_size=10)).cuda()
    policy = Policy(model, letter_tokenizer)
    policy.end_ids = []
    assert policy.way.shares_prompts, policy.way.reason
    drawn = policy.sample([[1, 2, 3], [4]], 3, max_new_tokens=20, key=SampleKey(0, 0, [0, 1]))
    assert len(replays) == 20 - 2  # the prompt gives the first token, and the second is run to warm up
    again = policy.sample([[1, 2, 3], [4]], 3, max_new_tokens=20, key=SampleKey(0, 0, [0, 1]))
    assert len(replays) - 18 in (
        19,
        20,
    )  # what was recorded is kept, and the prompts' work is recorded now if it can
    torch.testing.assert_close(again.ids, drawn.ids)
    torch.testing.assert_close(again.token_log_probs, drawn.token_log_probs, rtol=0, atol=1e-4)
    scored = policy.log_probs(drawn).detach()
    torch.testing.assert_close(scored, drawn.token_log_probs, rtol=0, atol=1e-3)
    policy.end_ids = [0]
    again = policy.sample([[1, 2, 3], [4]], 3, max_new_tokens=20, key=SampleKey(0, 0, [0, 1]))
    assert len(set(again.lengths.tolist())) > 1  # some leave while the others are replayed
    assert all(
        torch.equal(one[:length], other[:length])
        for one, other, length in zip(drawn.ids, again.ids, again.lengths.tolist(), strict=True)
    )


def test_a_model_that_asks_for_values_is_called_for_every_token_and_the_next_is_replayed(
    make_model, letter_tokenizer, monkeypatch
):
    model = make_model("llama", vocab_size=10).cuda()
    policy = Policy(model, letter_tokenizer)
    policy.end_ids = []

    def draw():
        return policy.sample([[1, 2, 3], [4]], 3, max_new_tokens=20, key=SampleKey(0, 0, [0, 1]))

    expected = draw()
    replays = []
    usual = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or usual(graph))
    stream = torch.cuda.current_stream()
    hook = model.model.layers[0].register_forward_hook(
        lambda _module, _inputs, out: float(out.sum()) and None
    )
    torch.testing.assert_close(draw().ids, expected.ids)
    assert replays == []
    assert torch.cuda.current_stream() == stream
    hook.remove()
    torch.testing.assert_close(draw().ids, expected.ids)
    assert len(replays) in (19, 20)  # kept from the first time


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_tritons_kernels_draw_what_plain_operations_draw(
    family, kind, make_model, letter_tokenizer, monkeypatch
):
    pytest.importorskip("triton")
    model = KINDS[kind](make_model(family, vocab_size=5000, dtype=torch.float64)).double().cuda()

    def draw(setting):
        monkeypatch.setenv("KLIMB_TRITON", setting)
        policy = Policy(model, letter_tokenizer, distribution=SamplingDistribution(0.8))
        policy.end_ids = [0, 7]
        assert policy._engine.fuses == (setting == "on"), policy.notes
        lengths = [[1, 2, 3], [4], list(range(40))], [[9, 8], list(range(1, 20)), [5]]
        return [
            policy.sample(prompts, 5, max_new_tokens=20, key=SampleKey(0, step, [0, 1, 2]))
            for step, prompts in enumerate(
                [*lengths, *lengths]
            )  # each kind of room is used again, and replayed
        ]

    for plain, fused in zip(draw("off"), draw("on"), strict=True):
        assert torch.equal(plain.ids * plain.mask, fused.ids * fused.mask)
        assert plain.finish_reasons == fused.finish_reasons
        for name in ("token_log_probs", "token_entropies"):
            torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_by_triton_is_that_of_scores_side_by_side(dtype, size):
    pytest.importorskip("triton")
    for num_groups, ratio, window, lengths, owners in (
        (2, 7, None, [256, 100, 1], [0] * 8 + [1] * 8 + [2] * 3),
        (3, 3, None, [38] * 16, [place // 4 for place in range(64)]),
        (8, 1, 50, [70, 300], [1, 0, 1]),
    ):
        cache = StaticCache(torch.tensor(lengths).cuda(), torch.tensor(owners).cuda(), 40, 384)
        groups = (num_groups * ratio, num_groups, num_groups)
        options = {"scaling": size**-0.5, "window": window}

        def random(*sizes):
            return torch.randn(sizes, device="cuda").to(dtype)

        prompts = [random(len(lengths), heads, max(lengths), size) for heads in groups]
        cache.attend(0, *prompts, softcap=None, **options)
        for _ in range(40):
            cache.extend(1)
            query, key, value = (random(len(owners), heads, 1, size) for heads in groups)
            expected = cache.attend(0, query, key, value, softcap=None, **options)[:, :, 0].float()
            found = attend_to_prompts_and_own(query[:, :, 0], cache, 0, **options).float()
            gap = float((found - expected).norm() / expected.norm())
            assert gap < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kept_graphs_follow_the_weights(precision, make_model, letter_tokenizer):
    """A policy that drew before its weights moved draws what a fresh one with these weights does."""
    model = make_model("qwen3", vocab_size=300).cuda()
    policy = Policy(model, letter_tokenizer, precision=precision)
    for step in range(3):
        with torch.no_grad():
            for weight in policy.trainable().values():
                weight.mul_(0.95)
        policy.moved()
        drawn = policy.sample([[1, 2], [3] * 9], 4, max_new_tokens=12, key=SampleKey(0, step, [0, 1]))
        assert len(policy._engine.kept) == 1
        fresh = Policy(model, letter_tokenizer, precision=precision)
        expected = fresh.sample([[1, 2], [3] * 9], 4, max_new_tokens=12, key=SampleKey(0, step, [0, 1]))
        assert torch.equal(drawn.ids * drawn.mask, expected.ids * expected.mask)
        torch.testing.assert_close(drawn.token_log_probs, expected.token_log_probs, rtol=0, atol=1e-5)
        scored = policy.log_probs(drawn).detach()
        gap = 1e-3 if precision == "float32" else 0.5
        torch.testing.assert_close(scored, drawn.token_log_probs, rtol=0, atol=gap)


def test_a_model_goes_to_the_gpu_by_itself(model_folder):
    assert Policy.load(model_folder).model.device.type == "cuda"
    assert Policy.load(model_folder, device="cpu").model.device.type == "cpu"
