"""Which models are found, and what is drawn of them."""

import shutil
from datetime import datetime

import pytest
from transformers import AutoTokenizer

from klimb import KlimbError
from klimb.config.pairwise import CompareConfig, LabelConfig
from klimb.core.rng import Stream
from klimb.data.prompts import read_prompts
from klimb.pairwise.candidates import (
    NamedModel,
    draw_label_parts,
    draw_to_compare,
    draw_to_label,
    find_models,
    label_parts,
    moment_of,
)
from klimb.policy.policy import Policy, SampleKey
from klimb.training.storage.folder import RunFolder


def label_config(models, prompts, **changes):
    options = {"model": tuple(map(str, models)), "prompts": prompts, "max_new_tokens": 4}
    return LabelConfig(**(options | changes))


def draw_pairs(models, prompts, **changes):
    config = label_config(models, prompts, **changes)
    return draw_to_label(find_models(config.model), read_prompts(prompts), config)


def test_a_run_is_its_model(run_folder):
    (found,) = find_models([str(run_folder)])
    assert found.source == str(run_folder / "model")
    assert (found.name, found.run) == (str(run_folder), run_folder)


def test_a_folder_a_file_or_a_hub_name_is_itself(model_folder):
    folder, hub = find_models([str(model_folder), "owner/model"])
    assert (folder.source, folder.run) == (str(model_folder), None)
    assert hub.source == "owner/model"


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/step-000004"])
def test_a_part_of_a_run_is_no_model(run_folder, part):
    with pytest.raises(
        KlimbError, match=r"a part of a run, not a model; name the run's folder instead, .*x$"
    ):
        find_models([str(run_folder / part)])


def test_a_run_that_was_stopped_has_no_model(run_folder):
    shutil.rmtree(run_folder / "model")
    with pytest.raises(KlimbError, match="this run has no model"):
        find_models([str(run_folder)])


def test_one_model_under_two_names_is_refused(run_folder):
    with pytest.raises(KlimbError, match="are the same model"):
        find_models([str(run_folder), str(run_folder / "model")])
    with pytest.raises(KlimbError, match="are the same model"):
        find_models(["owner/model", "owner/model"])


def test_two_completions_of_one_model_make_a_pair(model_folder, prompts_file):
    pairs, num_same = draw_pairs([model_folder], prompts_file, num_pairs_per_prompt=2)
    assert len(pairs) + num_same == 12
    assert all(first.text != second.text for _, first, second in pairs)
    first, second = pairs[0][1:]
    assert first.source == {
        "model": str(model_folder),
        "temperature": 1.0,
        "max_new_tokens": 4,
        "seed": 0,
        "stream": "label",
        "step": 0,
        "prompt_index": 0,
        "draw": 0,
    }
    assert second.source == first.source | {"draw": 1}
    drawn = [str(side.source) for _, *sides in pairs for side in sides]
    assert len(set(drawn)) == len(drawn)


def test_the_same_command_draws_the_same_pairs_and_another_seed_others(model_folder, prompts_file):
    once = draw_pairs([model_folder], prompts_file)
    assert draw_pairs([model_folder], prompts_file) == once
    assert draw_pairs([model_folder], prompts_file, seed=1) != once


def test_two_models_give_one_completion_each(model_folder, other_folder, prompts_file):
    pairs, _ = draw_pairs([model_folder, other_folder], prompts_file)
    assert {(first.source["model"], second.source["model"]) for _, first, second in pairs} == {
        (str(model_folder), str(other_folder))
    }


def test_models_that_are_alike_are_labelled_with_numbers_of_their_own(model_folder, prompts_file, tmp_path):
    twin = shutil.copytree(model_folder, tmp_path / "twin")
    pairs, num_same = draw_pairs([model_folder, twin], prompts_file)
    assert len(pairs) > num_same


def test_pairs_of_the_same_text_are_dropped_and_counted(model_folder, prompts_file):
    pairs, num_same = draw_pairs([model_folder], prompts_file, temperature=1e-4)
    assert (pairs, num_same) == ([], 6)


