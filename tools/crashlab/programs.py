"""klimb's programs under strace: a feedback server with raters, and a training run, each killed where asked."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.crashlab.tiny import make_data, make_model
from tools.crashlab.trace import Event, UnknownCallError, escaped, read_trace, trace


def klimb(prelude: str, *arguments: object) -> list[str]:
    """The command `klimb`, before which Python does something else."""
    program = f"import sys\n{prelude}\nfrom klimb.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", program, *map(str, arguments)]


@dataclass
class Rater:
    """Someone who judges pairs over HTTP, and sends a judgement again that got no answer."""

    name: str
    told: dict[int, str] = field(default_factory=dict)  # notes of what was acknowledged, by its number
    unanswered: dict[str, Any] = field(default_factory=dict)

    def judge(self, port: int, num_judgements: int) -> None:
        """Judge so many pairs, or as many as the server answers before it dies."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": "application/json"}

        def ask(method: str, path: str, body: Any = None) -> dict[str, Any]:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {content}")
            headers["Cookie"] = answer.headers.get("Set-Cookie", headers.get("Cookie", "")).split(";")[0]
            return content

        try:
            ask("POST", "/api/rater", {"name": self.name})
            question = {} if self.unanswered else ask("GET", "/api/next")["question"]
            for _ in range(num_judgements):
                if not self.unanswered:
                    key, pair = f"{self.name}-{len(self.told):08}", question["pair_id"]
                    self.unanswered = {"pair_id": pair, "preferred": "tie", "key": key, "note": key}
                answer = ask("POST", "/api/judgements", self.unanswered)
                self.told[answer["saved"]] = self.unanswered["note"]
                question, self.unanswered = answer["question"], {}
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()


_MAKE = """
from klimb.feedback.records import Candidate
from klimb.feedback.store.store import Store
with Store.open(sys.argv[1]) as store:
    store.add_pairs((f"prompt {i}", Candidate(f"a {i}"), Candidate(f"b {i}")) for i in range(int(sys.argv[2])))
sys.exit()
"""
_TELL = """
import os
from klimb.training.storage.folder import RunFolder
save = RunFolder.save_checkpoint
def save_and_tell(*arguments):
    path = save(*arguments)
    os.write(2, f"klimb wrote {path.name}\\n".encode())
    return path
RunFolder.save_checkpoint = save_and_tell
"""
_DIE = """
import os, signal
sync = os.fsync
def sync_or_die(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if os.path.exists(os.path.join(path, "NAME")):
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)
os.fsync = sync_or_die
"""


