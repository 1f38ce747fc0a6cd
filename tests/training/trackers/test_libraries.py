"""trackio, W&B and MLflow as they are: each in an environment of its own, its own files read back."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "KLIMB_TEST_ENVIRONMENTS" not in os.environ,
        reason="installs a tracker's library for minutes: KLIMB_TEST_ENVIRONMENTS=1 runs it",
    ),
]

SOURCES = Path(__file__).parents[3] / "src"
ENVIRONMENT_WITH = {"trackio": "trackio==0.43.0", "wandb": "wandb==0.31.0", "mlflow": "mlflow==3.17.2"}

_TRACKIO = """
import json, os, pathlib, sqlite3
db = sqlite3.connect(pathlib.Path(os.environ["TRACKIO_DIR"]) / "klimb.db")
rows = db.execute("select run_name, step, metrics from metrics order by id").fetchall()
points = [(step, json.loads(found)) for _, step, found in rows]
tables = [found[name]["_value"] for _, found in points for name in found if name == "completions/before"]
config = json.loads(db.execute("select config from configs").fetchone()[0])
print(json.dumps({
    "runs": len({run for run, _, _ in rows}),
    "train": [[step, found["train/reward"]] for step, found in points if "train/reward" in found],
    "eval": [step for step, found in points if "eval/reward" in found],
    "table": [row["prompt"] for row in tables[0]],
    "beta": config["beta"],
    "report": [kind for (kind,) in db.execute("select type from artifacts")],
}))
"""

_WANDB = """
import glob, json, struct
from wandb.proto import wandb_internal_pb2 as messages

def records(file):
    data, place, whole = open(file, "rb").read(), 7, b""  # after the header, blocks of 32 KiB with pieces in them
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place:place + 7])
        whole += data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield messages.Record.FromString(whole)
            whole = b""

files = sorted(glob.glob("run/wandb/offline-run-*/*.wandb"))
found = [record for file in files for record in records(file)]
history = [{(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in r.history.item}
           for r in found if r.WhichOneof("record_type") == "history"]
table = json.load(open(glob.glob("run/wandb/offline-run-*/files/media/table/completions/before*.json")[0]))
runs = [r.run for r in found if r.WhichOneof("record_type") == "run"]
config = {i.key: json.loads(i.value_json) for run in runs for i in run.config.update}
print(json.dumps({
    "runs": len({run.run_id for run in runs}),
    "train": [[row["step"], row["train/reward"]] for row in history if "train/reward" in row],
    "eval": [row["step"] for row in history if "eval/reward" in row],
    "table": [row[1] for row in table["data"]],
    "beta": config["beta"],
    "report": [kind for kind in {r.artifact.type for r in found if r.WhichOneof("record_type") == "artifact"}
               | {r.request.log_artifact.artifact.type for r in found} if kind == "report"],
}))
"""

_MLFLOW = """
import json
from mlflow import MlflowClient
client = MlflowClient()
experiment = client.get_experiment_by_name("klimb")
runs = client.search_runs([experiment.experiment_id])
run = runs[0]
table = json.load(open(client.download_artifacts(run.info.run_id, "completions/before.json")))
assert run.info.status == "FINISHED"
print(json.dumps({
    "runs": len(runs),
    "train": sorted([m.step, m.value] for m in client.get_metric_history(run.info.run_id, "train/reward")),
    "eval": sorted(m.step for m in client.get_metric_history(run.info.run_id, "eval/reward")),
    "table": [row[1] for row in table["data"]],
    "beta": float(run.data.params["beta"]),
    "report": ["report" for file in client.list_artifacts(run.info.run_id) if file.path == "report.html"],
}))
"""
_READERS = {"trackio": _TRACKIO, "wandb": _WANDB, "mlflow": _MLFLOW}


@pytest.fixture(scope="session")
def python_with(tmp_path_factory):
    """Make an environment with a tracker's library, which sees this one's packages behind its own."""

    def make(tracker):
        if named := os.environ.get(f"KLIMB_TEST_PYTHON_{tracker.upper()}"):
            return named
        folder = tmp_path_factory.mktemp(tracker) / "environment"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(folder / "bin" / "python")
        found = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        (Path(found.stdout.strip()) / "behind.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
        package = ENVIRONMENT_WITH[tracker]
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", package], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"{package} cannot be installed: {done.stderr.decode()[-200:]}")
        return python

    return make


# Its process is killed once, in the step after the first three.
_REWARD = """
import os, pathlib, signal, time

def letters(completions, **_):
    metrics, killed = pathlib.Path("run/metrics.jsonl"), pathlib.Path("killed")
    if metrics.exists() and len(metrics.read_text().splitlines()) == 3 and not killed.exists():
        killed.touch()
        time.sleep(2)  # trackio writes what it was given twice a second
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(c)) for c in completions]
"""


@pytest.mark.parametrize("tracker", list(ENVIRONMENT_WITH))
def test_its_own_files_have_each_point_once_after_a_kill_and_a_resume(
    tracker, python_with, model_folder, tmp_path
):
    (tmp_path / "rules.py").write_text(_REWARD)
    prompts = ["one", "a longer one", "three"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    python = python_with(tracker)
    environment = os.environ | {
        "PYTHONPATH": str(SOURCES),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }

    def klimb(*arguments, expected=0):
        done = subprocess.run(
            [python, "-m", "klimb", "train", *arguments],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        assert "is left out" not in done.stderr

    killed = -signal.SIGKILL
    klimb(
        "--model", str(model_folder), "--prompts", "prompts.jsonl", "--reward", "rules.py:letters", "--out", "run",
        "--prompts-per-step", "2", "--completions-per-prompt", "2", "--max-new-tokens", "4", "--num-steps", "4",
        "--checkpoint-every", "2", "--eval-every", "2", "--no-preflight", "--track", tracker, expected=killed,
    )  # fmt: skip
    klimb("--resume", "run", "--num-steps", "4")
    klimb("--resume", "run", "--num-steps", "5")
    read = subprocess.run(
        [python, "-c", _READERS[tracker]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout.splitlines()[-1])
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    num_lost = 2 if tracker == "wandb" else 0  # W&B had not written its first 32 KiB
    expected = [[row["step"], pytest.approx(row["reward"])] for row in metrics]
    assert found.pop("train") == expected[num_lost:]
    assert found.pop("eval") == [0, 2, 4, 4, 5, 5][num_lost:]  # where a run ends, twice
    assert set(found.pop("report")) == {"report"}
    assert found == {"runs": 1, "table": prompts, "beta": 0.05}
