"""Pairs are drawn while people judge: each once, the same as in one go, and what goes wrong is told."""

import os
import threading

import pytest

from klimb import KlimbError
from klimb.config.pairwise import LabelConfig
from klimb.data.prompts import read_prompts
from klimb.errors import DivergedError
from klimb.feedback.records import Answer
from klimb.feedback.store.store import Store
from klimb.pairwise import candidates
from klimb.pairwise.candidates import draw_to_label, find_models
from klimb.pairwise.label import label
from klimb.policy.policy import Policy


class Gate:
    """Lets so many parts be drawn, notes which, and meets the next as told."""

    def __init__(self, num_open):
        self.num_open, self.drawn, self.opened, self.error = num_open, [], threading.Event(), None

    def pass_through(self, indices):
        if len(self.drawn) >= self.num_open:
            if self.error is not None:
                raise self.error
            assert self.opened.wait(60)
        self.drawn.append(tuple(indices))


@pytest.fixture
def gate(monkeypatch):
    """Each of six prompts is a part of its own, and none is drawn unless the gate lets it."""
    gate, usual = Gate(10**6), candidates._draw_part

    def draw_part(policy, model, rows, config, each, key):
        gate.pass_through(key.prompts)
        return usual(policy, model, rows, config, each, key)

    monkeypatch.setattr(candidates, "_AT_ONCE", 1)
    monkeypatch.setattr(candidates, "_draw_part", draw_part)
    return gate


@pytest.fixture
def config(model_folder, prompts_file, tmp_path):
    return LabelConfig(
        model=(str(model_folder),),
        prompts=prompts_file,
        max_new_tokens=4,
        store=str(tmp_path / "feedback.db"),
        learn_along=False,
    )


def judge_all(store):
    while (question := store.next_question("ann")) is not None:
        store.judge(Answer(question.pair_id, "ann", "first", f"key-{question.pair_id:06}"))


def served(meet):
    """A server of which `meet` does all, given the store and the notes that the page would show."""

    def serve(store, options, say, open_browser, until, notes):  # noqa: ARG001  as the real one is called
        meet(store, notes)

    return serve


def wait_for(is_so):
    done = threading.Event()
    for _ in range(2000):
        if is_so():
            return
        done.wait(0.02)
    pytest.fail("it did not come")


def in_store(config):
    """The pairs, in the order in which they are asked about."""
    with Store.open(config.store) as store:
        judge_all(store)
        return [(said.prompt, said.first, said.second) for said in store.judgements()]


def in_one_go(config):
    return draw_to_label(find_models(config.model), read_prompts(config.prompts), config)[0]


def test_the_first_pairs_are_judged_before_all_are_drawn(config, gate):
    gate.num_open, seen = 2, []

    def meet(store, notes):
        wait_for(lambda: store.progress("").num_pairs == 2)
        judge_all(store)
        wait_for(lambda: notes.drawn() == "up to 4 more are being drawn")
        seen.append(notes.rest())
        gate.opened.set()
        wait_for(lambda: notes.rest()[1] != "coming")
        seen.append(
            (store.progress("ann").num_pairs, store.progress("ann").num_own, notes.drawn(), *notes.rest())
        )

    said = []
    label(config, said.append, served(meet))
    saved = "All that you said is saved."
    assert seen[0] == (f"{saved} 2 pairs are drawn so far; up to 4 more come by themselves.", "coming")
    assert seen[1] == (6, 2, "", saved, "open")
    assert "6 pairs, 6 of them new" in said


@pytest.mark.parametrize("num_models", [1, 2])
def test_the_pairs_are_those_that_are_drawn_in_one_go(config, gate, other_folder, num_models):
    models = (*config.model, str(other_folder))[:num_models]
    config = LabelConfig(**vars(config) | {"model": models, "num_pairs_per_prompt": 2})
    expected = in_one_go(config)
    label(config, lambda _: None, served(lambda _, notes: wait_for(lambda: notes.rest()[1] == "open")))
    assert len(gate.drawn) == 2 * 6 * num_models
    assert in_store(config) == expected


