"""Event files of TensorBoard, read back by TensorBoard's own reader."""

import json

import pytest

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="the package tensorboard is not installed",
)


def read(folder):
    found = accumulator.EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0}
    )
    return found.Reload()


def points(found, name):
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(name)]


def text(found, name):
    (event,) = found.Tensors(f"{name}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_event_files_have_the_metrics_the_evaluations_the_completions_and_the_options(make_options, run):
    config = make_options(track=("tensorboard",), eval_every=2)
    run(config)
    found = read(config.out)
    metrics = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    for name in ("reward", "kl", "grad_norm", "lr"):
        assert [(row["step"], row[name]) for row in metrics] == points(found, f"train/{name}")
    assert [event.step for event in found.Scalars("eval/reward")] == [0, 2, 4, 4]
    table = text(found, "completions/before").splitlines()
    assert table[0] == "| step | prompt | completion | reward | kl | length | finish_reason |"
    assert table[3].startswith("| 0 | a longer one |")
    assert len(table) == 2 + 6
    assert "| beta | 0.05 |" in text(found, "run/options")
    assert "maximise  E_π[r(y)]" in text(found, "run/objective")
    assert "final/reward_gain" in text(found, "run/report")


def test_a_resumed_run_continues_its_curve_and_has_each_step_once(make_options, run):
    config = make_options(track=("tensorboard",), eval_every=2)
    run(config, cut_at=3)
    assert [event.step for event in read(config.out).Scalars("train/reward")] == [0, 1, 2]
    run(config, resume=True)
    found = read(config.out)
    assert [event.step for event in found.Scalars("train/reward")] == [0, 1, 2, 3]
    assert [event.step for event in found.Scalars("eval/reward")] == [0, 2, 4, 4]
    assert len(list((config.out / "tensorboard").iterdir())) == 2
