"""A store goes out and comes in again without loss, within one database and from one to the other."""

import json

import pytest
import sqlalchemy as sa

from klimb.errors import DataError
from klimb.feedback.comparison import Comparison
from klimb.feedback.export import STORE, export_store
from klimb.feedback.formats import read_feedback
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.sources import import_files, read_sources
from klimb.feedback.store.schema import metadata
from klimb.feedback.store.store import Store

CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "Wie geht's? \0 🙂", "name": "x"}]
CHOICES = ("first", "second", "tie", "both_bad", "skip")


def fill(store):
    """All that a store can hold: every choice, notes, times, what was taken back, unknown raters, who is asked now."""
    source = {"model": "m ü", "checkpoint": None, "settings": {"seed": 3, "temperature": 0.7, "stop": ["\n"]}}
    shared = Candidate("shared\r\n \u2028 \0 end ", {})
    store.add_pairs(
        [(f"p{number}", Candidate(f"a{number}", source), Candidate("", {})) for number in range(5)]
    )
    store.add_pairs([(CHAT, Candidate("x", source), shared), (CHAT, Candidate("x", {}), Candidate("y", {}))])
    store.add_pairs([(CHAT, Candidate("0", source), shared), ("", Candidate("alone"), Candidate("other"))])
    for rater in ("ann", 'bob, "the" rater; ü'):
        for number, choice in enumerate(CHOICES, start=1):
            answer = Answer(
                number, rater, choice, f"{rater[:3]} {number}", "second", 1.1 * number, 'no, "yes"\n; é'
            )
            store.judge(answer)
    store.undo("ann")
    store.judge(Answer(5, "ann", "first", "ann changed her mind", "first"))
    store.undo("ann")
    store.add_comparisons([Comparison("p", "good", "bad", "right")] * 3)  # of unknown raters
    store.set_priorities({6: 0.1, 7: -2.5})
    assert store.next_question("cem") is not None


def tables(where):
    """What people said and were asked, each surrogate number replaced by its place; not which draws were made here."""
    with Store.open(where) as store, store._database.reading() as connection:
        rows = {
            name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for name, table in metadata.tables.items()
            if name != "draws"
        }
    keys = {
        "prompts": ("prompt_id",),
        "completions": ("first_id", "second_id"),
        "pairs": ("pair_id",),
        "judgements": (),
    }
    for name, foreign in keys.items():
        place = {
            row["id"]: number for number, row in enumerate(sorted(rows[name], key=lambda row: row["id"]))
        }
        for row in rows[name]:
            row["id"] = place[row["id"]]
        for other in rows.values():
            for row in other:
                row |= {column: place[row[column]] for column in foreign if column in row}
    return {name: sorted(map(repr, some)) for name, some in rows.items()}


@pytest.fixture
def full(tmp_path):
    with Store.open(tmp_path / "full.db") as store:
        fill(store)
        yield store


@pytest.fixture
def exported(full, tmp_path):
    export_store(full, STORE, tmp_path / "all.jsonl")
    return tmp_path / "all.jsonl"


def test_a_store_imported_is_the_store_that_was_exported_in_every_table(
    full, exported, database_url, tmp_path
):
    with Store.open(database_url) as other:
        report = import_files(other, [exported])
        assert (report.refused, report.feedback.unread) == ([], {})
        export_store(other, STORE, tmp_path / "back.jsonl")
    expected = tables(full.where)
    assert {name: len(rows) for name, rows in expected.items()} == {
        "prompts": 8, "completions": 19, "pairs": 10, "judgements": 14, "assignments": 2,
    }  # fmt: skip
    assert tables(database_url) == expected
    with Store.open(tmp_path / "back.db") as back:
        import_files(back, [tmp_path / "back.jsonl"])
    assert tables(tmp_path / "back.db") == expected


def test_importing_a_store_twice_adds_nothing_and_says_so(exported, tmp_path):
    with Store.open(tmp_path / "other.db") as other:
        first = import_files(other, [exported]).lines()
        assert "klimb's own: 14 judgements, 14 of them new; 10 new pairs" in first
        before = tables(other.where)
        again = import_files(other, [exported]).lines()
        assert "nothing was added: the store has all of it already" in again
        assert "nothing was added: the store has all of it already" not in first
        assert tables(other.where) == before


def test_a_store_goes_into_itself_and_nothing_changes(full, exported):
    before = tables(full.where)
    import_files(full, [exported])
    assert tables(full.where) == before


def test_a_store_that_went_on_is_imported_again_with_what_is_new_and_what_was_taken_back(
    full, exported, tmp_path
):
    with Store.open(tmp_path / "other.db") as other:
        import_files(other, [exported])
        assert full.undo("ann").pair_id == 4
        full.judge(Answer(4, "ann", "second", "ann on second thoughts"))
        export_store(full, STORE, tmp_path / "later.jsonl")
        report = import_files(other, [tmp_path / "later.jsonl"])
        assert (report.added.num_judgements, report.added.num_withdrawn, report.refused) == (1, 1, [])
        expected = tables(full.where) | {"assignments": tables(other.where)["assignments"]}
        assert tables(other.where) == expected


