"""Ctrl-C and SIGTERM while a run goes on."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from klimb.cli.main import main
from klimb.errors import KlimbError
from klimb.training.signals import RunInterrupted, listening
from klimb.training.storage.folder import RunFolder

BOTH = (signal.SIGINT, signal.SIGTERM)


def handlers():
    return [signal.getsignal(signum) for signum in BOTH]


@pytest.fixture(autouse=True)
def in_the_foreground():
    """Signals as in a shell's foreground: what is started in the background ignores Ctrl-C, as klimb then does."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.fixture
def signalling(make_options, tmp_path):
    """A run whose reward sends signals to its own process when it is called the third time, in the second step."""

    def make(*signums, **changes):
        (tmp_path / "sender.py").write_text(
            "import os\ncalls = 0\ndef f(completions, **_):\n    global calls\n    calls += 1\n"
            f"    for signum in {[int(signum) for signum in signums]} if calls == 3 else []:\n"
            "        os.kill(os.getpid(), signum)\n"
            "    return [float(len(c)) for c in completions]\n"
        )
        return make_options(reward=(f"{tmp_path / 'sender.py'}:f",), **changes)

    return make


@pytest.mark.parametrize("signum", BOTH)
def test_a_signal_finishes_the_step_writes_a_checkpoint_and_says_how_to_go_on(
    signum, signalling, run, essence, tmp_path, capfd
):
    before = handlers()
    config = signalling(signum, num_steps=5, checkpoint_every=4)
    with pytest.raises(
        RunInterrupted, match="stopped after 2 steps; resume with: klimb train --resume"
    ) as caught:
        run(config)
    assert caught.value.exit_code == 128 + signum
    assert "finishing the step and writing a checkpoint; again to leave at once" in capfd.readouterr().err
    assert handlers() == before
    assert RunFolder.open(config.out).checkpoint_steps() == [2]
    assert len(RunFolder.open(config.out).read("metrics")) == 2
    assert not (config.out / "model").exists()
    assert RunFolder.open(config.out).report.exists()
    with pytest.raises(KlimbError, match=f"is a run: resume it with klimb train --resume {config.out}"):
        run(config)

    signalling(num_steps=5, checkpoint_every=4)
    whole = make_whole(config, tmp_path)
    run(whole)
    run(config, resume=True, accept=list(config.reward))
    assert essence(config.out) == essence(whole.out)


def make_whole(config, tmp_path):
    return type(config)(**(vars(config) | {"out": tmp_path / "whole"}))


def test_a_second_signal_leaves_at_once(signalling, run):
    config = signalling(signal.SIGINT, signal.SIGTERM)
    before = handlers()
    with pytest.raises(RunInterrupted, match="stopped at once; what was written stays") as caught:
        run(config)
    assert caught.value.exit_code == 143
    assert handlers() == before
    assert len(RunFolder.open(config.out).read("metrics")) == 1
    assert RunFolder.open(config.out).checkpoint_steps() == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_of_the_command_tells_of_the_signal(signum, code, signalling, capsys):
    config = signalling(signum)
    arguments = ["--model", config.model, "--prompts", str(config.prompts), "--reward", *config.reward]
    sizes = ["--prompts-per-step", "2", "--max-new-tokens", "3", "--no-preflight", "--out", str(config.out)]
    assert main(["train", *arguments, *sizes]) == code
    error = capsys.readouterr().err
    assert f"stopped after 2 steps; resume with: klimb train --resume {config.out}" in error
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_from_outside_ends_the_real_command(signum, code, make_options):
    config = make_options()
    command = [
        sys.executable,
        "-m",
        "klimb",
        "train",
        "--model",
        config.model,
        "--prompts",
        str(config.prompts),
    ]
    command += [
        "--reward",
        *config.reward,
        "--out",
        str(config.out),
        "--num-steps",
        "100000",
        "--no-preflight",
    ]
    command += ["--prompts-per-step", "2", "--max-new-tokens", "3", "--checkpoint-every", "100000"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics, deadline = config.out / "metrics.jsonl", time.monotonic() + 120
    try:
        while not (metrics.is_file() and metrics.stat().st_size):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signum)
        _, error = running.communicate(timeout=100)
    finally:
        running.kill()
    assert running.returncode == code
    assert f"resume with: klimb train --resume {config.out}" in error
    assert "Traceback" not in error
    folder = RunFolder.open(config.out)
    assert folder.checkpoint_steps() == [len(folder.read("metrics"))]


def test_a_run_in_another_thread_leaves_signals_alone(make_options, run):
    config = make_options(num_steps=1)
    before, seen = handlers(), []
    thread = threading.Thread(target=lambda: (run(config), seen.append(handlers())))
    thread.start()
    thread.join()
    assert seen == [before]
    assert handlers() == before
    assert (config.out / "report.html").is_file()


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening("") as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert not interruption.was_asked_for
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_come_back_after_an_error():
    before = handlers()

    def fail():
        with listening(""):
            assert handlers() != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert handlers() == before


def test_an_interruption_is_no_error_that_a_script_passes_over():
    assert issubclass(RunInterrupted, KeyboardInterrupt)
    assert not issubclass(RunInterrupted, Exception)
