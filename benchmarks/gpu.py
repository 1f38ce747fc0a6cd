"""Everything that is measured on a GPU, in one run of at most ten minutes, without a network.

python benchmarks/gpu.py --out FOLDER              (whatever card PyTorch finds; with TRL where it can be imported)
python benchmarks/gpu.py --dry-run --out FOLDER    (the same parts with tiny models, on the CPU if need be)
python benchmarks/gpu.py --only a 0.5b --out FOLDER

Models have the shapes of known ones and random weights; the tokenizer is made here. After each part gpu.json and
gpu.md are written anew, so that a run which is cut keeps what it has. Each measurement is a process of its own, of
which the first steps warm up. MFU is model FLOPs (6 a weight and token, attention, and the vocabulary at completion
tokens; nothing that is recomputed) over the seconds of the update and the card's bfloat16 rate, measured here on a
product of 8192³; the share of bandwidth is the bytes that a token of decoding cannot avoid (weights once, keys and
values once for each prompt and for each completion) over its seconds and the rate of a large copy.
"""

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import vs_trl

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "kind": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3,
}  # fmt: skip
HALF_BILLION = {
    "kind": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2,
}  # fmt: skip
ONE_AND_A_HALF_BILLION = {
    "kind": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2,
}  # fmt: skip
TINY = {
    "kind": "qwen2", "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: vs_trl.SETTINGS[name] | {"shape": SMALL} for name in "abc"},
    "0.5b": {
        "prompts": 16, "group": 8, "prompt_tokens": 256, "new_tokens": 256, "trl_batch": 16, "lora": None,
        "shape": HALF_BILLION, "micro_batch": {"float32": 32},
    },
    "1.5b": {
        "prompts": 16, "group": 8, "prompt_tokens": 256, "new_tokens": 512, "trl_batch": 16, "lora": None,
        "shape": ONE_AND_A_HALF_BILLION, "micro_batch": {"bfloat16": 32, "float32": 16},
    },
}  # fmt: skip
TINY_SETTING = {
    "prompts": 2, "group": 2, "prompt_tokens": 6, "new_tokens": 8, "trl_batch": 4, "lora": None, "shape": TINY,
}  # fmt: skip
PARTS = ("card", "correctness", "a", "b", "c", "0.5b", "1.5b", "profile", "profile-0.5b", "memory")
# What runs a setting: a side of vs_trl.py, in an environment.
SIDES: dict[str, tuple[str, dict[str, str]]] = {
    "klimb": ("klimb", {}),
    "klimb, compiled": ("klimb", {"KLIMB_COMPILE": "on"}),
    "klimb, unpacked": ("klimb", {"KLIMB_PACKED": "off"}),
    "klimb, unrecorded": ("klimb", {"KLIMB_CUDA_GRAPHS": "off"}),
    "TRL": ("trl", {}),
}
DEFAULT_SIDES = {
    ("a", "bfloat16"): list(SIDES),
    ("0.5b", "bfloat16"): list(SIDES),
    ("0.5b", "float32"): ["klimb"],
    ("1.5b", "bfloat16"): ["klimb"],
    ("1.5b", "float32"): [],
}
SHORTEST = 20.0  # seconds left under which no process is started


class Budget:
    """The seconds that are left to the whole run.

    Args:
        seconds: How many there are.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self, most: float = 1e9) -> float:
        """What is left, and no more than `most`."""
        return min(most, self._end - time.monotonic())


def make_tokenizer(size: int) -> Any:
    """One token a word, words of letters, as many as the model's vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = itertools.chain.from_iterable(
        map("".join, itertools.product(string.ascii_lowercase, repeat=n)) for n in itertools.count(1)
    )
    vocabulary = {
        word: index for index, word in enumerate(["</s>", "<unk>", *itertools.islice(words, size - 2)])
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106  not a secret
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="</s>", unk_token="<unk>"  # noqa: S106
    )  # fmt: skip


