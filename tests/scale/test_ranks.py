"""Ranks that are processes: the same bytes as one process, and what happens when one fails, is killed or hangs."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from klimb.scale.launch import threads_of_rank

pytestmark = pytest.mark.timeout(900)

KLIMB = [sys.executable, "-m", "klimb"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
BROKEN = """
import os, resource, time

rank, calls = os.environ.get("RANK"), 0

def count(completions):
    global calls
    calls += 1
    return [c.count("e") + 0.1 * len(c) for c in completions]

def slow(completions, **_):
    time.sleep(0.1)
    return count(completions)

def dies_on_rank_1(completions, **_):
    if calls > 3 and rank == "1":
        raise MemoryError("no room")
    return count(completions)

def fails_on_rank_1(completions, **_):
    if calls > 3 and rank == "1":
        raise ValueError("out of order")
    return count(completions)

def hangs_on_rank_1(completions, **_):
    if calls > 3 and rank == "1":
        time.sleep(600)
    return count(completions)

def fills_the_disk_of_rank_0(completions, **_):
    if calls > 3 and rank == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # no file may grow beyond
    return count(completions)

def grows(completions, **_):
    return [1e30 * (1 + value) if calls > 3 else value for value in count(completions)]
"""


def arguments(config, *more):
    options = [
        part
        for name, value in config.to_dict().items()
        if value is not None and value != [] and not isinstance(value, bool)
        for part in [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    ]
    return ["train", "--no-preflight", *options, *more]


def start(command, **environment):
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, seconds=200):
    """Its output and exit code; nothing of it may be left."""
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return said, process.returncode


def processes_of(folder):
    """The ranks that run in a folder, by number."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = dict(
                part.split(b"=", 1) for part in (place / "environ").read_bytes().split(b"\0") if b"=" in part
            )
            if b"RANK" in variables and str(folder).encode() in (place / "cmdline").read_bytes().split(b"\0"):
                found[int(variables[b"RANK"])] = int(place.name)
    return found


def wait_for_steps(config, process, count):
    """Wait until so many steps are recorded."""
    file = config.out / "metrics.jsonl"
    for _ in range(2000):
        if file.exists() and file.read_text().count("\n") >= count:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("the run takes no steps")


@pytest.fixture
def config(make_options, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    return make_options(
        prompts_per_step=4,
        num_slices=2,
        num_steps=12,
        checkpoint_every=2,
        reward=(f"{tmp_path / 'broken.py'}:slow",),
    )


def rewarded(config, name):
    return replace(config, reward=(config.reward[0].replace("slow", name),))


def on_two(config, *more, **environment):
    return start([*KLIMB, *arguments(config, "--ranks", "2", *more)], **environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({"lora_rank": 2, "kl_target": 0.5, "kl_horizon": 30, "eval_every": 3, "keep_best": "reward"}, "2"),
        ({"num_trainable_layers": 1, "micro_batch_size": 2}, "4"),
        ({"objective": "grpo", "num_minibatches": 2, "num_epochs": 2}, "2"),
        ({"precision": "bfloat16", "top_p": 0.9}, "2"),
    ],
    ids=["adapter", "last layers", "minibatches", "bfloat16"],
)
def test_processes_write_the_bytes_that_one_writes(config, essence, changes, ranks):
    config = replace(config, num_steps=5, num_slices=4, **changes)
    said, code = finish(start([*KLIMB, *arguments(config)]))
    assert code == 0, said
    shared = replace(config, out=config.out.with_name("shared"))
    said, code = finish(start([*KLIMB, *arguments(shared, "--ranks", ranks)]))
    assert code == 0, said
    assert essence(shared.out) == essence(config.out)
    assert said.count("Model ") == 1  # one rank speaks