def test_two_stores_that_gave_one_key_to_different_judgements_are_merged(tmp_path):
    files = []
    for name in ("one", "two"):
        with Store.open(tmp_path / f"{name}.db") as store:
            store.add_pairs([(name, Candidate("a"), Candidate("b"))])
            store.judge(Answer(1, "", "first", "import:the same"))
            files.append(tmp_path / f"{name}.jsonl")
            export_store(store, STORE, files[-1])
    with Store.open(tmp_path / "both.db") as both:
        assert import_files(both, files).num_new == 2
        assert import_files(both, files).num_new == 0
        assert sorted(said.prompt for said in both.judgements()) == ["one", "two"]


def test_a_judgement_is_turned_where_the_store_has_the_pair_the_other_way_round(full, exported, tmp_path):
    with Store.open(tmp_path / "other.db") as other:
        other.add_pairs([("p0", Candidate("", {}), full.judgements()[0].first)])
        import_files(other, [exported])
        (said,) = [said for said in other.judgements() if said.prompt == "p0" and said.rater == "ann"]
        assert (said.second.text, said.preferred, said.shown_left) == ("a0", "second", "first")


def test_what_goes_against_the_same_rater_is_refused_with_its_line(exported, tmp_path):
    lines = exported.read_text().split("\n")
    row = json.loads(lines[0])
    row["judgements"] = [row["judgements"][0] | {"preferred": "tie", "key": "another"}]
    (tmp_path / "changed.jsonl").write_text(json.dumps(row) + "\n")
    with Store.open(tmp_path / "other.db") as other:
        import_files(other, [exported])
        ((place, reason),) = import_files(other, [tmp_path / "changed.jsonl"]).refused
    assert place.endswith("changed.jsonl:1")
    assert reason == "ann has said otherwise of these two before"


def test_a_file_of_a_store_teaches_what_the_store_teaches(full, exported, tmp_path):
    expected = read_sources([full.where])
    found = read_sources([exported])
    key = repr
    assert sorted(found.comparisons, key=key) == sorted(expected.comparisons, key=key)
    export_store(full, "comparisons", tmp_path / "said.csv")
    assert read_sources([tmp_path / "said.csv"]).comparisons == expected.comparisons


def test_preferences_imported_again_count_once_in_a_store_that_came_from_another(tmp_path, write_jsonl):
    file = write_jsonl([{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2, "in.jsonl")
    with Store.open(tmp_path / "one.db") as one, Store.open(tmp_path / "two.db") as two:
        import_files(one, [file])
        export_store(one, STORE, tmp_path / "all.jsonl")
        two.add_pairs([("another", Candidate("x"), Candidate("y"))])  # so that the numbers differ
        import_files(two, [tmp_path / "all.jsonl"])
        assert import_files(two, [file]).num_new == 0
        assert len(two.judgements()) == 2


@pytest.mark.parametrize("name", ["said.jsonl", "said.csv", "said.parquet", "said"])
def test_comparisons_keep_all_that_is_known_of_a_judgement_that_stands(full, tmp_path, name):
    if "csv" not in name and "jsonl" not in name:  # one kind of prompt to a table
        full = Store.open(tmp_path / "plain.db")
        full.add_pairs([("p", Candidate("a", {"model": "m"}), Candidate("b", {}))])
        full.judge(Answer(1, "ann", "both_bad", "key", "second", 1.5, "why"))
    export_store(full, "comparisons", tmp_path / name)

    def known(store):
        return sorted(
            repr(
                (
                    s.prompt,
                    s.first,
                    s.second,
                    s.preferred,
                    s.rater,
                    s.shown_left,
                    s.seconds,
                    s.note,
                    s.judged_at,
                    s.key,
                )
            )
            for s in store.judgements()
        )

    with Store.open(tmp_path / "other.db") as other:
        report = import_files(other, [tmp_path / name])
        assert report.refused == []
        assert known(other) == known(full)
        assert import_files(other, [tmp_path / name]).num_new == 0
    if full.where.endswith("plain.db"):
        full.close()


BROKEN = [
    ({"klimb_store": 2}, "klimb_store: this klimb reads version 1, got 2; install the newer"),
    ({"prompt": 3}, "prompt: expected text or a list of messages, got 3"),
    ({"first": {"text": "", "source": {}}}, "the two completions are the same: ''"),
    ({"first": {"text": None}}, "first.text: expected text, got None"),
    ({"judgements": None}, "judgements: expected a list of objects, got None"),
    ({"judgements": [{"key": "k", "rater": "a", "preferred": "left"}]}, "preferred: expected one of 'first'"),
    ({"judgements": [{"rater": "a", "preferred": "tie"}]}, "key: expected the text under which"),
    ({"priority": "high"}, "priority: expected a finite number, got 'high'"),
    ({"assigned": [{"rater": "a"}]}, "assigned_at: expected a finite number"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN)
def test_a_broken_row_of_a_store_is_refused_and_the_others_are_kept(exported, change, reason):
    rows = [json.loads(line) for line in exported.read_text().split("\n")[:-1]]
    rows[0] |= change
    exported.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_feedback(exported, keep_pairs=True)
    ((place, why),) = found.refused
    assert place.endswith("all.jsonl:1")
    assert reason in why
    assert len(found.pairs) == len(rows) - 1


def test_the_form_store_goes_into_jsonl_alone_and_needs_something_to_write(full, tmp_path):
    with pytest.raises(DataError, match=r"store goes into a file that ends in \.jsonl"):
        export_store(full, STORE, tmp_path / "all.csv")
    with Store.open(tmp_path / "empty.db") as empty, pytest.raises(DataError, match="has no pairs to write"):
        export_store(empty, STORE, tmp_path / "empty.jsonl")
