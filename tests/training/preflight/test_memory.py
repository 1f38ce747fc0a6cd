"""The prediction of a run's memory, term by term, and beside what a run takes."""

import importlib.util
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import MambaConfig

from klimb.config.train import TrainConfig
from klimb.errors import ConfigError
from klimb.model.load import load_model
from klimb.training.preflight import resources
from klimb.training.preflight.checks import check_memory, memory_remedy
from klimb.training.preflight.memory import (
    MemoryPrediction,
    ModelSize,
    outline,
    predict_memory,
    show_bytes,
    size_of,
)
from klimb.training.preflight.resources import base_memory, device_of, free_disk, resident_memory, used_memory
from klimb.training.setup import load_policy

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "memory.py"
SIZE = ModelSize(
    num_weights=1000, num_moved=1000, num_moved_embeddings=100, num_packed=800, num_layers=2, num_deep=2, num_heads=4,
    hidden=8, query=8, key=4, inner=16, num_inner=2, vocabulary=50,
)  # fmt: skip


def config(**changes):
    options = {
        "model": "m",
        "prompts": Path("p"),
        "reward": ("vader",),
        "out": Path("o"),
        "prompts_per_step": 2,
        "completions_per_prompt": 3,
        "max_new_tokens": 5,
    }
    return TrainConfig(**(options | changes))


def predict(size=SIZE, **changes):
    return predict_memory(size, config(**changes), longest_prompt=7, num_judged=2, base=10)


def test_what_is_held_is_weights_reference_and_moments():
    # 4 bytes per weight, 4 of its reference, and two moments of 4 each.
    assert predict().held == {
        "Python, libraries, rewards": 10,
        "weights": 4000,
        "working copy": 0,
        "reference": 4000,
        "optimiser's moments": 8000,
    }


@pytest.mark.parametrize(
    ("changes", "size", "name", "expected"),
    [
        ({"optimiser": "sgd"}, SIZE, "optimiser's moments", 0),
        ({"precision": "bfloat16"}, SIZE, "working copy", 2000),
        ({"precision": "bfloat16"}, SIZE, "reference", 2000),
        ({}, replace(SIZE, num_moved=300), "reference", 1200),  # what is frozen is shared
        ({}, replace(SIZE, num_moved=300), "optimiser's moments", 2400),
        ({}, replace(SIZE, num_moved=50, has_adapter=True), "reference", 0),  # the same with the adapter off
    ],
)
def test_what_was_chosen_changes_what_is_held(changes, size, name, expected):
    assert predict(size, **changes).held[name] == expected


def test_a_value_function_counts_with_its_moments_and_its_update():
    # A head: 8 weights and a bias, of 4 bytes, with two moments; 6 completions of 5 tokens' states of 8 numbers.
    head = predict(objective="ppo")
    assert head.held["value function"] == 4 * 3 * 9
    assert head.phases["update"]["hidden states for values"] == 4 * 6 * 5 * 8
    own = predict(objective="ppo", value_model="self", optimiser="sgd")
    assert own.held["value function"] == 4 * 1000
    assert own.phases["value update"]["gradients"] == 4000
    assert own.phases["value update"]["vocabulary chunk"] == 0
    shared = predict(replace(SIZE, num_moved=300), objective="ppo", value_model="self")
    assert shared.held["value function"] == 4 * 3 * 300
    half = predict(objective="ppo", value_model="self", precision="bfloat16")
    assert half.held["value function"] == 4 * 3 * 1000 + 2 * 1000
    other = predict_memory(
        SIZE,
        config(objective="ppo", value_model="other"),
        longest_prompt=7,
        value_size=replace(SIZE, num_weights=5000, num_moved=100),
    )
    assert other.held["value function"] == 4 * 5000 + 8 * 100
    assert "value function" not in predict().held


