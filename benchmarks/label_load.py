"""Many raters at once on the comparison page's server, and whether each acknowledged judgement is in the store, once.

python benchmarks/label_load.py [--raters 20] [--seconds 60] [--think 0.05] [--pairs 20000] [--kill]

The server is a process of its own on this machine, with a fresh SQLite store. A rater is a thread with a connection
that stays open: it is shown a pair, thinks for a time drawn from 0 to twice --think seconds, sends a judgement, and is
shown the next pair in the answer; now and then it reloads, or sends a judgement twice. With --kill the server is killed
(SIGKILL) half-way and started again on the same store, while raters send what was not acknowledged again, under the
same key. Exits with 1 where a judgement was lost, changed or counted twice. Latencies are of requests that were
answered, as raters see them, on a machine that they share with the server.
"""

import argparse
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from klimb.feedback.records import Candidate
from klimb.feedback.server.serve import ServeOptions, serve
from klimb.feedback.store.store import Store

SAYS = ("left", "right", "tie", "both_bad", "skip")
RELOADS, TWICE = 0.1, 0.02  # how often a rater reloads, and sends a judgement twice
WORDS = ("the", "of", "it", "was", "that", "with", "this", "from", "not", "all", "people", "because")


@dataclass
class Work:
    """What one rater did.

    Attributes:
        rater: Its name.
        acknowledged: Pair, what was said and the key, by the number that the server gave the judgement.
        seconds: Of each answered request, by method.
        num_retries: Requests that were not answered and sent again.
        problems: What should not have happened.
    """

    rater: str
    acknowledged: dict[int, tuple[int, str, str]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"GET": [], "POST": []})
    num_retries: int = 0
    problems: list[str] = field(default_factory=list)


def fill_store(where: Path, num_pairs: int) -> None:
    """Make a store of pairs of a chat's usual length."""
    generator = random.Random(0)  # noqa: S311

    def words(count: int) -> str:
        return " ".join(generator.choices(WORDS, k=count))

    with Store.open(where) as store:
        store.add_pairs(
            (
                f"{number}: {words(20)}",
                Candidate(words(80), {"model": "a"}),
                Candidate(words(80), {"model": "b"}),
            )
            for number in range(num_pairs)
        )


def start_server(where: Path, port: int) -> subprocess.Popen[bytes]:
    """Start this file as a server and wait until it answers."""
    command = [sys.executable, __file__, "--serve", str(where), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.05)
    raise SystemExit("the server did not start")


def request(client: httpx.Client, work: Work, method: str, path: str, body: Any = None) -> httpx.Response:
    """Send until it is answered, as the page does."""
    while True:
        start = time.perf_counter()
        try:
            answer = client.request(method, path, json=body) if body is not None else client.get(path)
        except httpx.TransportError:
            work.num_retries += 1
            time.sleep(0.2)
            continue
        if answer.status_code < 500:
            work.seconds[method].append(time.perf_counter() - start)
            return answer
        work.num_retries += 1
        time.sleep(0.2)


def rate(address: str, work: Work, think: float, until: float) -> None:
    """Judge one pair after the other until the time is over or nothing is left."""
    generator = random.Random(work.rater)  # noqa: S311
    with httpx.Client(base_url=address, timeout=60) as client:
        request(client, work, "POST", "/api/rater", {"name": work.rater})
        state = request(client, work, "GET", "/api/next").json()
        while time.monotonic() < until:
            if generator.random() < RELOADS:
                state = request(client, work, "GET", "/api/next").json()
            question = state["question"]
            if question is None:
                return
            time.sleep(generator.uniform(0, 2 * think))
            said = {
                "pair_id": question["pair_id"],
                "preferred": generator.choice(SAYS),
                "key": f"{generator.getrandbits(128):032x}",
                "seconds": think,
                "shown": question["shown"],
            }
            answer = request(client, work, "POST", "/api/judgements", said)
            state = answer.json()
            if answer.status_code != 200:
                work.problems.append(f"{answer.status_code}: {state['error']}")
                continue
            number = state["saved"]
            if number in work.acknowledged:
                work.problems.append(f"judgement {number} was acknowledged for two keys")
            work.acknowledged[number] = (said["pair_id"], said["preferred"], said["key"])
            if generator.random() < TWICE:
                again = request(client, work, "POST", "/api/judgements", said).json()
                if again.get("saved") != number:
                    work.problems.append(f"the same key again was {again.get('saved')}, not {number}")