def make_model(shape: dict[str, Any], folder: Path) -> Path:
    """Write a model of a shape, with random weights, and its tokenizer; returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    target = folder / f"{shape['kind']}-{shape['hidden_size']}"
    if target.exists():
        return target
    options = {name: value for name, value in shape.items() if name != "kind"} | {
        "tie_word_embeddings": True, "max_position_embeddings": 4096, "eos_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config, model = kinds[shape["kind"]]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = model(config(**options))
    made.save_pretrained(target)
    make_tokenizer(shape["vocab_size"]).save_pretrained(target)
    return target


def make_job(setting: dict[str, Any], precision: str, folder: Path, num_steps: int = 2) -> dict[str, Any]:
    """What a side of vs_trl.py is given."""
    import random

    chooser = random.Random(0)  # noqa: S311  words, not secrets
    words = ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)]
    warm_up = 2
    texts = [
        " ".join(chooser.choices(words[: setting["shape"]["vocab_size"] // 2], k=setting["prompt_tokens"]))
        for _ in range(setting["prompts"] * (num_steps + warm_up))
    ]
    job = {name: value for name, value in setting.items() if name not in ("shape", "micro_batch")}
    return job | {
        "model": str(make_model(setting["shape"], folder)), "texts": texts, "steps": num_steps, "warm_up": warm_up,
        "precision": precision, "micro_batch": setting.get("micro_batch", {}).get(precision),
    }  # fmt: skip


def call(
    command: list[str], budget: Budget, *, given: str = "", extra: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a process in what is left of the time; what went wrong is part of the result."""
    if budget.left() < SHORTEST:
        return {"error": "not run: no time was left"}
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path, **(extra or {})
    }  # fmt: skip
    start = time.monotonic()
    try:
        finished = subprocess.run(
            [sys.executable, *command], input=given, capture_output=True, text=True, env=environment, cwd=ROOT,
            check=False, timeout=budget.left(240.0),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return {"error": "stopped: out of time", "output": str(error.stdout or "")[-2000:]}
    result = {
        "seconds": time.monotonic() - start,
        "output": finished.stdout,
        "errors": finished.stderr[-3000:],
    }
    if finished.returncode != 0:
        result["error"] = f"ended with {finished.returncode}: {finished.stderr.strip()[-1500:]}"
    return result


def measure_card(is_dry: bool) -> dict[str, Any]:
    """The card's name and its two ceilings: bytes per second of a copy, FLOPs a second of a product in bfloat16."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU", "torch": torch.__version__,
        "transformers": transformers.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    size, side = (1 << 20, 128) if is_dry else (1 << 30, 8192)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    found["bytes_per_second"] = 2 * size / _seconds(lambda: target.copy_(source))
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    found["flops_per_second"] = 2 * side**3 / _seconds(lambda: a @ b)
    return found


def _seconds(function: Any) -> float:
    """Median of twenty timed calls after three."""
    times: list[float] = []
    for number in range(23):
        vs_trl.wait_for_device()
        start = time.perf_counter()
        function()
        vs_trl.wait_for_device()
        if number >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def check_correctness(is_dry: bool, budget: Budget) -> dict[str, Any]:
    """Run the GPU tests, for two minutes at most."""
    missing = [name for name in ("pytest", "jaxtyping", "beartype") if not importlib.util.find_spec(name)]
    if missing:
        return {"error": f"not run: {', '.join(missing)} cannot be imported"}
    tests = ["tests/gpu"] + (["--collect-only"] if is_dry else [])
    plugins = ["-n", "4"] if importlib.util.find_spec("xdist") and not is_dry else []
    options = ["-q", "-m", "gpu", "--no-header", "-p", "no:cacheprovider", "-W", "default", *plugins]
    found = call(
        ["-m", "pytest", *tests, *options],
        Budget(budget.left(130.0)),
        extra={} if is_dry else {"KLIMB_TEST_GPU": "1"},
    )
    return {**found, "output": found.get("output", "")[-3000:]}


def work_of(setting: dict[str, Any], precision: str) -> dict[str, float]:
    """FLOPs of an update, and bytes that one token of decoding reads at least, half way through a completion."""
    shape = setting["shape"]
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    at_keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    in_layers = layers * (
        2 * hidden * hidden + 2 * hidden * at_keys + 3 * hidden * shape["intermediate_size"]
    )
    num, new, length = setting["prompts"] * setting["group"], setting["new_tokens"], setting["prompt_tokens"]
    tokens = setting["prompts"] * length + num * new
    pairs = setting["prompts"] * length**2 / 2 + num * new * (length + new / 2)
    vocabulary = shape["vocab_size"] * hidden
    flops = 6.0 * (in_layers * tokens + vocabulary * num * new) + 12.0 * layers * hidden * pairs
    size = 2 if precision == "bfloat16" else 4
    cached = setting["prompts"] * length + num * new / 2
    return {
        "update_flops": flops,
        "token_bytes": size * (in_layers + vocabulary + 2 * layers * at_keys * cached),
    }


def measure_setting(
    name: str, setting: dict[str, Any], folder: Path, budget: Budget, card: dict[str, Any]
) -> dict[str, Any]:
    """Take a setting's steps on every side, in each precision."""
    found: dict[str, Any] = {}
    for precision in setting.get("precisions") or ("bfloat16", "float32"):
        job = json.dumps(make_job(setting, precision, folder))
        for label in setting.get("sides") or DEFAULT_SIDES.get((name, precision), ["klimb", "TRL"]):
            side, extra = SIDES[label]
            if side == "trl" and not importlib.util.find_spec("trl"):
                found[f"{label} {precision}"] = {"error": "not run: trl cannot be imported"}
                continue
            command = [str(ROOT / "benchmarks/vs_trl.py"), "--side", side]
            found[f"{label} {precision}"] = _summarise(
                call(command, budget, given=job, extra=extra), setting, precision, card
            )
    return found


def _summarise(
    result: dict[str, Any], setting: dict[str, Any], precision: str, card: dict[str, Any]
) -> dict[str, Any]:
    """Medians over the timed steps, and the two shares of what the card can do."""
    if "error" in result:
        return result
    told = json.loads(result["output"].strip().splitlines()[-1])
    middle = {key: statistics.median(step[key] for step in told["steps"]) for key in told["steps"][0]}
    work = work_of(setting, precision)
    row = middle | {"peak_bytes": told["peak_bytes"], "process_seconds": result["seconds"], **work}
    if notice := [line for line in result["errors"].splitlines() if "klimb:" in line or "KLIMB" in line]:
        row["notice"] = notice[-1]
    if card.get("flops_per_second"):
        row["mfu"] = work["update_flops"] / middle["update"] / card["flops_per_second"]
        token = middle["sampling"] / setting["new_tokens"]
        row["bandwidth_share"] = work["token_bytes"] / token / card["bytes_per_second"]
    return row


def profile(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Profile one update, and one batch of samples: kernels, launches, seconds; tables are written to files."""
    import torch

    from klimb.config.train import TrainConfig
    from klimb.core.surrogate import reinforce
    from klimb.policy.policy import Policy, SampleKey
    from klimb.rl.optimizer import PolicyOptimizer

    config = TrainConfig(
        model=job["model"],
        prompts=Path(),
        reward=("e",),
        out=Path(),
        lr=vs_trl.LR,
        precision=job["precision"],
    )
    policy = Policy.load(job["model"], precision=config.precision)
    policy.end_ids = []
    optimizer = PolicyOptimizer(policy, config)
    prompts = [policy.encode(text) for text in job["texts"][: job["prompts"]]]

    def sample(step: int) -> Any:
        key = SampleKey(0, step, list(range(len(prompts))))
        return policy.sample(prompts, job["group"], max_new_tokens=job["new_tokens"], key=key)

    advantages = torch.linspace(-1, 1, job["prompts"] * job["group"], device=policy.model.device)

    def surrogate(token_log_probs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return reinforce(token_log_probs.sum(dim=1), advantages[rows], len(advantages))

    for step in range(2):
        completions = sample(step)
        optimizer.step(surrogate, completions)
    found: dict[str, Any] = {}
    completions = sample(2)
    phases = {
        "update": lambda: optimizer.step(surrogate, completions),
        "scoring": lambda: policy.ref_log_probs(completions),
        "sampling": lambda: sample(3),
    }
    for name, function in phases.items():
        vs_trl.wait_for_device()
        start = time.perf_counter()
        with torch.profiler.profile() as profiler:
            function()
            vs_trl.wait_for_device()
        events = profiler.key_averages()
        launches = {event.key: event.count for event in events if "Launch" in event.key}
        on_card = sum(event.self_device_time_total for event in events)
        found[name] = {
            "seconds_profiled": time.perf_counter() - start, "card_seconds": on_card / 1e6, "launches": launches,
            "operations": sum(event.count for event in events if event.key.startswith("aten::")),
        }  # fmt: skip
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = events.table(sort_by=order, row_limit=25, max_name_column_width=70)
        (folder / f"profile-{job['precision']}-{name}.txt").write_text(table)
    return found


def measure_profile(setting: dict[str, Any], folder: Path, out: Path, budget: Budget) -> dict[str, Any]:
    """Profile klimb's phases in a setting, in a process of its own."""
    job = make_job(setting, "bfloat16", folder)
    found: dict[str, Any] = {}
    for label in ("klimb", "klimb, compiled"):
        if setting.get("sides") and label not in setting["sides"]:
            continue
        tables = out / f"{label.replace(', ', '-')}-{setting['shape']['hidden_size']}"
        tables.mkdir(parents=True, exist_ok=True)
        result = call(
            [__file__, "--child", "--out", str(tables)], budget, given=json.dumps(job), extra=SIDES[label][1]
        )
        lines = result.get("output", "").strip().splitlines()
        found[label] = result if "error" in result else json.loads(lines[-1])
    return found


def measure_memory(shape: dict[str, Any], folder: Path, budget: Budget) -> dict[str, Any]:
    """Memory that preflight predicts beside what a run took, in float32, bfloat16 and with LoRA."""
    judge, prompts = folder / "judge.py", folder / "prompts.jsonl"
    judge.write_text("def e(completions, **_):\n    return [c.count('e') / 10 for c in completions]\n")
    words = ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)][:400]
    rows = [{"prompt": " ".join(words[number : number + 30])} for number in range(32)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, Any] = {}
    for name, extra in {
        "float32": {},
        "bfloat16": {"precision": "bfloat16"},
        "LoRA": {"lora_rank": 16},
    }.items():
        job = {
            "model": str(make_model(shape, folder)), "prompts": str(prompts), "reward": [f"{judge}:e"],
            "out": str(folder / f"run-{name}"), "prompts_per_step": 4, "completions_per_prompt": 4,
            "eval_completions_per_prompt": 2, "max_new_tokens": 32, "num_steps": 3, "lr": 1e-5, **extra,
        }  # fmt: skip
        result = call([str(ROOT / "benchmarks/memory.py"), "--child"], budget, given=json.dumps(job))
        lines = result.get("output", "").strip().splitlines()
        found[name] = result if "error" in result else json.loads(lines[-1])
    return found


