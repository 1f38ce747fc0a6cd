"""The Hugging Face hub: cards in its format, and folders uploaded to it."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from klimb.io.show import printable, redact

_MOST_SAID = 200  # characters of what the hub says of a failure


def front_matter(values: dict[str, Any]) -> str:
    """The metadata at the head of a card: YAML, each value as JSON, which is YAML too; what is None is left out.

    Example:
        >>> print(front_matter({"license": None, "tags": ["klimb", "rlhf"], "library_name": "transformers"}))
        ---
        tags: ["klimb", "rlhf"]
        library_name: "transformers"
        ---
    """
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items() if value]
    return "\n".join(["---", *lines, "---"])


def base_metadata(model: str) -> dict[str, str | None]:
    """What is known of a base model: its name on the hub, and its licence as its own card states it.

    Args:
        model: A folder, a GGUF file, or a name on the hub.
    """
    folder = Path(model).expanduser()
    is_local = folder.exists()
    card = folder / "README.md" if is_local else _cached_card(model)
    text = card.read_text(encoding="utf-8", errors="replace") if card is not None and card.is_file() else ""
    stated = {name: _stated(text, name) for name in ("base_model", "license")}
    return {"base_model": stated["base_model"] if is_local else model, "license": stated["license"]}


def push_folder(folder: Path, repository: str, leave_out: Sequence[str] = ()) -> str | None:
    """Upload a folder to a repository on the hub, which is made, private, if there is none.

    Args:
        folder: A model with its card.
        repository: OWNER/NAME.
        leave_out: Names of files that are not uploaded.

    Returns:
        Why it was not uploaded; None where it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=list(leave_out) or None,
            commit_message="Upload a model trained by klimb",
        )
    except Exception as error:  # every kind of failure of a network leaves the folder as it is
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403):
            return f"the hub refused the token ({status}): run hf auth login, or set HF_TOKEN"
        said = " ".join(redact(str(error)).split())[:_MOST_SAID] or type(error).__name__
        return f"the hub was not reached or refused it: {printable(said)}"
    return None


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _cached_card(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "README.md")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _stated(card: str, name: str) -> str | None:
    head = re.match(r"---\n(.*?)\n---", card, flags=re.DOTALL)
    found = re.search(rf"^{name}: *[\"']?([\w./-]+)[\"']? *$", head[1], flags=re.MULTILINE) if head else None
    return found[1] if found else None
