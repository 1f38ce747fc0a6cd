"""The documentation as a site: it builds without a warning, asks nobody else for anything, and its tables are true."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml

from klimb.config.names import meant_by
from klimb.config.train import TrainConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
OPTIONS = {field.name for field in fields(TrainConfig)}


def pages_of(nav):
    for entry in nav:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from pages_of(target)


def test_every_page_is_in_the_navigation_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages_of(config["nav"])) == [page.name for page in PAGES]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    """MkDocs resolves every internal link and anchor, and every cross-reference of a docstring."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) == len(PAGES) + 1  # and the one for what is not found
    for page in pages:
        html = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", html):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{page.name}: {tag}"
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), (
            style
        )


def prose(page):
    """Lines that are neither code nor tables, with their numbers."""
    is_code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code and not line.lstrip().startswith("|"):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped_at_120_characters(page):
    too_long = [number for number, line in prose(page) if len(line) > 120]
    assert not too_long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_list_begins_after_an_empty_line_without_which_the_site_shows_none(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    item = re.compile(r"[-*] |\d+\. ")
    for number, line in prose(page):
        before = lines[number - 2] if number > 1 else ""
        if item.match(line) and before and not before.startswith(("#", " ")):
            assert item.match(before), f"line {number}"


def rows(page, heading):
    """The cells of the table under a heading, without its first two lines."""
    section = re.search(
        rf"^## {heading}\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE
    )
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def names_in(cell):
    return re.findall(r"`([\w.]+)`", cell)


_TRL = """
beta cache_implementation cast_lm_head_to_fp32 chat_template_kwargs delta disable_dropout
ds3_gather_for_generation entropy_coef entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target
epsilon epsilon_high generation_batch_size generation_kwargs importance_sampling_level learning_rate
log_completions log_completions_hub_repo log_multimodal log_unique_prompts loss_type
mask_truncated_completions max_completion_length max_tool_calling_iterations min_p model_init_kwargs
multi_objective_aggregation normalize_advantages num_completions_to_print num_generations
num_generations_eval num_iterations off_policy_mask_threshold pad_to_multiple_of ref_model_mixup_alpha
ref_model_sync_steps remove_unused_columns repetition_penalty reward_clip_range reward_weights
router_aux_loss_coef sapo_temperature_neg sapo_temperature_pos scale_rewards shuffle_dataset
steps_per_generation sync_ref_model temperature top_entropy_quantile top_k top_p
transformers_continuous_batching_config trust_remote_code use_adaptive_entropy use_bias_correction_kl
use_transformers_continuous_batching use_transformers_paged use_vllm vespo_k_neg vespo_k_pos
vespo_lambda_neg vespo_lambda_pos vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port
vllm_importance_sampling_cap vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_max_model_length vllm_mode
vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
vllm_structured_outputs_regex vllm_tensor_parallel_size
"""
"""The fields that TRL 1.16 adds to transformers' TrainingArguments in RLOOConfig and GRPOConfig."""

_RULES = """
def with_log(completions, log_metric, log_extra, **_):
    log_metric("longest", max(map(len, completions)))
    log_extra("characters", [len(text) for text in completions])
    return [len(text) for text in completions]
"""


@pytest.mark.parametrize("measures_kl", [True, False])
def test_the_page_of_metrics_has_every_key_of_a_run_and_no_other(options_in, run, tmp_path, measures_kl):
    (tmp_path / "logging_rules.py").write_text(_RULES)
    changes = {"beta": 0.0}
    if measures_kl:
        reward = (f"{tmp_path / 'logging_rules.py'}:with_log",)
        changes = {"reward": reward, "objective": "ppo", "num_minibatches": 2, "num_epochs": 1}
    config = options_in(tmp_path, eval_every=2, **changes)
    run(config)
    for name in ("metrics", "completions", "evaluations"):
        lines = [json.loads(line) for line in (config.out / f"{name}.jsonl").read_text().splitlines()]
        documented = {names_in(row[0])[0]: row[3] for row in rows("metrics.md", f"{name}.jsonl")}
        always = {key for key, when in documented.items() if when == "always"}
        found = set().union(*lines)
        assert found <= documented.keys()
        assert all(always <= line.keys() for line in lines)
        if measures_kl:
            assert documented.keys() - found <= {"opening"}


def test_the_page_of_files_has_every_file_of_a_run(options_in, run, tmp_path):
    config = options_in(tmp_path, eval_every=2, judges=("vader",), keep_best="vader")
    run(config)
    documented = (DOCS / "files.md").read_text()
    for path in config.out.iterdir():
        assert f"`{path.name}`" in documented or f"`{path.name}/" in documented, path.name
    best = json.loads((config.out / "best.json").read_text())
    assert best.keys() == {name for row in rows("files.md", "best.json") for name in names_in(row[0])}
    for file in (config.out / "checkpoints" / "step-000004").iterdir():
        assert f"`{file.name}`" in documented


@pytest.mark.parametrize(
    ("page", "headings", "column"),
    [
        ("glossary.md", ["Options"], 0),
        (
            "from-trl.md",
            ["Options of both configurations", "GRPOConfig alone", "Options from TrainingArguments"],
            1,
        ),
    ],
)
def test_what_the_tables_call_options_of_klimb_are_its_options(page, headings, column):
    for heading in headings:
        for row in rows(page, heading):
            named = [
                name for name in names_in(row[column]) if name not in ("adamw", "sgd", "constant", "linear")
            ]
            named = [
                name for name in named if name not in ("cosine", "chat_template_kwargs") and "." not in name
            ]
            assert set(named) <= OPTIONS, row


def test_the_page_for_those_who_come_from_trl_has_every_option_of_its_two_configurations():
    page = (DOCS / "from-trl.md").read_text()
    listed = [
        name for line in page.splitlines() if line.startswith("|") for name in names_in(line.split("|")[1])
    ]
    assert set(_TRL.split()) <= set(listed)
    assert len(set(listed)) == len(listed), "an option stands there twice"


def test_the_names_that_the_glossary_marks_are_understood_as_it_says():
    marked = [
        (name, names_in(row[0])[0])
        for row in rows("glossary.md", "Options")
        for cell in row[1:]
        for name in re.findall(r"`(\w+)` ●", cell)
    ]
    assert len(marked) > 25
    for name, option in marked:
        assert meant_by(name, OPTIONS) == option, name


@pytest.mark.slow
def test_the_examples_of_the_first_page_and_of_the_api_page_run(model_folder, tmp_path, monkeypatch):
    """In order and in one namespace, on a tiny model, with short runs."""
    monkeypatch.chdir(tmp_path)
    pairs = [
        {"prompt": f"say {word} {number}", "chosen": " good good", "rejected": " bad"}
        for word in ("one", "two", "three", "four", "five", "six")
        for number in range(6)
    ]
    Path("preferences.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    namespace = {"np": np}
    text = (DOCS / "index.md").read_text() + (DOCS / "api.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) > 8
    for number, example in enumerate(examples):
        quick = example.replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', repr(str(model_folder)))
        quick = re.sub(
            r"num_steps=(\d+)", lambda found: f"num_steps={int(found[1]) // 10 + int(found[1]) % 10}", quick
        )
        quick = re.sub(r"max_new_tokens=\d+", "max_new_tokens=3", quick)
        exec(compile(quick, f"example {number + 1}", "exec"), namespace)  # noqa: S102
