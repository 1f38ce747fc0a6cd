"""The owner's page and the exports."""

import json

import pytest

from klimb.feedback.export import FORMS
from klimb.feedback.records import Answer, Candidate
from klimb.feedback.server.blind import left_of
from klimb.feedback.server.results import LeftShare

MODEL = "a-model-that-nobody-may-see"


def test_results_show_who_said_what_escaped_and_in_pages(store, monkeypatch, visit, said):
    store.add_pairs(
        [("<script>bad()</script>", Candidate("x" * 500), Candidate("<img src=q onerror=bad()>"))]
    )
    monkeypatch.setattr("klimb.feedback.server.results._PER_PAGE", 5)
    client = visit(store, name="<i>anna</i>")
    for number in range(7):
        question = client.get("/api/next").json()["question"]
        sent = said(question, "tie", f"key-{number:08}", note=f"note-{number} <u>")
        assert client.post("/api/judgements", json=sent).status_code == 200
    newest, oldest = client.get("/results").text, client.get("/results?page=2").text
    assert "&lt;i&gt;anna&lt;/i&gt;" in newest
    assert "&lt;script&gt;bad()" in newest
    for page in (newest, oldest):
        assert "<i>" not in page
        assert "<u>" not in page
        assert "<script" not in page
        assert "<img" not in page
    assert [n for n in range(7) if f"note-{n} " in newest] == [2, 3, 4, 5, 6]
    assert [n for n in range(7) if f"note-{n} " in oldest] == [0, 1]
    assert client.get("/results?page=99").text == oldest
    assert client.get("/results?page=0").status_code == 422
    assert MODEL in oldest


def test_results_count_wins_by_model_and_by_side(store, visit, said):
    client = visit(store)
    for number in range(4):
        question = client.get("/api/next").json()["question"]
        preferred = "left" if "newer" in question["left"] else "right"
        client.post("/api/judgements", json=said(question, preferred, f"key-{number:08}"))
    num_left = sum(j.shown_left == "second" for j in store.judgements())
    page = client.get("/results").text
    row = page[page.index('<th scope="row">tuned') :]
    assert row[: row.index("</tr>")].count('<td class="number">') == 4
    assert '<td class="number">4</td><td class="number">0</td><td class="number">0</td>' in row
    assert f'{100 * num_left / 4:.0f} %</div><div class="label">of 4 preferences' in page


def test_results_name_who_answers_by_place(store, visit, said):
    store.add_pairs([(f"more {number}", Candidate("a"), Candidate("b")) for number in range(20)])
    client = visit(store, name="<i>eve</i>")
    assert "see above" not in client.get("/results").text
    for number in range(26):
        question = client.get("/api/next").json()["question"]
        client.post("/api/judgements", json=said(question, "left", f"key-{number:08}"))
    page = client.get("/results").text
    assert "&lt;i&gt;eve&lt;/i&gt; prefers answer 1 in 26 of 26 pairs" in page
    assert "--without-raters" in page
    assert '<span class="chip bad">see above</span>' in page
    assert "<i>" not in page


# The two-sided binomial test of one half at 5 %, by hand. Of 5, all on one side: 2/2^5 = 0.0625, and of 6: 2/2^6 =
# 0.031. Of 60, P(X ≥ 38) = 0.0259 and P(X ≥ 39) = 0.0137, beside 0.025 in each tail.
@pytest.mark.parametrize(
    ("num_left", "num_decided", "is_by_place"),
    [
        *[(0, 0, False), (1, 1, False), (5, 5, False), (0, 5, False), (6, 6, True), (0, 6, True)],
        *[(30, 60, False), (38, 60, False), (39, 60, True), (22, 60, False), (21, 60, True)],
    ],
)
def test_people_choose_by_place_only_where_the_interval_excludes_one_half(num_left, num_decided, is_by_place):
    assert LeftShare(num_left, num_decided).is_by_place is is_by_place


@pytest.mark.parametrize(("count", "is_by_place"), [(5, False), (6, True)])
def test_the_results_page_says_that_people_choose_by_place_where_they_do(store, visit, count, is_by_place):
    for number in range(count):
        question = store.next_question("anna")
        left = left_of(question, "anna")
        store.judge(Answer(question.pair_id, "anna", left, f"key-{number:08}", shown_left=left))
    page = visit(store).get("/results").text
    assert f'>100 %</div><div class="label">of {count} preferences went to answer 1' in page
    assert ("People choose by place" in page) is is_by_place


def test_exports_are_attachments_in_each_form(store, visit, said):
    client = visit(store)
    question = client.get("/api/next").json()["question"]
    client.post("/api/judgements", json=said(question))
    for form, (_, suffix) in FORMS.items():
        answer = client.get(f"/export/{form}")
        assert answer.status_code == 200
        name = f'attachment; filename="klimb-{form}{suffix}"'
        assert answer.headers["content-disposition"] == name
        text = answer.text
        rows = [json.loads(line) for line in text.splitlines()] if suffix == ".jsonl" else json.loads(text)
        assert len(rows) == (6 if form == "store" else 1)
        assert "prompt 0" in text
        assert f'<a href="/export/{form}" download>{form}{suffix}</a>' in client.get("/results").text
    assert client.get("/export/nothing").status_code == 404
