"""What klimb writes for Label Studio and Argilla, and their own importers, in environments of their own."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from klimb.errors import DataError
from klimb.feedback.comparison import Comparison
from klimb.feedback.export import export_file
from klimb.feedback.formats import read_feedback
from klimb.feedback.records import Candidate, Judgement

CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "ü <b>&amp;"},
]
SAID = [
    (1, "first", "p", "ann"), (1, "second", "p", "bob"), (1, "first", "p", ""), (1, "first", "p", ""),
    (2, "second", CHAT, "ann"), (3, "tie", "p", "ann"),
]  # fmt: skip


@pytest.fixture
def judgements():
    """Of one pair four, two of them by nobody knows whom; of a chat; and a tie."""
    return [
        Judgement(
            id=number, pair_id=pair, prompt=prompt, first=Candidate(f"a{pair}"), second=Candidate(f"b{pair}\nü"),
            preferred=preferred, rater=rater, shown_left="second", seconds=2.5, note="", judged_at=1.5,
        )
        for number, (pair, preferred, prompt, rater) in enumerate(SAID, start=1)
    ]  # fmt: skip


def expected(*choices):
    sides = {"first": "left", "second": "right", "tie": "tie"}
    return [
        Comparison(prompt, f"a{pair}", f"b{pair}\nü", sides[choice], rater)
        for pair, choice, prompt, rater in SAID
        if choice in choices
    ]


def test_label_studio_gets_nobody_it_has_no_account_of_and_no_ground_truth(judgements, tmp_path):
    export_file(judgements, "label-studio", tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    annotations = [annotation for task in tasks for annotation in task["annotations"]]
    assert len(annotations) == 5
    assert all("completed_by" not in one and one["ground_truth"] is False for one in annotations)
    found = read_feedback(tmp_path / "tasks.json")
    assert (found.comparisons, found.unread) == (expected("first", "second"), {})


def test_argilla_gets_raters_as_the_numbers_it_knows_users_by_each_once_in_a_record(judgements, tmp_path):
    export_file(judgements, "argilla", tmp_path / "records.json")
    records = json.loads((tmp_path / "records.json").read_text())
    users = [[one["user_id"] for one in record["responses"]["preference"]] for record in records]
    assert [len(set(map(uuid.UUID, some))) for some in users] == [4, 1, 1]
    assert users[0][0] == users[1][0] == users[2][0]
    found = read_feedback(tmp_path / "records.json")
    assert (found.comparisons, found.unread) == (expected("first", "second", "tie"), {})


def test_a_rater_who_is_a_user_of_argilla_stays_that_user(judgements, tmp_path):
    user = str(uuid.uuid4())
    judgement = Judgement(**vars(judgements[0]) | {"rater": user})
    export_file([judgement], "argilla", tmp_path / "records.json")
    (record,) = json.loads((tmp_path / "records.json").read_text())
    assert record["responses"]["preference"][0]["user_id"] == user


@pytest.mark.parametrize(("form", "name"), [("label-studio", "out.xml"), ("argilla", "out.settings.json")])
def test_settings_stand_beside_the_export_and_are_not_replaced_unasked(judgements, tmp_path, form, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=rf"{name}: exists already; choose another name, or add --overwrite"):
        export_file(judgements, form, tmp_path / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    export_file(judgements, form, tmp_path / "out.json", overwrite=True)
    assert (tmp_path / name).read_text() != "mine"


@pytest.fixture
def environment(request):
    """Make an environment with some packages, and return its Python; kept among what pytest caches."""

    def environment(name, *packages):
        folder = Path(request.config.cache.mkdir(f"environment-{name}"))
        python = folder / "bin" / "python"
        if (folder / "complete").exists():
            return python
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=300)
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        if installed.returncode:
            pytest.skip(
                f"pip cannot install {' '.join(packages)}: {installed.stderr.strip().splitlines()[-1]}"
            )
        (folder / "complete").touch()
        return python

    return environment


def run(python, script, *files):
    """Run a script of this folder in another environment, where klimb's settings do not hold."""
    command = [str(python), str(Path(__file__).with_name(script)), *map(str, files)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=900,
        cwd=files[0].parent,
        env={"PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_label_studio_imports_what_klimb_writes_and_klimb_what_it_exports(environment, judgements, tmp_path):
    python = environment("label-studio", "label-studio==1.23.2")
    export_file(judgements, "label-studio", tmp_path / "tasks.json")
    files = tmp_path / "tasks.xml", tmp_path / "tasks.json", tmp_path / "back.json"
    run(python, "import_label_studio.py", *files)
    found = read_feedback(tmp_path / "back.json")
    assert sorted(found.comparisons, key=repr) == sorted(expected("first", "second"), key=repr)
    assert (found.refused, found.unread) == ([], {})


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_argilla_takes_what_klimb_writes_and_klimb_what_it_exports(environment, judgements, tmp_path):
    python = environment("argilla", "argilla==2.8.0", "requests")
    export_file(judgements, "argilla", tmp_path / "records.json")
    files = tmp_path / "records.settings.json", tmp_path / "records.json", tmp_path / "back.json"
    run(python, "import_argilla.py", *files)
    back = json.loads((tmp_path / "back.json").read_text())
    assert [len(record["responses"]) for record in back["sent"]] == [4, 1, 1]
    (tmp_path / "again.json").write_text(json.dumps(back["records"]))
    found = read_feedback(tmp_path / "again.json")
    assert (found.comparisons, found.refused) == (expected("first", "second", "tie"), [])
