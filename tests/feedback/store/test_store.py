"""The store: what is acknowledged is kept, nothing counts twice, nobody loses another's work."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from klimb.errors import AlreadyJudgedError, ArgumentError, StoreError
from klimb.feedback.comparison import Comparison
from klimb.feedback.records import Answer, Candidate, Judgement, Question
from klimb.feedback.store.database import Database
from klimb.feedback.store.schema import VERSION_TABLE, metadata
from klimb.feedback.store.store import Store

CHAT = [{"role": "user", "content": "Wie geht's? \0 🙂"}]


def pair(number, prompt="p"):
    return prompt, Candidate(f"left {number}", {"model": "a"}), Candidate(f"right {number}", {"model": "b"})


def answer(question, rater="ann", preferred="first", key=None, **more):
    return Answer(question.pair_id, rater, preferred, key or f"{rater} {question.pair_id}", **more)


@pytest.fixture
def make_store(database_url):
    """Open the test's store; on SQLite, and on PostgreSQL where it can be started."""
    opened = []

    def make(where=None):
        opened.append(Store.open(where or database_url))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


def test_a_pair_is_asked_about_and_what_is_said_comes_back(store):
    assert store.add_pairs([(CHAT, Candidate("a", {"model": "m", "seed": 1}), Candidate("b\0", {}))]) == 1
    question = store.next_question("ann")
    assert question == Question(question.pair_id, CHAT, "a", "b\0")
    number = store.judge(answer(question, preferred="second", shown_left="second", seconds=1.5, note="hm"))
    (said,) = store.judgements()
    assert said == Judgement(
        id=number, pair_id=question.pair_id, prompt=CHAT, first=Candidate("a", {"model": "m", "seed": 1}),
        second=Candidate("b\0", {}), preferred="second", rater="ann", shown_left="second", seconds=1.5, note="hm",
        judged_at=said.judged_at,
    )  # fmt: skip
    assert store.next_question("ann") is None


def test_the_same_pair_twice_is_one_and_either_way_round(store):
    assert store.add_pairs([pair(1), pair(2), pair(1)]) == 2
    assert store.add_pairs([pair(2), pair(3)]) == 1
    prompt, first, second = pair(1)
    assert store.add_pairs([(prompt, second, first)]) == 0
    assert store.add_pairs([(CHAT, first, second)]) == 1  # of another prompt
    assert store.progress("ann").num_pairs == 4


def test_more_pairs_than_one_query_may_name(store):
    assert store.add_pairs([pair(number, f"p{number % 7}") for number in range(1203)]) == 1203
    assert store.add_pairs([pair(number, f"p{number % 7}") for number in range(1203)]) == 0


def test_equal_completions_make_no_pair_and_nothing_is_added(store):
    with pytest.raises(ArgumentError, match=r"pair 2: its two completions are the same text, 'same'"):
        store.add_pairs(
            [pair(1), ("p", Candidate("same", {"model": "a"}), Candidate("same", {"model": "b"}))]
        )
    assert store.progress("ann").num_pairs == 0


def test_a_question_stays_until_it_is_answered(store):
    store.add_pairs([pair(1), pair(2)])
    first = store.next_question("ann")
    assert store.next_question("ann") == first
    other = store.next_question("bob")
    assert other.pair_id != first.pair_id  # nobody else is asked the same meanwhile
    assert store.next_question("cem") is None
    store.judge(answer(first))
    assert store.next_question("ann") is None  # the other one is being asked


def test_two_judgements_of_a_pair_come_from_two_raters(store):
    store.add_pairs([pair(1)])
    asked = [store.next_question(rater, per_pair=2) for rater in ("ann", "bob", "cem")]
    assert asked[0] == asked[1]
    assert asked[2] is None
    for rater in ("ann", "bob"):
        store.judge(answer(asked[0], rater))
    assert store.next_question("ann", per_pair=3) is None
    assert store.progress("ann", per_pair=2).num_done == 1


def test_a_skipped_pair_goes_to_somebody_else(store):
    store.add_pairs([pair(1)])
    store.judge(answer(store.next_question("ann"), preferred="skip"))
    assert store.next_question("ann") is None
    assert store.next_question("bob") is not None
    assert (store.progress("ann").num_done, store.progress("ann").num_own) == (0, 1)


def test_the_highest_priority_is_asked_first(store):
    store.add_pairs([pair(1), pair(2), pair(3)])
    numbers = {question.first: question.pair_id for question in store.open_questions()}
    store.set_priorities({numbers["left 2"]: 0.5, numbers["left 3"]: 2.0})
    asked = [store.next_question(rater).first for rater in ("ann", "bob", "cem")]
    assert asked == ["left 3", "left 2", "left 1"]
    store.judge(answer(store.next_question("bob"), "bob"))
    assert {question.first for question in store.open_questions()} == {"left 1", "left 3"}


