"""What a run has learned from people stays what it was, whatever becomes of the store and of the machine."""

import pytest

from klimb.errors import RunFolderError
from klimb.reward.record import JudgedPair, JudgementRecord

ONE = JudgedPair([{"role": "user", "content": "é"}], "a", "b", ("first",))
TWO = JudgedPair("q", "c", "d", ("skip", "tie"))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "people.jsonl"


def test_a_step_is_found_by_its_number_and_its_pairs(file):
    JudgementRecord(file).add(3, [ONE, TWO])
    record = JudgementRecord(file)
    assert record.find(3, [ONE, TWO]) == [["first"], ["skip", "tie"]]
    assert record.find(2, [ONE, TWO]) is None
    assert record.find(3, [TWO, ONE]) is None
    assert record.find(3, [ONE]) is None


def test_where_a_run_went_back_the_last_line_of_a_step_counts(file):
    record = JudgementRecord(file)
    record.add(0, [ONE])
    record.add(1, [ONE])
    record.add(1, [TWO])
    for known in (record, JudgementRecord(file)):
        assert known.before(2) == [(0, [ONE]), (1, [TWO])]
        assert known.before(1) == [(0, [ONE])]


def test_a_line_that_a_crash_cut_off_is_as_if_it_had_not_been_written(file):
    JudgementRecord(file).add(0, [ONE])
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:20])
    record = JudgementRecord(file)
    assert record.find(0, [ONE]) == [["first"]]
    record.add(1, [TWO])
    assert JudgementRecord(file).before(9) == [(0, [ONE]), (1, [TWO])]


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', '{"step": 1, "pairs": [{"prompt": "p"}]}'])
def test_what_no_run_wrote_is_refused_with_its_line(file, line):
    JudgementRecord(file).add(0, [ONE])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(RunFolderError, match=r"people\.jsonl:2: damaged or edited"):
        JudgementRecord(file)