def table(results: dict[str, Any]) -> str:
    """All that was measured, as Markdown."""
    card = results.get("card", {})
    lines = [
        f"{card.get('device', '?')}, PyTorch {card.get('torch', '?')}, transformers {card.get('transformers', '?')}, "
        f"{card.get('date', '?')}; copy {card.get('bytes_per_second', 0) / 1e12:.2f} TB/s, "
        f"bfloat16 product {card.get('flops_per_second', 0) / 1e12:.0f} TFLOP/s", "",
    ]  # fmt: skip
    if tests := results.get("correctness"):
        summary = tests.get("error") or (tests["output"].strip().splitlines() or ["?"])[-1]
        lines += [f"GPU tests: {' '.join(summary.split())[:300]}", ""]
    lines += [
        "| setting | side | step, s | sampling | scoring | update | peak GB | MFU of update | bandwidth of decoding |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in SETTINGS:
        for side, row in results.get(name, {}).items():
            if "error" in row:
                lines.append(f"| {name} | {side} | {' '.join(row['error'].split())[-200:]} | | | | | | |")
                continue
            seconds = " | ".join(f"{row[key]:.3f}" for key in ("total", *vs_trl.PHASES))
            shares = f"{row.get('mfu', 0):.1%} | {row.get('bandwidth_share', 0):.1%}"
            lines.append(f"| {name} | {side} | {seconds} | {row['peak_bytes'] / 1e9:.2f} | {shares} |")
    lines += _small_tables(results)
    return "\n".join(lines) + "\n"


def _small_tables(results: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for part in ("profile", "profile-0.5b"):
        if part not in results:
            continue
        what = part.removeprefix("profile-") if part != "profile" else "a"
        lines += [
            "", f"| profile of {what}, bfloat16 | phase | card, s | operations | launches |", "|---|---|---|---|---|"
        ]  # fmt: skip
        for label, phases in results[part].items():
            if "error" in phases:
                lines.append(f"| {label} | {' '.join(phases['error'].split())[-200:]} | | | |")
                continue
            lines += [
                f"| {label} | {name} | {row['card_seconds']:.4f} | {row['operations']} | "
                f"{sum(row['launches'].values())} |"
                for name, row in phases.items()
            ]
    if memory := results.get("memory"):
        lines += ["", "| memory | predicted, GB | measured, GB |", "|---|---|---|"]
        for label, row in memory.items():
            if "error" in row:
                lines.append(f"| {label} | {' '.join(row['error'].split())[-200:]} | |")
            else:
                lines.append(f"| {label} | {row['predicted'] / 1e9:.2f} | {row['measured'] / 1e9:.2f} |")
    return lines


def run_part(
    name: str, results: dict[str, Any], folder: Path, arguments: argparse.Namespace, budget: Budget
) -> Any:
    """Do one part."""
    is_dry = arguments.dry_run
    if name == "card":
        return measure_card(is_dry)
    if name == "correctness":
        return check_correctness(is_dry, budget)
    setting = TINY_SETTING if is_dry else SETTINGS.get(name.removeprefix("profile-"), SETTINGS["a"])
    setting = setting | {"sides": arguments.sides, "precisions": arguments.precisions}
    if name.startswith("profile"):
        return measure_profile(setting, folder, arguments.out, budget)
    if name == "memory":
        return measure_memory(setting["shape"], folder, budget)
    return measure_setting(name, setting, folder, budget, results.get("card", {}))


def main() -> None:
    """Do the parts in turn and write what was found after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json, gpu.md and profiles"
    )
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, help="of each setting; by default those that tell most"
    )
    parser.add_argument("--precisions", nargs="+", choices=("bfloat16", "float32"), help="both by default")
    parser.add_argument("--minutes", type=float, default=9.5, help="time after which nothing more is started")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU where there is no GPU")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.child:
        print(json.dumps(profile(json.loads(sys.stdin.read()), arguments.out)))
        return
    budget = Budget(60 * arguments.minutes)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in PARTS:
            if name != "card" and name not in arguments.only:
                continue
            start = time.monotonic()
            try:
                results[name] = run_part(name, results, Path(folder), arguments, budget)
            except Exception as error:  # the other parts are still worth having
                results[name] = (
                    {"error": {"error": f"{type(error).__name__}: {error}"}}
                    if name in SETTINGS
                    else {"error": f"{type(error).__name__}: {error}"}
                )
            (arguments.out / "gpu.json").write_text(json.dumps(results, indent=1))
            (arguments.out / "gpu.md").write_text(table(results))
            print(f"{name}: {time.monotonic() - start:.0f} s, {budget.left():.0f} s left", flush=True)
    print((arguments.out / "gpu.md").read_text())


if __name__ == "__main__":
    main()