def test_the_supports_of_a_truncated_distribution_count():
    # 6 completions, 7 bytes for 50 tokens; of 5 tokens each, or of the first 2 alone.
    name = "tokens kept in sampling"
    assert predict(top_p=0.9).phases["update"][name] == 6 * 5 * 7
    assert predict(top_k=3).phases["sampling"][name] == 2 * 6 * 5 * 7
    assert predict(min_new_tokens=2).phases["update"][name] == 6 * 2 * 7
    assert name not in predict().phases["update"]


def test_the_exact_kl_keeps_the_references_hidden_states():
    exact = predict(kl_place="loss", kl_estimator="exact", precision="bfloat16")
    assert exact.phases["update"]["reference's hidden states"] == 2 * 6 * 5 * 8
    assert "reference's hidden states" not in predict(kl_place="loss", kl_estimator="k3").phases["update"]


def test_gradients_are_as_wide_as_what_they_are_found_in_and_their_sum_is_float32():
    gradients = [
        predict(precision=precision, micro_batch_size=at_once).phases["update"]["gradients"]
        for precision in ("float32", "bfloat16")
        for at_once in (None, 2)
    ]
    assert gradients == [4000, 4000, 2000, 6000]


def test_where_bfloat16_is_multiplied_in_float32_what_is_widened_counts():
    widened = replace(SIZE, is_widened=True)
    assert predict(widened).phases == predict().phases  # float32 is as wide as it was
    half = predict(widened, precision="bfloat16").phases
    assert half["sampling"]["weights packed for sampling"] == 4 * 800
    # Weights and their gradient, 50 · 8 each, and 6 · 5 tokens' 50 logits.
    assert half["update"]["products in float32"] == 4 * (2 * 50 * 8 + 30 * 50)
    assert predict(precision="bfloat16").phases["update"]["products in float32"] == 0


def test_what_is_multiplied_as_it_lies_is_not_laid_out_for_sampling():
    as_it_lies = replace(SIZE, is_packed=False)
    assert predict().phases["sampling"]["weights packed for sampling"] == 4 * 800
    assert predict(as_it_lies).phases["sampling"]["weights packed for sampling"] == 0


def test_recorded_passes_on_a_gpu_keep_gradients_and_their_memory_between_updates(monkeypatch):
    on_gpu = replace(SIZE, is_on_gpu=True, scores="few")
    found = predict(on_gpu, precision="bfloat16").phases
    update = found["update"]
    assert update["gradients of recorded passes"] == 2 * 1000
    kept = update["activations"] + update["a layer on the way back"]
    assert found["sampling"]["recorded passes"] == 2 * 1000 + kept
    monkeypatch.setattr("klimb.training.preflight.memory.MOST_WORK", 44 * 1000 - 1)  # 2 · 7 + 6 · 5 tokens
    for phases in (predict(on_gpu).phases, predict().phases):
        assert "gradients of recorded passes" not in phases["update"]


def test_activations_are_of_a_micro_batch_and_of_the_layers_that_keep_them():
    # A token keeps 4·8 + 4·8 + 2·4 + 2·16 = 104 numbers a layer. 2 prompts × 7 tokens + 6 × 5 tokens are 44, so that
    # two layers keep 2 · 44 · 104 numbers of 4 bytes; a quarter more is left free between them: 36,608 · 1.25 bytes.
    whole = predict().phases["update"]["activations"]
    assert whole == 45_760
    # Three completions of one prompt: 7 + 15 tokens.
    assert predict(micro_batch_size=3).phases["update"]["activations"] == pytest.approx(
        whole * 22 / 44, abs=1
    )
    half = predict(replace(SIZE, num_deep=1)).phases["update"]["activations"]
    assert half == pytest.approx(whole / 2, abs=1)
    assert predict(precision="bfloat16").phases["update"]["activations"] == pytest.approx(whole / 2, abs=1)


