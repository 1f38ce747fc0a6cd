"""Which parts of a program's pairs were drawn."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "draws",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("num_pairs", sa.Integer, nullable=False),
        sa.Column("num_same", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Nothing is taken back."""
    raise NotImplementedError
