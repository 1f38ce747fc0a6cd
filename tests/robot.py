"""A robot that judges on the comparison page by a stated rule, over HTTP, as a browser does."""

import contextlib
import socket
import threading
import time

import httpx


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def prefers(left, right):
    """The rule: what comes later in the dictionary; a tie where they look the same."""
    return "tie" if left == right else "left" if left > right else "right"


class Robot(threading.Thread):
    """Judges what the page asks until it is told that all is over, the server is gone, or enough is judged."""

    def __init__(self, port, most=10_000, rule=prefers):
        super().__init__(daemon=True)
        self.port, self.most, self.rule = port, most, rule
        self.num_judged, self.last, self.asked = 0, "", []
        self.has_left, self.pause = threading.Event(), 0.1  # seconds between two looks at the page

    def run(self):
        deadline = time.monotonic() + 120
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20) as client:
            while time.monotonic() < deadline and self.num_judged < self.most and not self.has_left.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    if self._go_on(client):
                        return
                time.sleep(self.pause)

    def _go_on(self, client):
        state = client.get("/api/next").json()
        question = state["question"]
        self.pause = 0.0 if question else 0.1
        if question is None:
            self.last = state["rest"]["note"]
            return state["rest"]["stage"] == "over"
        said = {
            "pair_id": question["pair_id"],
            "shown": question["shown"],
            "preferred": self.rule(question["left"], question["right"]),
            "key": f"robot-{question['pair_id']:06}",
        }
        if client.post("/api/judgements", json=said).status_code == 200:
            self.num_judged += 1
            self.asked.append(question["pair_id"])
        return False
