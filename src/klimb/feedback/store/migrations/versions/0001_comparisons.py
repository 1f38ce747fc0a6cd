"""Prompts, completions, pairs, judgements and who is looking at what."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "prompts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
    )
    op.create_table(
        "completions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("prompt_id", sa.Integer, sa.ForeignKey("prompts.id"), nullable=False, index=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
    )
    op.create_table(
        "pairs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("first_id", sa.Integer, sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("second_id", sa.Integer, sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("num_opinions", sa.Integer, nullable=False),
        sa.UniqueConstraint("first_id", "second_id", name="one_pair_of_two_completions"),
        sa.CheckConstraint("first_id < second_id", name="first_is_the_older"),
    )
    op.create_index("pairs_in_the_order_asked", "pairs", [sa.text("priority DESC"), "id"])
    op.create_table(
        "judgements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("pair_id", sa.Integer, sa.ForeignKey("pairs.id"), nullable=False),
        sa.Column("rater", sa.String(80), nullable=False),
        sa.Column("preferred", sa.String(8), nullable=False),
        sa.Column("shown_left", sa.String(8), nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("judged_at", sa.Float, nullable=False),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("withdrawn_at", sa.Float),
    )
    stands = sa.text("withdrawn_at IS NULL AND rater != ''")
    op.create_index(
        "one_judgement_of_a_pair_a_rater",
        "judgements",
        ["pair_id", "rater"],
        unique=True,
        sqlite_where=stands,
        postgresql_where=stands,
    )
    op.create_index("judgements_of_a_rater", "judgements", ["rater", "id"])
    op.create_index("judgements_of_a_pair", "judgements", ["pair_id", "rater"])
    op.create_table(
        "assignments",
        sa.Column("pair_id", sa.Integer, sa.ForeignKey("pairs.id"), primary_key=True),
        sa.Column("rater", sa.String(80), primary_key=True),
        sa.Column("assigned_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """There is nothing before this."""
    raise NotImplementedError