def test_a_judgement_sent_twice_counts_once(store):
    store.add_pairs([pair(1), pair(2)])
    question = store.next_question("ann")
    assert store.judge(answer(question)) == store.judge(answer(question))
    assert len(store.judgements()) == 1
    other = store.next_question("ann")
    with pytest.raises(AlreadyJudgedError, match="belongs to another judgement"):
        store.judge(answer(other, key=answer(question).key))


def test_a_second_judgement_of_a_pair_is_refused_until_the_first_is_undone(store):
    store.add_pairs([pair(1)])
    question = store.next_question("ann")
    store.judge(answer(question, key="k1"))
    with pytest.raises(AlreadyJudgedError, match="undo that judgement"):
        store.judge(answer(question, preferred="second", key="k2"))
    assert store.undo("ann") == question
    assert store.judgements() == []
    store.judge(answer(question, preferred="second", key="k3"))
    assert [said.preferred for said in store.judgements()] == ["second"]
    assert store.judge(answer(question, key="k1"))  # sent again late, it changes nothing
    assert [said.preferred for said in store.judgements()] == ["second"]


def test_undo_takes_ones_own_newest_and_asks_it_again(store):
    store.add_pairs([pair(1), pair(2), pair(3)])
    first = store.next_question("ann")
    store.judge(answer(first))
    second = store.next_question("ann")
    store.judge(answer(second))
    store.judge(answer(store.next_question("bob"), "bob"))
    assert store.undo("ann") == second
    assert store.next_question("ann") == second
    assert store.undo("ann") == first
    assert store.undo("ann") is None
    assert [said.rater for said in store.judgements()] == ["bob"]


def test_no_pair_of_that_number(store):
    with pytest.raises(StoreError, match="there is no pair 7"):
        store.judge(Answer(7, "ann", "first", "k"))
    assert store.question(7) is None


def test_progress_pace_raters_and_agreement_by_hand(store):
    store.add_pairs([pair(1), pair(2), pair(3)])
    assert store.agreement() is None
    said = {"ann": ("first", "second", "skip"), "bob": ("first", "first", "tie")}
    for rater, choices in said.items():
        for seconds, choice in enumerate(choices, start=1):
            question = store.next_question(rater, per_pair=2)
            store.judge(answer(question, rater, choice, seconds=float(seconds)))
    progress = store.progress("ann", per_pair=2)
    assert (progress.num_pairs, progress.num_done, progress.num_own) == (3, 2, 3)
    assert progress.median_seconds == 2.0
    assert [(r.rater, r.num_judgements, r.num_skipped) for r in store.raters()] == [
        ("ann", 3, 1),
        ("bob", 3, 0),
    ]
    agreement = store.agreement()
    # Pairs 1 and 2 have two opinions each: (first, first), (second, first).
    assert (agreement.num_pairs, agreement.share) == (2, 0.5)
    assert agreement.alpha == pytest.approx(0.0, abs=1e-12)


def test_what_was_said_is_what_is_learned_from(store):
    store.add_pairs([pair(number) for number in range(5)])
    for choice in ("first", "second", "tie", "both_bad", "skip"):
        store.judge(answer(store.next_question("ann"), preferred=choice))
    feedback = store.feedback()
    assert [(c.left, c.preferred, c.rater) for c in feedback.comparisons] == [
        ("left 0", "left", "ann"), ("left 1", "right", "ann"), ("left 2", "tie", "ann"),
    ]  # fmt: skip
    assert (feedback.num_rows, feedback.num_skipped) == (5, 2)


def test_imported_comparisons_count_once_and_contradictions_are_named(store):
    said = [
        Comparison("p", "a", "b", "left", "ann", "f:1"),
        Comparison("p", "b", "a", "right", "ann", "f:2"),  # the same, the other way round
        Comparison("p", "a", "b", "right", "ann", "f:3"),
        Comparison("p", "a", "b", "right", "bob", "f:4"),
        Comparison("p", "a", "b", "tie", "", "f:5"),
        Comparison("p", "a", "b", "tie", "", "f:6"),  # whose they are nobody knows: they may be two
    ]
    num_new, refused = store.add_comparisons(said)
    assert num_new == 4
    assert refused == [("f:3", "ann has said otherwise of these two before")]
    assert store.add_comparisons(said) == (0, refused)
    found = [(said.preferred, said.rater) for said in store.judgements()]
    assert sorted(found) == [("first", "ann"), ("second", "bob"), ("tie", ""), ("tie", "")]


def test_twenty_threads_lose_nothing_and_nothing_counts_twice(make_store):
    store = make_store()
    store.add_pairs([pair(number) for number in range(100)])
    acknowledged, failures = [], []

    def work(rater):
        try:
            while (question := store.next_question(rater)) is not None:
                for _ in range(2):  # as a browser that did not hear the answer
                    number = store.judge(answer(question, rater))
                acknowledged.append((number, rater, question.pair_id))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"rater {number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = [(said.id, said.rater, said.pair_id) for said in store.judgements()]
    assert sorted(found) == sorted(acknowledged)
    assert {pair_id for _, _, pair_id in found} == set(range(1, 101))


