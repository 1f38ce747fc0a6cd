"""The columns of a row, and which of them a reader has read: what is left over is named in the summary."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from klimb.io.show import quote

_ABOUT_ROWS = (
    "id ids uid uuid idx index __index_level_0__ prompt_id question_id conversation_id conversation_hash "
    "task_id task message_id message_tree_id parent_id session_id sample_id row_id example_id record_id "
    "pair_id post_id external_id annotation_id batch_id worker_id evaluation_session_id evaluation_order "
    "_server_id inner_id project project_id source sources dataset dataset_name data_source origin split "
    "subset domain category topic subreddit lang language model models model_name model_id model_a "
    "model_b model_1 model_2 chosen_model rejected_model chosen_policy rejected_policy generation_model "
    "generation_models created_at updated_at timestamp tstamp date turn license url version batch meta "
    "metadata vectors file_upload lead_time num_tokens token_count inserted_at original_id response_model qid "
    "parallel_tool_calls labelling_model"
)
METADATA = frozenset(_ABOUT_ROWS.split())
"""Columns that say where a row comes from and not what was judged: they are not named when nobody reads them."""


class RefusedError(ValueError):
    """A row that cannot be used, and why."""


class Fields:
    """Columns of a row or of an object in it; remembers which were read.

    Attributes:
        uncounted: What the row has that was not counted as a judgement, and how often.

    Args:
        values: The columns.
        path: Where they stand in the row, such as `data.`.
        parent: The row that these are a part of.
    """

    def __init__(self, values: dict[str, Any], path: str = "", parent: "Fields | None" = None) -> None:
        self._values = values
        self._path = path
        self._read: set[str] = set()
        self._parts: list[Fields] = []
        self._left: set[str] = set()
        self.uncounted: Counter[str] = Counter() if parent is None else parent.uncounted
        if parent is not None:
            parent._parts.append(self)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def has(self, name: str) -> bool:
        """Whether a column is there and not empty."""
        return not is_empty(self._values.get(name))

    def look(self, name: str) -> Any:
        """A column's value, without calling it read."""
        return self._values.get(name)

    def get(self, name: str) -> Any:
        """A column's value, None where there is none; it counts as read."""
        self._read.add(name)
        return self._values.get(name)

    def first(self, *names: str) -> str | None:
        """The first of some columns that is there and not empty."""
        return next((name for name in names if self.has(name)), None)

    def drop(self, name: str) -> None:
        """Take a column out that only repeats another."""
        self._values = {key: value for key, value in self._values.items() if key != name}

    def leave(self, name: str) -> None:
        """Name something in a column that is not understood and does not change what was judged."""
        self._left.add(self._path + name)

    def part(self, name: str) -> "Fields":
        """An object that stands in a column.

        Raises:
            RefusedError: The column holds something else.
        """
        value = self.get(name)
        if not isinstance(value, dict):
            raise RefusedError(f"{name}: expected an object, got {quote(value)}")
        return Fields(value, f"{self._path}{name}.", self)

    def item(self, name: str, value: dict[str, Any]) -> "Fields":
        """One of the objects in a column that holds a list."""
        return Fields(value, f"{self._path}{name}[].", self)

    def unread(self) -> set[str]:
        """The columns that are not empty, are no metadata, and were not read."""
        left = {
            self._path + str(name)
            for name in self._values
            if name not in self._read and self.has(name) and str(name).lower() not in METADATA
        }
        return left.union(self._left, *(part.unread() for part in self._parts))


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, or an empty text, list or object."""
    return value is None or (isinstance(value, str | list | dict) and not value)
