"""Secrets in options are in no config, message or traceback."""

import os
import subprocess
import sys

import pytest

from klimb.errors import StoreError
from klimb.feedback.sources import read_sources
from klimb.feedback.store.store import Store
from klimb.training.storage.folder import RunFolder

SECRET = "hunter2"  # noqa: S105
UNREACHED = f"postgresql://ann:{SECRET}@127.0.0.1:1/feedback?application_name=x&sslpassword={SECRET}"


def test_the_config_of_a_run_has_no_secret(tmp_path):
    folder = RunFolder.create(
        tmp_path / "run", {"judges": [f"http://ann:{SECRET}@host/?token={SECRET}"], "lr": 1e-5}
    )
    assert SECRET not in "".join(file.read_text() for file in folder.path.iterdir())
    assert "http://***@host/?token=***" in (folder.path / "config.json").read_text()


@pytest.mark.parametrize(
    "url",
    [UNREACHED, f"mysql://ann:{SECRET}@host/x?password={SECRET}", f"postgresql://ann:{SECRET}@host:port/x"],
)
def test_a_store_that_cannot_be_opened_is_named_without_its_password(url):
    pytest.importorskip("psycopg")
    for attempt in (lambda: Store.open(url), lambda: read_sources([url])):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("more", [pytest.param([], marks=pytest.mark.slow), ["--debug"]])
def test_neither_message_nor_traceback_has_a_password(more, tmp_path):
    pytest.importorskip("psycopg")
    command = [sys.executable, "-m", "klimb", "label", "--store", UNREACHED, *more]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == (1 if more else 2)
    assert SECRET not in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == bool(more)
    assert "postgresql" in done.stderr