def _judge_in_a_process(where, rater):
    with Store.open(where) as store:
        while (question := store.next_question(rater)) is not None:
            store.judge(answer(question, rater))


def test_several_programs_share_a_store(make_store, database_url):
    store = make_store()
    store.add_pairs([pair(number) for number in range(30)])
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_judge_in_a_process, args=(database_url, f"rater {number}"))
        for number in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted({said.pair_id for said in store.judgements()}) == list(range(1, 31))


def test_what_was_acknowledged_survives_a_kill(make_store, database_url):
    store = make_store()
    store.add_pairs([pair(number) for number in range(500)])
    program = (
        "import sys\nfrom klimb.feedback.store.store import Store\nfrom klimb.feedback.records import Answer\n"
        "store = Store.open(sys.argv[1])\n"
        "while (q := store.next_question('ann')) is not None:\n"
        "    print(store.judge(Answer(q.pair_id, 'ann', 'first', str(q.pair_id))), flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(database_url)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [int(process.stdout.readline()) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().splitlines() if line.isdigit()]
    found = {said.id for said in store.judgements()}
    assert set(acknowledged) <= found
    assert len(found) <= len(acknowledged) + 1  # what was written and not yet acknowledged
    assert store.next_question("ann") is not None


def test_the_tables_are_those_that_the_migrations_make(database_url):
    database = Database(database_url)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        difference = compare_metadata(context, metadata)
    database.engine.dispose()
    assert difference == []


def test_a_store_of_a_newer_klimb_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "feedback.db"
    Store.open(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE klimb_schema_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(
        StoreError, match=r"feedback\.db: this store was written by a newer klimb.*up to 0002"
    ):
        Store.open(file)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version_num FROM klimb_schema_version").fetchone() == ("9999",)
    connection.close()


def test_what_a_killed_server_left_in_the_log_is_synced_when_the_store_is_opened(tmp_path, monkeypatch):
    (tmp_path / "link.db").symlink_to(tmp_path / "feedback.db")
    synced = []
    with Store.open(tmp_path / "feedback.db"):
        monkeypatch.setattr("klimb.feedback.store.database.sync", synced.append)
        Store.open(tmp_path / "link.db").close()
        assert synced == [tmp_path / "feedback.db-wal"]

        def fail(_):
            raise OSError("the disk is broken")

        monkeypatch.setattr("klimb.feedback.store.database.sync", fail)
        with pytest.raises(StoreError, match=r"link\.db: cannot be written to the disk: the disk is broken"):
            Store.open(tmp_path / "link.db")


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE prompts (name TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="has tables with the names of klimb's that klimb did not make"):
        Store.open(file)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("prompts",)]
    connection.close()


def test_what_is_no_store_is_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to be looked at as one " * 20)
    with pytest.raises(StoreError, match=r"notes\.txt: it is not a SQLite database"):
        Store.open(text)
    with pytest.raises(StoreError, match=r"missing\.db: no such store"):
        Store.open(tmp_path / "missing.db", must_exist=True)
    with pytest.raises(StoreError, match="its folder must exist"):
        Store.open(tmp_path / "no" / "folder.db")
    with pytest.raises(StoreError, match=r"expected a file, or a URL that begins with postgresql://"):
        Store.open("mysql://somewhere/feedback")


def test_a_password_is_not_shown():
    with pytest.raises(StoreError, match=r"the database server does not answer") as caught:
        Store.open("postgresql://ann:secret-word@127.0.0.1:1/feedback")
    assert "secret-word" not in str(caught.value)


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    with Store.open(tmp_path / "feedback.db") as store:
        store.add_pairs([pair(1), pair(2)])
        store.judge(answer(store.next_question("ann")))
        with store._database.reading() as connection:
            size = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={size}")
        with pytest.raises(StoreError, match=r"feedback\.db: the disk is full"):
            store.add_pairs([pair(number, "a long prompt " * 50) for number in range(3, 300)])
        assert store.progress("ann").num_pairs == 2
        assert len(store.judgements()) == 1


def test_a_store_that_another_program_holds_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("klimb.feedback.store.database._PATIENCE", 0.1)
    file = tmp_path / "feedback.db"
    with Store.open(file) as store:
        store.add_pairs([pair(1)])
        holder = sqlite3.connect(file, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program has locked it"):
            store.next_question("ann")
        holder.execute("ROLLBACK")
        holder.close()
        assert store.next_question("ann") is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_file_that_may_not_be_written_is_said(tmp_path):
    file = tmp_path / "feedback.db"
    Store.open(file).close()
    file.chmod(0o444)
    tmp_path.chmod(0o555)
    with pytest.raises(StoreError, match=r"no permission to write|cannot be opened"):
        Store.open(file)
