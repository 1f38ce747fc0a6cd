"""Ten million prompts: memory and seconds to read and check them, and to take steps.

python benchmarks/data.py [--rows 10000000] [--kinds jsonl csv parquet]

The file is made in a temporary folder (about 1.3 GB for ten million lines of JSON) and read in a process of its own,
whose peak of memory (Linux alone tells it) is reported, above that of a process that reads a file of a thousand rows:
the libraries' own. Pages of mapped files, which the system can take back, are told apart. With --repeated a tenth of
the rows repeat an earlier one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

STEPS, PROMPTS_A_STEP = 20, 8
WORDS = "The quick brown fox jumps over the lazy dog and says to its friend that the weather is"


def make_file(folder: Path, kind: str, num_rows: int, num_repeated: int) -> Path:
    """Write rows with a prompt of about 80 characters and a column for the reward."""
    file = folder / f"{num_rows}.{kind}"
    texts = (f"{WORDS} {row % (num_rows - num_repeated)}:" for row in range(num_rows))
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        schema = pa.schema([("prompt", pa.string()), ("wanted", pa.int64())])
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            for start in range(0, num_rows, 100_000):
                count = min(100_000, num_rows - start)
                part = [next(texts) for _ in range(count)]
                writer.write_table(pa.table({"prompt": part, "wanted": list(range(count))}))
        return file
    with file.open("w", encoding="utf-8") as stream:
        if kind == "csv":
            stream.write("prompt,wanted\n")
        for row, text in enumerate(texts):
            stream.write(
                f'"{text}",{row}\n' if kind == "csv" else f'{{"prompt": "{text}", "wanted": {row}}}\n'
            )
    return file


class Memory(threading.Thread):
    """Watches what this process holds: the peak of its own pages, not of files' that are mapped and can be let go."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        """Look twenty times a second."""
        while True:
            self.look()
            time.sleep(0.05)

    def look(self) -> tuple[int, int]:
        """Bytes of the peak, and those that are of mapped files now."""
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        own, mapped = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        self.peak = max(self.peak, own)
        return self.peak, mapped


def measure(file: Path) -> dict[str, Any]:
    """Read a file and take steps; seconds, and memory at each point."""
    from klimb.data.prompts import PromptFile, indices_of_step

    memory = Memory()
    start, start_cpu = time.perf_counter(), time.process_time()
    rows = PromptFile(file)
    found = {"read_seconds": time.perf_counter() - start, "read_cpu": time.process_time() - start_cpu}
    found |= {"peak_read": memory.look()[0], "num_rows": len(rows)}
    found["repeats"] = 0 if rows.repeats is None else rows.repeats.num_rows
    start = time.perf_counter()
    indices = indices_of_step(0, len(rows), PROMPTS_A_STEP, 0)
    found["shuffle_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    for step in range(STEPS):
        indices = indices_of_step(step, len(rows), PROMPTS_A_STEP, 0)
        assert len([rows[index].prompt for index in indices]) == PROMPTS_A_STEP  # noqa: S101
    found["step_seconds"] = (time.perf_counter() - start) / STEPS
    peak, mapped = memory.look()
    return found | {"peak_steps": peak, "mapped": mapped}


def measure_apart(file: Path) -> dict[str, Any]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(file)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Print a row for each kind of file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--kinds", nargs="+", default=["jsonl"], choices=["jsonl", "csv", "parquet"])
    parser.add_argument("--repeated", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(
        "| file | rows | size | read and checked | memory | with steps | mapped | shuffle | rows of a step |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as scratch:
            small = measure_apart(make_file(Path(scratch), kind, 1000, 0))
            repeated = arguments.rows // 10 if arguments.repeated else 0
            file = make_file(Path(scratch), kind, arguments.rows, repeated)
            found = measure_apart(file)
            size = file.stat().st_size / 1e9
            seconds = f"{found['read_seconds']:.0f} s, {found['read_cpu']:.0f} s of CPU"
            memory = [(found[name] - small[name]) / 2**20 for name in ("peak_read", "peak_steps", "mapped")]
            print(
                f"| {kind} | {found['num_rows']:,}, {found['repeats']:,} repeats | {size:.2f} GB | "
                f"{seconds} | {memory[0]:.0f} MB | {memory[1]:.0f} MB | {memory[2]:.0f} MB | "
                f"{found['shuffle_seconds']:.1f} s | {found['step_seconds'] * 1000:.1f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
