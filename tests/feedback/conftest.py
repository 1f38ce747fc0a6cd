"""A database for each test, SQLite, and PostgreSQL where it is installed; pairs, and who visits their page."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from klimb.config.serving import ServeOptions
from klimb.feedback.records import Candidate
from klimb.feedback.server.app import create_app
from klimb.feedback.store.store import Store

collect_ignore = ["import_argilla.py", "import_label_studio.py"]  # run in environments of their own


def _programs():
    """The folder of PostgreSQL's own programs, which Debian keeps off the path."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server of the tests' own, reached through a socket; skipped with the reason where there is none."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: initdb was not found")
    with tempfile.TemporaryDirectory(prefix="klimb-postgresql-") as scratch:
        folder = Path(scratch)
        as_user = []
        if Path("/proc/self").stat().st_uid == 0:  # PostgreSQL does not run as the superuser
            shutil.chown(folder, "postgres")
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

        def call(program, *arguments):
            command = [*as_user, str(programs / program), *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd=folder)

        data = str(folder / "data")
        call("initdb", "-D", data, "-U", "klimb", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c max_connections=60"
        call("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://klimb@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """Where a store may be made."""
    if request.param == "sqlite":
        yield str(tmp_path / "feedback.db")
        return
    server = sa.make_url(request.getfixturevalue("postgresql"))
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    name = f"test_{tmp_path.name.replace('-', '_').lower()[:40]}_{abs(hash(tmp_path)) % 10**8}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    yield server.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def store(tmp_path):
    """Six pairs, each of two models' completions."""
    with Store.open(tmp_path / "feedback.db") as store:
        store.add_pairs(
            (
                f"prompt {i}",
                Candidate(f"older {i}", {"model": "a-model-that-nobody-may-see"}),
                Candidate(f"newer {i}", {"model": "tuned"}),
            )
            for i in range(6)
        )
        yield store


@pytest.fixture
def visit():
    """A client of a store's page, who has said a name unless it is empty."""

    def visit(store, address="http://127.0.0.1:8321", name="anna", **options):
        app = create_app(store, ServeOptions(**options))
        client = TestClient(app, base_url=address, follow_redirects=False)
        if name:
            assert client.post("/api/rater", json={"name": name}).status_code == 200
        return client

    return visit


@pytest.fixture
def said():
    """A judgement as the page sends it."""

    def said(question, preferred="left", key="key-00000001", **more):
        return {"pair_id": question["pair_id"], "preferred": preferred, "key": key, "seconds": 2.5, **more}

    return said
