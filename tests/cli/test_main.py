"""The command line: what people type and what they see."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from klimb.cli.main import main

STEP = {
    "weights": np.array([1.0, 1.0]),
    "rewards": np.array([1.0, 1.0]),
    "policy_log_probs": np.array([-1.5, -1.5]),
    "ref_log_probs": np.array([-1.5, -1.5]),
    "log_prob_grads": np.array([[0.5, -0.5], [0.5, -0.5]]),
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def update(*more):
    return main(["update", "step.npz", "--beta", "1.0", "--lr", "0.1", "-o", "weights.npy", *more])


def test_update_computes_the_definition(capsys):
    np.savez("step.npz", **STEP)
    assert update() == 0
    np.testing.assert_array_equal(np.load("weights.npy"), [1.05, 0.95])
    assert capsys.readouterr().out == "weights.npy: 2 weights, float64\n"


def test_update_keeps_float32():
    np.savez("step.npz", **{name: array.astype(np.float32) for name, array in STEP.items()})
    assert update() == 0
    assert np.load("weights.npy").dtype == np.float32


def test_update_that_fails_leaves_the_old_weights(capsys):
    np.savez("step.npz", **(STEP | {"rewards": np.array([1.0])}))
    np.save("weights.npy", np.array([7.0]))
    assert update() == 2
    assert "policy_log_probs: expected shape (1,), got (2,)" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load("weights.npy"), [7.0])


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda: None, "step.npz: cannot read: No such file or directory"),
        (lambda: Path("step.npz").write_text("nonsense"), "step.npz: not a .npz file"),
        (lambda: Path("step.npz").touch(), "step.npz: not a .npz file"),
        (lambda: np.savez("step.npz", weights=np.ones(1)), "step.npz: lacks rewards, policy_log_probs"),
        (
            lambda: np.savez("step.npz", **(STEP | {"rewards": np.array([None, 1])}), allow_pickle=True),
            "step.npz: an array in it cannot be read",
        ),
    ],
)
def test_update_of_a_file_that_cannot_be_read_says_why(prepare, message, capsys):
    prepare()
    assert update() == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def train_arguments(model_folder, prompts_file, *more):
    return [
        *["train", "--model", str(model_folder), "--prompts", str(prompts_file), "--reward", "vader"],
        *["--prompts-per-step", "2", "--num-steps", "1", "--max-new-tokens", "3", *more],
    ]


@pytest.mark.usefixtures("drawn_figures")
def test_train_writes_a_run(model_folder, prompts_file, tmp_path, capsys):
    assert main(train_arguments(model_folder, prompts_file, "--out", "runs/x")) == 0
    assert "</text>" in (tmp_path / "runs/x/report.html").read_text()
    assert "runs/x/report.html" in capsys.readouterr().out


@pytest.mark.usefixtures("drawn_figures")
def test_report_makes_the_page_again(model_folder, prompts_file, tmp_path, capsys):
    main(train_arguments(model_folder, prompts_file, "--out", "runs/x"))
    report = tmp_path / "runs/x/report.html"
    first = report.read_bytes()
    report.unlink()
    assert main(["report", "runs/x"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/x/report.html"
    assert report.read_bytes() == first


@pytest.mark.parametrize("named", [["--config", "run.toml"], ["--config=run.toml"]])
def test_options_come_from_a_file_and_the_command_line_goes_first(
    named, model_folder, prompts_file, tmp_path
):
    (tmp_path / "run.toml").write_text(
        f'model = "{model_folder}"\nprompts = "{prompts_file}"\nreward = ["vader"]\nout = "runs/from-file"\n'
        "prompts_per_step = 2\nnum_steps = 3\nmax_new_tokens = 3\nlr = 5e-4\nadam_betas = [0.8, 0.9]\n"
        "trust_remote_code = false\nreward_weights = [2.0]\n"
    )
    assert main(["train", *named, "--num-steps", "1", "--out=runs/y"]) == 0
    options = json.loads((tmp_path / "runs/y/config.json").read_text())
    assert (options["num_steps"], options["lr"], options["adam_betas"]) == (1, 5e-4, [0.8, 0.9])
    assert options["reward_weights"] == [2.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "./nowhere"], "klimb: ./nowhere: no such folder or file"),
        (["--reward", "nonsense"], "klimb: reward nonsense: unknown"),
        (["--prompts", "nowhere.jsonl"], "klimb: nowhere.jsonl: no such file"),
        (["--beta", "-1"], "klimb: beta: expected a finite number of at least 0"),
        (["--config"], "--config: expected a TOML file after it"),
        (["--config", "nowhere.toml"], "nowhere.toml: cannot read the options: No such file"),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_code_2(
    change, message, model_folder, prompts_file, tmp_path, capsys
):
    options = dict(
        zip(*[iter(train_arguments(model_folder, prompts_file, "--out", "runs/x")[1:])] * 2, strict=True)
    )
    if len(change) == 2:
        options[change[0]] = change[1]
        change = []
    arguments = ["train", *[part for pair in options.items() for part in pair], *change]
    try:
        code = main(arguments)
    except SystemExit as stop:  # what the parser of the command line itself refuses
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_a_base_install_says_what_is_missing(prompts_file):
    code = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError('hidden', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from klimb.cli.main import main\n"
        f"sys.exit(main({train_arguments('m', prompts_file, '--out', 'o')!r}))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert (
        finished.stderr == "klimb: this needs the train extra, which has torch: pip install 'klimb[train]'\n"
    )


def test_debug_shows_the_traceback(prompts_file):
    with pytest.raises(FileNotFoundError):
        main([*train_arguments("./nowhere", prompts_file, "--out", "runs/x"), "--debug"])


def test_a_failing_reward_says_where_the_weights_are(model_folder, prompts_file, tmp_path, capsys):
    (tmp_path / "judge.py").write_text(
        "calls = 0\ndef f(completions, **_):\n    global calls\n    calls += 1\n"
        "    return [1.0] * len(completions) if calls < 3 else [1.0]\n"
    )
    arguments = train_arguments(
        model_folder, prompts_file, "--out", "runs/x", "--num-steps", "4", "--no-preflight"
    )
    arguments[arguments.index("vader")] = "judge.py:f"
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "klimb: reward judge.py:f: expected 8 numbers, one per completion, got 1" in error
    assert "steps taken: 1; what was written stays in runs/x" in error
    assert (tmp_path / "runs/x/checkpoints/step-000001/state.json").is_file()


def test_python_dash_m_klimb_is_the_command():
    finished = subprocess.run(
        [sys.executable, "-m", "klimb", "--help"], capture_output=True, text=True, check=True
    )
    for verb in ("train", "demo", "update", "report", "label", "compare"):
        assert verb in finished.stdout


def test_label_samples_pairs_and_serves_them(model_folder, prompts_file, monkeypatch, capsys):
    served = []

    def serve(store, *_, **__):
        served.append(store.where)
        while store.progress("", per_pair=1).num_pairs < 6:  # the page is open while pairs are drawn
            time.sleep(0.01)

    monkeypatch.setattr("klimb.pairwise.label.serve_in_browser", serve)
    arguments = ["--model", str(model_folder), "--prompts", str(prompts_file), "--max-new-tokens", "3"]
    assert main(["label", *arguments, "--no-browser"]) == 0
    assert served == ["feedback.db"]
    assert "6 pairs, 6 of them new" in capsys.readouterr().out
    assert main(["label", "--store", "feedback.db"]) == 0
    assert len(served) == 2


def test_compare_writes_a_page_and_says_who_is_better(
    model_folder, make_model, tokenizer, prompts_file, tmp_path, capsys
):
    make_model("llama", vocab_size=len(tokenizer), spread=0.3, seed=5).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    arguments = ["compare", str(model_folder), "other", "--prompts", str(prompts_file), "--by", "vader"]
    assert main([*arguments, "--max-new-tokens", "3", "--completions-per-prompt", "2"]) == 0
    screen = capsys.readouterr().out
    assert "A tiny-llama against B other, on 6 prompts" in screen
    assert "win rate of A" in screen
    assert (tmp_path / "compare.html").is_file()
    assert json.loads((tmp_path / "compare.json").read_text())["judges"][0]["judge"] == "vader"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label"], "klimb: feedback.db: no such store of feedback"),
        (["label", "--model", "m"], "klimb: prompts: expected a file of prompts"),
        (["label", "--prompts", "p.jsonl"], "klimb: model: expected one or two models"),
        (["compare", "a", "b", "--prompts", "p.jsonl"], "klimb: p.jsonl: no such file"),
        (
            ["compare", "a", "b", "--prompts", "p.jsonl", "--out", "x.txt"],
            "expected a name that ends in .html",
        ),
        (["compare", "./a", "--prompts", "p.jsonl"], "the other model, in the same forms"),
    ],
)
def test_bad_input_of_label_and_compare_is_one_clear_message(arguments, message, tmp_path, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:  # what the parser of the command line itself refuses
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message.lower() in error.lower()
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--model", "m", "--prompts", "p", "--reward", "vader", "--out", "o", "--lr", "-1"],
            "klimb: lr: ",
        ),
        (
            ["reward", "train", "--feedback", "f", "--base", "b", "--out", "o", "--num-members", "0"],
            "klimb: num_members: ",
        ),
        (["label", "--num-pairs-per-prompt", "0"], "klimb: num_pairs_per_prompt: "),
    ],
)
def test_a_wrong_option_is_answered_before_pytorch_is_loaded(arguments, message):
    code = (
        "import sys; from klimb.cli.main import main; code = main(sys.argv[1:]); "
        "sys.exit(code + 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(message)