@pytest.mark.slow
def test_torchrun_starts_ranks_and_a_run_is_resumed_by_one_process(config, essence):
    said, code = finish(start([*KLIMB, *arguments(replace(config, num_steps=4))]))
    assert code == 0, said
    shared = replace(config, out=config.out.with_name("shared"), num_slices=None)
    torchrun = [*TORCHRUN, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "klimb"]
    said, code = finish(start([*torchrun, *arguments(replace(shared, num_steps=2))]))
    assert code == 0, said
    said, code = finish(start([*KLIMB, "train", "--resume", str(shared.out), "--num-steps", "4"]))
    assert code == 0, said
    assert essence(shared.out) == essence(config.out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails_on_rank_1", "out of order"),
        ("dies_on_rank_1", "MemoryError: no room"),
        ("grows", "the gradient is not finite"),
        ("fills_the_disk_of_rank_0", "cannot be written to: [Errno 27] File too large"),
    ],
)
def test_an_error_on_one_rank_ends_all_and_leaves_a_run_that_resumes(config, name, message):
    said, code = finish(on_two(rewarded(config, name)))
    assert code == 2, said
    assert message in said
    assert "klimb train --resume" in said
    assert "Traceback" not in said
    assert said.count("resume from there with") == 1
    assert not processes_of(config.out)
    said, code = finish(
        start([*KLIMB, *arguments(rewarded(config, name), "--num-steps", "1"), "--from-step", "1"])
    )
    assert "from_step: only used with --resume; add it, or leave" in said


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_after_the_timeout(config):
    process = on_two(replace(rewarded(config, "hangs_on_rank_1"), rank_timeout=8))
    wait_for_steps(config, process, 2)
    said, code = finish(process, 120)
    assert code == 2, said
    assert "rank 0 of 2: rank 1 did not come within 8 s, in call" in said
    assert "the gather of rollouts" in said
    assert not processes_of(config.out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "to"),
    [(signal.SIGTERM, 143, "launcher"), (signal.SIGINT, 130, "launcher"), (signal.SIGTERM, 143, 1)],
)
def test_a_signal_finishes_the_step_and_the_run_resumes_to_the_same_bytes(config, essence, signum, code, to):
    process = on_two(config)
    wait_for_steps(config, process, 3)
    os.kill(process.pid if to == "launcher" else processes_of(config.out)[to], signum)
    said, found = finish(process)
    assert found == code, said
    assert re.search(r"stopped after \d+ \w+; resume with: klimb train --resume", said)
    assert not processes_of(config.out)
    said, found = finish(start([*KLIMB, "train", "--resume", str(config.out), "--ranks", "2"]))
    assert found == 0, said
    straight = replace(config, out=config.out.with_name("straight"))
    finish(start([*KLIMB, *arguments(straight)]))
    assert essence(config.out) == essence(straight.out)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_at_once(config, rank):
    process = on_two(config)
    wait_for_steps(config, process, 3)
    os.kill(processes_of(config.out)[rank], signal.SIGKILL)
    said, code = finish(process, 120)
    assert code in (2, 137), said
    assert f"rank {rank} was ended by SIGKILL" in said
    assert not processes_of(config.out)


@pytest.mark.slow
def test_killed_ranks_are_started_again_and_end_with_the_same_bytes(config, essence):
    """Kill a random rank at a random moment, several times in one run."""
    config, chance = replace(config, num_steps=40), random.Random(5)  # noqa: S311  moments of kills
    process = on_two(config, "--max-restarts", "20")
    ended = []
    reader = threading.Thread(target=lambda: ended.append(finish(process, 800)))
    reader.start()
    kills = 0
    while reader.is_alive() and kills < int(os.environ.get("KLIMB_TEST_KILLS", "4")):
        time.sleep(chance.uniform(2, 12))
        if victim := processes_of(config.out).get(chance.randrange(2)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills += 1
    reader.join()
    ((said, code),) = ended
    assert code == 0, said
    assert kills
    assert not processes_of(config.out)
    straight = replace(config, out=config.out.with_name("straight"))
    finish(start([*KLIMB, *arguments(straight)]))
    assert essence(config.out) == essence(straight.out)


@pytest.mark.slow
def test_ranks_end_with_their_launcher(config):
    process = on_two(replace(config, num_steps=200))
    wait_for_steps(config, process, 3)
    os.kill(process.pid, signal.SIGKILL)
    finish(process, 120)  # the ranks have its output open until they end
    assert not processes_of(config.out)
    assert (config.out / "checkpoints").is_dir()


@pytest.mark.slow
def test_a_port_that_is_in_use_is_named(config):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ranks = {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        said, code = finish(start([*KLIMB, *arguments(config)], **ranks))
    assert code == 2, said
    assert f"rank 0 of 2: port {port} of 127.0.0.1 is in use, perhaps by another run; choose another" in said


@pytest.mark.slow
def test_ranks_that_are_not_all_there_are_told_so(config):
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    said, code = finish(start([*KLIMB, *arguments(config)], **ranks))
    assert code == 2, said
    assert (
        "MASTER_ADDR, MASTER_PORT is not set: start ranks with klimb train --ranks, or with torchrun" in said
    )


def test_threads_are_divided_among_ranks():
    assert threads_of_rank(1) >= threads_of_rank(2) >= 1
    assert threads_of_rank(10_000) == 1


@pytest.mark.slow
def test_the_slurm_script_of_the_docs_starts_ranks_on_two_machines(config, tmp_path, essence):
    """Under a `srun` that runs its command twice at the same time on this machine."""
    page = Path(__file__).parent.parent.parent / "docs" / "scale.md"
    script = next(block for block in page.read_text().split("```\n") if block.startswith("#!/bin/bash"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = script.replace(":29500", f":{free.getsockname()[1]}").replace("=8", "=1")
    options = replace(config, num_steps=2, num_slices=4)
    lines = [
        f"{name} = {json.dumps(value)}"
        for name, value in options.to_dict().items()
        if value is not None and value != [] and name != "preflight"
    ]
    (tmp_path / "run.toml").write_text("\n".join([*lines, "preflight = false"]))
    for name, does in {"scontrol": "echo 127.0.0.1", "srun": '"$@" & "$@" & wait -n && wait -n'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(f"cd {tmp_path}\n{script}")
    places = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {"PATH": places, "SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    said, code = finish(start(["/bin/bash", str(tmp_path / "job.sh")], **job), 400)
    assert code == 0, said
    straight = replace(options, out=config.out.with_name("straight"))
    finish(start([*KLIMB, *arguments(straight)]))
    assert essence(config.out) == essence(straight.out)