def test_the_peak_is_what_is_held_and_the_largest_phase():
    found = MemoryPrediction({"a": 5, "none": 0}, {"small": {"b": 1}, "large": {"c": 2, "d": 3}})
    assert (found.phase, found.peak, found.terms) == ("large", 10, {"a": 5, "c": 2, "d": 3})


@pytest.mark.parametrize(
    "smaller",
    [
        {"micro_batch_size": 1},
        {"precision": "bfloat16"},
        {"max_new_tokens": 2},
        {"prompts_per_step": 1},
        {"optimiser": "sgd"},
    ],
)
def test_each_remedy_takes_less(smaller):
    large = replace(SIZE, num_packed=0, vocabulary=2)
    options = {"completions_per_prompt": 64, "max_new_tokens": 50}
    assert predict(large, **(options | smaller)).peak < predict(large, **options).peak


def test_scores_of_a_layer_or_of_all_take_more_than_a_flash_kernels():
    found = [predict(replace(SIZE, **changes), max_new_tokens=50).phases["update"] for changes in (
        {}, {"window": 57}, {"window": 56}, {"scores": "a layer's"}, {"scores": "every layer's"},
    )]  # fmt: skip
    few, wide, narrow, one, every = (sum(terms.values()) for terms in found)
    assert few == wide < narrow == one < every


def test_an_adapter_is_merged_into_a_copy_at_the_end():
    saving = predict(replace(SIZE, has_adapter=True)).phases["saving"]
    assert sum(saving.values()) == 4000
    assert sum(predict().phases["saving"].values()) == 0