def test_models_are_compared_with_the_same_random_numbers(model_folder, prompts_file, tmp_path):
    twin = shutil.copytree(model_folder, tmp_path / "twin")
    config = CompareConfig(
        model_a=str(model_folder), model_b=str(twin), prompts=prompts_file, max_new_tokens=4
    )
    rows = read_prompts(prompts_file)
    a, b = (draw_to_compare(model, rows, config) for model in find_models([str(model_folder), str(twin)]))
    assert [[c.text for c in row] for row in a.candidates] == [[c.text for c in row] for row in b.candidates]
    assert a.num_tokens == b.num_tokens
    assert all(1 <= count <= 4 for row in a.num_tokens for count in row)


def test_what_is_drawn_at_once_changes_nothing(model_folder, prompts_file, monkeypatch):
    expected = draw_pairs([model_folder], prompts_file)
    monkeypatch.setattr("klimb.pairwise.candidates._AT_ONCE", 2)
    places = []
    config = label_config([model_folder], prompts_file)
    rows = read_prompts(prompts_file)
    found = draw_to_label(
        find_models(config.model), rows, config, lambda starts: (places.append(s) or s for s in starts)
    )
    assert found == expected
    assert places == [0, 1, 2, 3, 4, 5]


def test_a_prompt_that_does_not_fit_is_named(model_folder, write_jsonl):
    prompts = write_jsonl([{"prompt": "short"}, {"prompt": "x" * 80}])
    with pytest.raises(KlimbError, match=r"prompts\.jsonl:2: the prompt has 80 tokens"):
        draw_pairs([model_folder], prompts)


def test_models_are_compared_on_what_training_judges_them_by(model_folder, prompts_file):
    config = CompareConfig(model_a=str(model_folder), model_b="b", prompts=prompts_file, max_new_tokens=4)
    rows = read_prompts(prompts_file)
    drawn = draw_to_compare(find_models([str(model_folder)])[0], rows, config)
    policy = Policy.load(model_folder)
    completions = policy.sample(
        [policy.encode(row.prompt) for row in rows],
        4,
        max_new_tokens=4,
        key=SampleKey(0, 0, list(range(6)), Stream.EVALUATE),
    )
    assert [side.text for sides in drawn.candidates for side in sides] == policy.decode(completions)


def test_a_template_that_writes_the_time_reads_that_of_the_run(run_folder, write_jsonl, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(run_folder / "model")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y %H:%M:%S') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(run_folder / "model")
    RunFolder(run_folder).write_fingerprints({"<clock>": {"moment": "2026-11-26T09:08:07"}})
    prompts = write_jsonl([{"prompt": [{"role": "user", "content": "hi"}]}])
    read, config = [], label_config([run_folder], prompts)
    usual = Policy.sample
    monkeypatch.setattr(
        Policy, "sample", lambda self, ids, *rest, **more: read.append(ids) or usual(self, ids, *rest, **more)
    )
    said = []
    draw_to_label(find_models(config.model), read_prompts(prompts), config, iter, said.append)
    assert tokenizer.decode(read[0][0]).startswith("26 Nov 2026 09:08:07")
    assert said == [f"  the chat template of {run_folder} writes the time: it reads 2026-11-26 09:08:07"]


def test_of_models_that_are_no_runs_it_is_the_present_time(model_folder):
    before = datetime.now().replace(microsecond=0)
    assert before <= moment_of(find_models([str(model_folder)])) <= datetime.now()


def test_the_first_parts_to_label_are_small_and_every_prompt_is_in_one(prompts_file):
    config = LabelConfig(model=("m",), prompts=prompts_file, num_pairs_per_prompt=2)
    model = NamedModel("m", "m")
    parts = label_parts([model], 40, config)  # four completions of each prompt
    assert [len(part) for part in parts] == [2, 4, 8, 16, 10]
    assert [index for part in parts for index in part] == list(range(40))
    many = LabelConfig(model=("m",), prompts=prompts_file, num_pairs_per_prompt=100)
    assert [len(part) for part in label_parts([model], 3, many)] == [1, 1, 1]


def test_progress_counts_prompts_part_by_part(model_folder, prompts_file):
    seen = []

    def watch(places):
        for place in places:
            seen.append(place)
            yield place

    config = LabelConfig(
        model=(str(model_folder),), prompts=prompts_file, num_pairs_per_prompt=2, max_new_tokens=2
    )
    models = find_models(config.model)
    rows = read_prompts(prompts_file)
    draws = draw_label_parts(models, rows, config, label_parts(models, len(rows), config), watch)
    counts = [len(seen) for _ in draws]
    assert counts == [1, 3]  # of six prompts two are in the first part; the second is under way
    assert seen == list(range(6))
