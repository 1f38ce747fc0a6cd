"""The two forms that a prompt or a completion may have, as in TRL's data formats."""

from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]
"""One turn of a chat: `role` and `content`."""

Text: TypeAlias = str | list[Message]
"""Plain text, to be continued as it stands, or chat messages, to be answered through the chat template."""
