"""Rows as they come from elsewhere, and what is read from one of them."""

import json

import pytest

from klimb.feedback.formats import read_feedback

PLAIN = {"prompt": "other", "chosen": "c", "rejected": "d"}


@pytest.fixture
def read(tmp_path):
    """Read one row beside a plain preference, so that a refused row leaves something."""

    def read(row, name="rows.jsonl"):
        file = tmp_path / name
        rows = [row, PLAIN]
        if name.endswith(".json"):
            file.write_text(json.dumps(rows))
        else:
            file.write_text("".join(json.dumps(each) + "\n" for each in rows))
        found = read_feedback(file)
        assert found.comparisons[-1].prompt == "other"
        found.comparisons.pop()
        return found

    return read


@pytest.fixture
def reason(read):
    """Why a row is refused."""

    def reason(row, name="rows.jsonl"):
        found = read(row, name)
        assert (found.comparisons, found.ratings) == ([], [])
        ((_, why),) = found.refused
        return why

    return reason