def compare(works: list[Work], store: Store) -> list[str]:
    """Tell what differs between what was acknowledged and what the store holds."""
    problems = [f"{work.rater}: {problem}" for work in works for problem in work.problems]
    held = {judgement.id: judgement for judgement in store.judgements()}
    acknowledged = Counter(number for work in works for number in work.acknowledged)
    problems += [
        f"judgement {number} was acknowledged twice" for number, times in acknowledged.items() if times > 1
    ]
    problems += [f"judgement {number} was never acknowledged" for number in held.keys() - acknowledged.keys()]
    for work in works:
        for number, (pair_id, preferred, _) in work.acknowledged.items():
            judgement = held.get(number)
            if judgement is None:
                problems.append(f"{work.rater}: judgement {number} of pair {pair_id} is lost")
                continue
            right = "second" if judgement.shown_left == "first" else "first"
            said = {"left": judgement.shown_left, "right": right}.get(preferred, preferred)
            if (judgement.rater, judgement.pair_id, judgement.preferred) != (work.rater, pair_id, said):
                problems.append(f"{work.rater}: judgement {number} of pair {pair_id} was changed")
    twice = Counter((judgement.rater, judgement.pair_id) for judgement in held.values())
    problems += [
        f"{rater} judged pair {pair_id} twice" for (rater, pair_id), times in twice.items() if times > 1
    ]
    opinions = Counter(judgement.pair_id for judgement in held.values() if judgement.preferred != "skip")
    problems += [
        f"pair {pair_id} has {times} judgements, 1 was wanted"
        for pair_id, times in opinions.items()
        if times > 1
    ]
    return problems


def show(works: list[Work], seconds: float) -> None:
    """Print how many judgements there were, and how long requests took."""
    num_judgements = sum(len(work.acknowledged) for work in works)
    num_retries = sum(work.num_retries for work in works)
    rate_of_all = num_judgements / seconds
    print(
        f"{num_judgements:,} judgements of {len(works)} raters in {seconds:.1f} s: {rate_of_all:.1f} a second"
    )
    print(f"{num_retries:,} requests were not answered and sent again")
    for method in ("POST", "GET"):
        times = [1000 * value for work in works for value in work.seconds[method]]
        hundredths = statistics.quantiles(times, n=100, method="inclusive")
        print(
            f"{method:<4} {len(times):>7,} requests, ms: p50 {hundredths[49]:.1f}, p99 {hundredths[98]:.1f}, "
            f"max {max(times):.1f}"
        )


def load(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Run raters against a server and return what went wrong."""
    where = folder / "feedback.db"
    fill_store(where, arguments.pairs)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start_server(where, port)
    try:
        works = [Work(f"rater {number}") for number in range(arguments.raters)]
        start = time.monotonic()
        until = start + arguments.seconds
        threads = [
            threading.Thread(
                target=rate, args=(f"http://127.0.0.1:{port}", work, arguments.think, until), daemon=True
            )
            for work in works
        ]
        for thread in threads:
            thread.start()
        if arguments.kill:
            time.sleep(arguments.seconds / 2)
            server.send_signal(signal.SIGKILL)
            server.wait()
            print("killed the server")
            server = start_server(where, port)
        for thread in threads:
            thread.join()
        show(works, time.monotonic() - start)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    with Store.open(where, must_exist=True) as store:
        return compare(works, store)


def main() -> None:
    """Run it, and exit with 1 where a judgement was lost or counted twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--think", type=float, default=0.05, help="mean seconds between a pair and its judgement"
    )
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--kill", action="store_true", help="kill the server half-way and start it again")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        with Store.open(arguments.serve) as store:
            serve(store, ServeOptions(port=arguments.port))
        return
    with tempfile.TemporaryDirectory(prefix="klimb-load-") as folder:
        problems = load(arguments, Path(folder))
    print("\n".join(problems[:20]) or "every acknowledged judgement is in the store, once, as it was sent")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