@pytest.mark.parametrize("changes", [{}, {"num_trainable_layers": 1}, {"lora_rank": 3}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_outline_of_a_model_counts_what_loading_finds(changes, family, make_model, tokenizer, tmp_path):
    make_model(family, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = config(model=str(tmp_path / "model"), **changes)
    before, after = outline(options), size_of(load_policy(options))
    assert before == replace(
        after,
        num_packed=0,
        shares_prompts=before.shares_prompts,
        scores=before.scores,
        is_widened=before.is_widened,
        is_packed=before.is_packed,
    )
    assert after.num_moved == sum(p.numel() for p in load_policy(options).trainable().values())


def test_a_model_without_attention_has_an_outline(tmp_path):
    MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4).save_pretrained(tmp_path)
    found = outline(config(model=str(tmp_path)))
    assert found is not None
    assert (found.num_layers, found.num_heads, found.hidden) == (2, 1, 16)


def test_the_outline_of_a_model_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "nonsense"}')
    assert outline(config(model=str(tmp_path / "odd"))) is None


def remedy(**changes):
    options = config(**changes)
    return memory_remedy(options, options)


def test_memory_that_does_not_suffice_fails_and_little_to_spare_warns():
    found = MemoryPrediction({"weights": 1_000_000_000})
    outcomes = [check_memory(found, remedy(), available, 400_000_000).outcome for available in
                (500_000_000, 700_000_000, 900_000_000, None)]  # fmt: skip
    assert outcomes == ["failed", "warned", "passed", "passed"]


def test_a_remedy_names_only_what_was_not_chosen():
    found = MemoryPrediction({"weights": 10**12})
    first = check_memory(found, remedy(), 1, 0).remedy
    assert "--micro-batch-size 3" in first
    assert "--precision bfloat16" in first
    assert "--lora-rank 16" in first
    last = check_memory(found, remedy(micro_batch_size=1, precision="bfloat16", lora_rank=4), 1, 0).remedy
    assert last == "take less: shorter prompts or --max-new-tokens, a smaller model"


def test_memory_that_is_taken_is_held_by_the_process_and_not_available():
    cpu, size = device_of("cpu"), 256 << 20
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say what memory a process has now")
    before = used_memory(cpu)
    taken = bytearray(b"x") * size
    assert used_memory(cpu) - before == pytest.approx(size, rel=0.05)
    assert base_memory("cpu") > before + size
    del taken
    assert used_memory(cpu) - before < size / 2


def test_what_the_system_says_of_its_memory_is_read_in_bytes(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       4000 kB\nMemFree:        1000 kB\nMemAvailable:   2500 kB\n")
    assert resources._free_in_machine(file) == 2500 * 1024
    file.write_text("MemTotal:       4000 kB\n")  # Linux before 3.14
    assert resources._free_in_machine(file) is None
    assert resources._free_in_machine(tmp_path / "none") is None


def test_where_the_system_does_not_say_what_a_process_has_its_most_is_taken(monkeypatch):
    monkeypatch.setattr(resources, "_kilobytes", lambda *_: None)  # macOS has no /proc
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert resident_memory() == pytest.approx(most, rel=0.05)
    assert most > 50_000_000  # bytes: PyTorch is loaded


def test_the_disk_of_a_folder_yet_to_be_made_is_that_of_the_nearest_that_is_there(monkeypatch, tmp_path):
    usages = {tmp_path: 7, tmp_path.parent: 8}

    def usage(place):
        if place not in usages:
            raise FileNotFoundError(place)
        return SimpleNamespace(free=usages[place])

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert free_disk(tmp_path / "not" / "there" / "yet") == 7
    assert free_disk(tmp_path.parent / "other") == 8


def test_what_is_no_device_takes_room_on_the_usual_one_and_loading_refuses_it(model_folder):
    assert device_of("nonsense") == device_of(None)
    assert base_memory("nonsense") > 0
    with pytest.raises(ConfigError, match="device: cannot use 'nonsense'"):
        load_model(model_folder, device="nonsense")


@pytest.fixture
def groups(tmp_path):
    """Control groups as the kernel shows them: a limit of 500 on what is above, none on the process's own."""

    def make(version):
        top = tmp_path / "cgroup" if version == 2 else tmp_path / "cgroup" / "memory"
        names = (
            ("memory.max", "memory.current")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        inner = top / "outer" / "inner"
        inner.mkdir(parents=True)
        stat = "inactive_file 30\n" if version == 2 else "inactive_file 1\ntotal_inactive_file 30\n"
        for folder, limit, usage in (
            (inner, "max" if version == 2 else str(2**63), 100),
            (inner.parent, "500", 200),
        ):
            (folder / names[0]).write_text(limit + "\n")
            (folder / names[1]).write_text(f"{usage}\n")
            (folder / "memory.stat").write_text(f"anon 3\n{stat}")
        own = tmp_path / "own"
        own.write_text(
            "0::/outer/inner\n" if version == 2 else "3:cpu:/x\n9:memory:/outer/inner\n1:name=systemd:/\n"
        )
        return tmp_path / "cgroup", own

    return make


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_control_groups_count_without_what_they_can_let_go_of(version, groups):
    assert min(resources._free_in_groups(*groups(version))) == 500 - 200 + 30


def test_a_system_without_these_files_knows_nothing(tmp_path):
    assert resources._free_in_groups(tmp_path, tmp_path / "none") == []
    assert resources._free_in_machine(tmp_path / "none") is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:      7 kB\n")
    assert resources._free_in_machine(tmp_path / "meminfo") == 7 * 1024


def test_bytes_are_shown_in_units_that_can_be_read():
    assert [show_bytes(count) for count in (4_130_000_000, 120_000_000, 12_340_000)] == [
        "4.13 GB",
        "0.12 GB",
        "12.3 MB",
    ]


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmarks_memory", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["all weights", "last 6 layers", "LoRA", "bfloat16"])
def test_the_prediction_is_within_a_fifth_of_the_measured_peak(name, tmp_path):
    benchmark = load_benchmark()
    job = benchmark.make_job(name, tmp_path, num_steps=6)
    finished = subprocess.run(
        [sys.executable, str(BENCHMARK), "--child"],
        input=json.dumps(job), capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["predicted"] == pytest.approx(result["measured"], rel=0.2)