def record_judging(
    root: Path, folder: Path, num_judgements: int, prelude: str = ""
) -> tuple[list[Event], dict[int, str]]:
    """Let three raters judge pairs of a new store in `root`; the server is killed on the way.

    Returns what was done to files, and the note of each judgement that was acknowledged by its number.
    """
    server = Server(root / "feedback.db", folder, prelude)
    server.make(num_judgements + 3)  # one more for each, to be asked about last
    raters = [Rater(name) for name in ("anna", "bob", "carla")]
    for kill_at in (f"fdatasync:{2 + num_judgements // 6}", ""):
        server.serve(raters, num_judgements // 3, kill_at)
        if kill_at and sum(len(rater.told) for rater in raters) == num_judgements:
            raise UnknownCallError("the server was not killed")
    return server.events(), {number: note for rater in raters for number, note in rater.told.items()}


def record_resending(root: Path, folder: Path, prelude: str = "") -> tuple[list[Event], dict[int, str]]:
    """Let the server be killed as it syncs the only judgement there is to make, which is sent again to the next.

    At which of its syncs that is, a server tells that is not killed.
    """
    (folder / "whole").mkdir()
    server = Server(folder / "whole" / "feedback.db", folder, prelude)
    server.make(1)
    calls = server.serve([Rater("anna")], 1).split(escaped(b'{"saved":'))[0].splitlines()
    syncs = [line.split()[0] for line in calls if " fdatasync(" in line]
    server, rater = Server(root / "feedback.db", folder, prelude), Rater("anna")
    server.make(1)
    server.serve([rater], 1, f"fdatasync:{syncs.count(syncs[-1])}")  # strace counts those of each thread
    if rater.told or not rater.unanswered:
        raise UnknownCallError("the server was not killed as it wrote the judgement")
    server.serve([rater], 1)
    return server.events(), rater.told


class Server:
    """`klimb label` under strace, again and again with the same store."""

    def __init__(self, store: Path, folder: Path, prelude: str) -> None:
        self._store, self._folder, self._prelude = store, folder, prelude
        self._traces: list[Path] = []

    def make(self, num_pairs: int) -> None:
        """Make the store."""
        command = klimb(self._prelude + _MAKE, self._store, num_pairs)
        subprocess.run(trace(command, self._next_trace()), check=True)

    def serve(self, raters: Sequence[Rater], num_judgements: int, kill_at: str = "") -> str:
        """Serve until every rater has judged so many in all, or until it is killed; returns the trace."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = klimb(self._prelude, "label", "--store", self._store, "--port", port, "--no-browser")
        traced = trace(command, self._next_trace(), kill_at)
        with Program(traced, self._folder / "log.txt") as program:
            program.await_port(port)
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda rater: rater.judge(port, num_judgements - len(rater.told)), raters))
        return self._traces[-1].read_text()

    def events(self) -> list[Event]:
        """All that was done to files."""
        return [event for file in self._traces for event in read_trace(file.read_text().splitlines())]

    def _next_trace(self) -> Path:
        self._traces.append(self._folder / f"{self._store.parent.name}-{len(self._traces)}.trace")
        return self._traces[-1]


class Program:
    """A program under strace, which is told to stop at the end."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def await_port(self, port: int) -> None:
        """Wait until it listens."""
        while self._process.poll() is None:
            try:
                return socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise RuntimeError("the server did not start")

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)  # strace itself takes no notice
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise


def record_training(
    root: Path, folder: Path, num_steps: int, killed_for: str = "", prelude: str = ""
) -> list[Event]:
    """Train a tiny model with a checkpoint after each step; the run's folder is `run` in `root`.

    It is killed as the folder is synced in which the name `killed_for` is new, if any, and begun or resumed again.
    """
    make_model(folder / "model")
    prompts, rules = make_data(folder)
    few = "--prompts-per-step 2 --completions-per-prompt 2 --eval-completions-per-prompt 1 --max-new-tokens 4"
    often = f"--num-steps {num_steps} --checkpoint-every 1 --eval-every 2 --keep-checkpoints 2 --no-preflight"
    best = ["--judges", f"{rules}:one_e", "--keep-best", f"{rules}:one_e"]
    what = [
        "--model",
        folder / "model",
        "--prompts",
        prompts,
        "--reward",
        f"{rules}:vowels",
        "--lora-rank",
        4,
    ]
    begin, run = [*what, *best, *few.split(), *often.split(), "--out", root / "run"], root / "run"
    deaths = [_DIE.replace("NAME", killed_for), ""] if killed_for else [""]
    files = [folder / f"{root.name}-{number}.trace" for number in range(len(deaths))]
    for file, death in zip(files, deaths, strict=True):
        options = ["--resume", run] if (run / "config.json").is_file() else begin
        command = trace(klimb(prelude + _TELL + death, "train", *options), file)
        with (folder / "log.txt").open("ab") as log:
            done = subprocess.run(command, check=False, stdout=log, stderr=log)
        if (done.returncode != 0) != bool(death):
            raise UnknownCallError(
                f"the run ended with {done.returncode}: {(folder / 'log.txt').read_text()[-2000:]}"
            )
    return [event for file in files for event in read_trace(file.read_text().splitlines())]
