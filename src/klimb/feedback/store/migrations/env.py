"""How Alembic runs the migrations: on the connection that it is handed."""

from alembic import context

from klimb.feedback.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    version_table=VERSION_TABLE,
)
context.run_migrations()
