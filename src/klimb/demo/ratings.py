"""What people said: film-review sentences, each rated by 15 to 20 of them.

Hutto and Gilbert (2014) had 10,605 sentences of film reviews rated from −4, most negative, to 4, most positive;
the mean ratings are in the source distribution of `vaderSentiment` (MIT), which is fetched and never installed.
"""

import json
import tarfile
from pathlib import Path

import numpy as np

from klimb.demo.fetch import Source, fetch
from klimb.errors import DataError

_OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_INNER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
RATINGS = Source(
    name=Path(_INNER).name,
    requirement="vaderSentiment==3.3.2",
    archive_sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    sha256="c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    pattern="*.tar.gz",
    options=("--no-binary", ":all:"),
)
"""Where the ratings come from."""


def fetch_ratings() -> Path:
    """Return the ratings' file, fetching it the first time.

    Raises:
        DataError: It cannot be fetched, or is not the file that is expected.
    """
    return fetch(RATINGS, _unpack)


def write_ratings(source: Path, file: Path, count: int, seed: int) -> None:
    """Write some of the sentences, drawn at random, in klimb's format of ratings.

    Raises:
        DataError: The source's lines are not number, rating and text.
    """
    rows: list[dict[str, object]] = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            _, rating, text = line.split("\t")
            rows.append({"text": text.strip(), "score": float(rating)})
        except ValueError as error:
            raise DataError(
                f"{source}:{number}: expected number, rating and text, got {line[:60]!r}"
            ) from error
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    lines = [json.dumps(rows[index], ensure_ascii=False) + "\n" for index in chosen]
    file.write_text("".join(lines), encoding="utf-8")


def _unpack(archive: Path, scratch: Path) -> Path:
    with tarfile.open(archive) as outer:
        outer.extract(_OUTER, scratch, filter="data")
    with tarfile.open(scratch / _OUTER) as inner:
        inner.extract(_INNER, scratch, filter="data")
    return scratch / _INNER
