"""The store's tables, and how an older store becomes one of this version.

A change here needs a new file in migrations/versions; a test compares the two.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from klimb.errors import StoreError

VERSION_TABLE = "klimb_schema_version"
"""Where the store's version stands."""

metadata = MetaData()

prompts = Table(
    "prompts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("text", Text, nullable=False),  # JSON: a string, or messages
    Column("digest", String(64), nullable=False, unique=True),
)

completions = Table(
    "completions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("prompt_id", ForeignKey("prompts.id"), nullable=False, index=True),
    Column("text", Text, nullable=False),  # JSON: a string, which may hold what PostgreSQL takes in no text
    Column("source", Text, nullable=False),  # JSON: model, checkpoint, sampling settings
    Column("digest", String(64), nullable=False, unique=True),  # of prompt, text and source
)

pairs = Table(
    "pairs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("first_id", ForeignKey("completions.id"), nullable=False),
    Column("second_id", ForeignKey("completions.id"), nullable=False),
    Column("priority", Float, nullable=False),  # asked first where it is higher
    Column("num_opinions", Integer, nullable=False),  # judgements that stand, skips apart
    UniqueConstraint("first_id", "second_id", name="one_pair_of_two_completions"),
    CheckConstraint("first_id < second_id", name="first_is_the_older"),
)

Index("pairs_in_the_order_asked", pairs.c.priority.desc(), pairs.c.id)

judgements = Table(
    "judgements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pair_id", ForeignKey("pairs.id"), nullable=False),
    Column("rater", String(80), nullable=False),
    Column("preferred", String(8), nullable=False),  # first, second, tie, both_bad, skip
    Column("shown_left", String(8), nullable=False),  # first or second; "" where it was not shown by klimb
    Column("seconds", Float),
    Column("note", Text, nullable=False),
    Column("judged_at", Float, nullable=False),  # seconds since 1970, UTC
    Column("key", String(64), nullable=False, unique=True),  # chosen by whoever sends it: twice is once
    Column("withdrawn_at", Float),
)
_stands = judgements.c.withdrawn_at.is_(None) & (judgements.c.rater != "")  # the unknown may be many
Index(
    "one_judgement_of_a_pair_a_rater",
    judgements.c.pair_id,
    judgements.c.rater,
    unique=True,
    sqlite_where=_stands,
    postgresql_where=_stands,
)
Index("judgements_of_a_rater", judgements.c.rater, judgements.c.id)
Index("judgements_of_a_pair", judgements.c.pair_id, judgements.c.rater)

assignments = Table(
    "assignments",
    metadata,
    Column("pair_id", ForeignKey("pairs.id"), primary_key=True),
    Column("rater", String(80), primary_key=True),
    Column("assigned_at", Float, nullable=False),
)

draws = Table(
    "draws",
    metadata,
    Column("digest", String(64), primary_key=True),  # of all that decides which pairs a part has
    Column("num_pairs", Integer, nullable=False),
    Column(
        "num_same", Integer, nullable=False
    ),  # pairs that were dropped: both completions were the same text
)

TABLES = frozenset(metadata.tables)
"""Names of the tables."""


def upgrade(connection: Connection, where: str) -> None:
    """Bring a store, empty or old, to this version, within the connection's transaction.

    Raises:
        StoreError: It was written by a newer klimb.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        if "locate revision" not in str(error):
            raise
        newest = ScriptDirectory.from_config(config).get_current_head()
        raise StoreError(
            f"{where}: this store was written by a newer klimb; this one reads schema versions up to {newest}. "
            "Nothing was changed; install the newer version: pip install -U klimb"
        ) from error