def test_a_second_start_draws_what_is_missing_and_nothing_twice(config, gate, monkeypatch):
    gate.num_open, said = 2, []

    def press_ctrl_c(store, _notes):
        wait_for(lambda: store.progress("").num_pairs == 2)
        judge_all(store)
        gate.opened.set()
        raise KeyboardInterrupt

    label(config, said.append, served(press_ctrl_c))
    assert "finishing the pairs that are being drawn; Ctrl-C leaves them out" in said
    num_drawn = len(gate.drawn)
    assert num_drawn < 6
    assert f"{6 - num_drawn} pairs were not drawn; the same command draws them" in said
    label(config, said.append, served(lambda _, notes: wait_for(lambda: notes.rest()[1] == "open")))
    assert f"6 pairs, {6 - num_drawn} of them new" in said
    assert sorted(gate.drawn) == [(index,) for index in range(6)]
    monkeypatch.setattr(Policy, "load", lambda *_, **__: pytest.fail("a model is loaded to draw nothing"))
    label(config, said.append, served(lambda *_: None))
    assert said[-2] == "6 pairs, 0 of them new"
    monkeypatch.undo()
    monkeypatch.setattr(candidates, "_AT_ONCE", 1)
    assert in_store(config) == in_one_go(config)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"temperature": 0.5}, {"num_pairs_per_prompt": 2}, {"max_new_tokens": 5}],
)
def test_other_options_are_another_draw(config, gate, change):
    wait = served(lambda _, notes: wait_for(lambda: notes.rest()[1] == "open"))
    label(config, lambda _: None, wait)
    label(LabelConfig(**vars(config) | change), lambda _: None, wait)
    assert len(gate.drawn) == 12


def test_a_model_whose_files_changed_draws_anew(config, gate, model_folder):
    wait = served(lambda _, notes: wait_for(lambda: notes.rest()[1] == "open"))
    label(config, lambda _: None, wait)
    weights = next(model_folder.glob("*.safetensors"))
    times = weights.stat()
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    label(config, lambda _: None, wait)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(gate.drawn) == 12
    assert len(in_store(config)) == 6


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DivergedError("/home/ann/secret-model: not numbers"), "/home/ann/secret-model: not numbers"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    ],
)
def test_what_goes_wrong_is_told_on_the_terminal_and_on_the_page_and_raised_at_the_end(
    config, gate, error, words
):
    gate.num_open, gate.error, said, shown = 2, error, [], []

    def meet(store, notes):
        wait_for(lambda: notes.drawn().startswith("no more"))
        judge_all(store)
        shown.extend([notes.drawn(), *notes.rest()])

    with pytest.raises(type(error)) as raised:
        label(config, said.append, served(meet))
    assert raised.value is error
    assert f"drawing pairs failed: {words}" in said
    assert shown == [
        "no more pairs come: drawing them failed",
        "All that you said is saved. No more pairs come, because drawing them failed. The terminal in which klimb runs "
        "says why.",
        "open",
    ]
    assert len(in_store(config)) == 2


def test_what_goes_wrong_before_the_first_pair_is_raised_and_nothing_is_served(config, gate):
    gate.num_open, gate.error = 0, DivergedError("not numbers")
    with pytest.raises(KlimbError, match="not numbers"):
        label(config, lambda _: None, served(lambda *_: pytest.fail("served")))


def test_a_store_keeps_a_part_whole_with_its_note(tmp_path):
    from klimb.feedback.records import Candidate

    pair = ("why", Candidate("a"), Candidate("b"))
    with Store.open(tmp_path / "feedback.db") as store:
        assert store.drawn("d" * 64) is None
        with pytest.raises(KlimbError, match="the same text"):
            store.add_drawn("d" * 64, [pair, ("why", Candidate("a"), Candidate("a"))], 0)
        assert (store.drawn("d" * 64), store.progress("").num_pairs) == (None, 0)
        assert [store.add_drawn("d" * 64, [pair], 3) for _ in range(2)] == [1, 0]
        assert store.drawn("d" * 64) == (1, 3)
