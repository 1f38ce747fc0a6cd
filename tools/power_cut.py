"""Cut the power of a disk that exists on paper only, at many instants, and see what is left of klimb's promises.

python tools/power_cut.py [--only store|run] [--judgements 201] [--steps 6] [--cuts 600] [--mixtures 4] [--seed 0]

Two promises are put to the test. A judgement that the feedback server has answered with 200 outlives a loss of power;
and so does a checkpoint that a run has written, while at any other instant the run can go on from an older one.
`klimb label`, judged over HTTP, and `klimb train` run under strace; the folder is built as each cut may leave it
(paper_disk.py), and klimb opens it. Exit code 1 on any loss.
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paper_disk import Disk, Tally, cut
from tiny import make_data, make_model
from traced import Event, UnknownCallError, escaped, read_trace, trace


class Judgements:
    """Each judgement that was acknowledged is in the store: its number, and the note that came with it."""

    def __init__(self, notes: dict[int, str]) -> None:
        self._notes = notes

    def hear(self, said: bytes, disk: Disk) -> int | None:
        """The number in an answer of the server's."""
        del disk
        found = re.search(rb'\{"saved":(\d+)', said)
        return int(found[1]) if found else None

    def find(self, folder: Path) -> dict[int, str] | Exception:
        """Notes by number."""
        from klimb.feedback.store.store import Store

        try:
            with Store.open(folder / "feedback.db") as store:
                found = {judgement.id: judgement.note for judgement in store.judgements()}
            with sqlite3.connect(folder / "feedback.db") as connection:
                (said,) = connection.execute("PRAGMA integrity_check").fetchone()
            connection.close()
        except Exception as error:  # whatever it is, the store is not open
            return error
        return found if said == "ok" else ValueError(said)

    def lack(self, found: dict[int, str] | Exception, promised: Sequence[int]) -> str | None:
        """Numbers that are missing, or stand for another judgement."""
        if isinstance(found, Exception):
            return f"the store cannot be opened: {found!r}"
        lost = [number for number in promised if found.get(number) != self._notes[number]]
        return f"{len(lost)} of {len(promised)} acknowledged judgements are gone: {lost}" if lost else None


class Checkpoints:
    """A run can go on from the last checkpoint that was written or a newer one, whose files are what was written."""

    def __init__(self) -> None:
        self._files: dict[int, dict[str, str]] = {}

    def hear(self, said: bytes, disk: Disk) -> int | None:
        """How many updates the checkpoint is of that is said to be written."""
        found = re.search(rb"klimb wrote step-(\d+)\n", said)
        if found is None:
            return None
        place = f"run/checkpoints/step-{found[1].decode()}/"
        state = disk.state("everything", random.Random())  # noqa: S311  nothing is left to chance
        self._files[int(found[1])] = {
            path.removeprefix(place): hashlib.sha256(content or b"").hexdigest()
            for path, content in state.items()
            if path.startswith(place)
        }
        return int(found[1])

    def find(self, folder: Path) -> tuple[int, dict[str, str]] | Exception:
        """Updates after which the run goes on, and SHA-256 of that checkpoint's files."""
        from klimb.config.train import TrainConfig
        from klimb.training.storage.folder import RunFolder
        from klimb.training.storage.resume import plan_resumption

        run = RunFolder(folder / "run")
        try:
            if not (run.path / "config.json").is_file():
                RunFolder.require_free(run.path)
                return 0, {}
            found = plan_resumption(replace(TrainConfig.from_dict(run.read_config()), out=run.path))
            if found.step == 0:
                return 0, {}
            checkpoint = found.checkpoint or run.open_checkpoint(run.checkpoint_steps()[-1])
        except Exception as error:  # whatever it is, the run cannot go on
            return error
        files = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.path.iterdir()
        }
        return checkpoint.num_updates, files

    def lack(self, found: tuple[int, dict[str, str]] | Exception, promised: Sequence[int]) -> str | None:
        """What keeps the run from going on where it should."""
        if isinstance(found, Exception):
            return f"the run cannot go on: {found!r}"
        step, files = found
        if step < max(promised, default=0):
            return f"the run goes on after {step} updates; a checkpoint of {max(promised)} had been written"
        if step and files != self._files.get(step, files):
            return f"the checkpoint of {step} updates is not what was written"
        return None


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


def cut_store(folder: Path, num_judgements: int, prelude: str = "", **plan: int) -> Tally:
    """Put the first promise to the test; 0 judgements are one that is sent twice."""
    root = folder / ("store" if num_judgements else "again")
    root.mkdir(parents=True)
    if num_judgements:
        events, notes = record_judging(root, folder, num_judgements, prelude)
    else:
        events, notes = record_resending(root, folder, prelude)
    tally = cut(root, events, Judgements(notes), **plan)
    if not max(num_judgements, 1) == len(notes) <= tally.num_promised:
        raise UnknownCallError(f"{len(notes)} answers came, and {tally.num_promised} are in the trace")
    return tally


def cut_run(folder: Path, num_steps: int, killed_for: str = "", prelude: str = "", **plan: int) -> Tally:
    """Put the second promise to the test."""
    root = folder / f"training-{killed_for}"
    root.mkdir(parents=True)
    events = record_training(root, folder, num_steps, killed_for, prelude)
    tally = cut(root, events, Checkpoints(), **plan)
    if tally.num_promised <= (0 if killed_for else num_steps):
        raise UnknownCallError(
            f"{num_steps} steps were made, and {tally.num_promised} checkpoints are in the trace"
        )
    return tally


def _show(what: str, tally: Tally) -> int:
    print(
        f"{what}: {tally.num_promised} promised in {tally.num_calls:,} calls; power cut at {tally.num_cuts:,} "
        f"instants, {tally.num_states:,} states of the disk, {tally.num_distinct:,} different; "
        f"lost in {len(tally.losses):,}",
        flush=True,
    )
    for line in tally.losses[:10]:
        print(f"  {line}")
    return len(tally.losses)


def main() -> int:
    """Run the test and return an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("store", "run"), help="one of the two promises")
    parser.add_argument("--judgements", type=int, default=201, help="a multiple of 3")
    parser.add_argument("--steps", type=int, default=6, help="of the run, each with a checkpoint")
    parser.add_argument(
        "--cuts", type=int, default=600, help="instants for each program; 0: after every call"
    )
    parser.add_argument("--mixtures", type=int, default=4, help="states by chance for each cut")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if shutil.which("strace") is None:
        print("strace is needed: apt-get install strace")
        return 2
    plan = {"num_cuts": options.cuts, "num_mixtures": options.mixtures, "seed": options.seed}
    num_losses = 0
    with tempfile.TemporaryDirectory(prefix="klimb-power-") as name:
        if options.only != "run":
            num_losses += _show("judgements", cut_store(Path(name), options.judgements, **plan))
            num_losses += _show("a judgement sent again after a kill", cut_store(Path(name), 0, **plan))
        for killed_for in ("", "run", f"step-{options.steps:06d}") if options.only != "store" else ():
            what = f"checkpoints, killed for {killed_for}" if killed_for else "checkpoints"
            num_losses += _show(what, cut_run(Path(name), options.steps, killed_for, **plan))
    print("nothing was lost" if num_losses == 0 else "SOMETHING WAS LOST")
    return 1 if num_losses else 0


if __name__ == "__main__":
    sys.exit(main())
