"""The step's reduction beside the ways in which people write it, and beside the memory's own speed.

python benchmarks/update.py [--rounds 25] [--layouts C Fortran strided] [--dtypes float32 …] [--alone]

Every round runs each way once, in an order drawn anew, on the same matrix; the other people's ways in the first five
rounds only, and what BLAS or PyTorch does between pauses, in which the threads that they leave spinning come to rest;
`--alone` leaves them out. The floor is the fastest plain parallel read of the same bytes found on this machine, chosen
for each matrix: a sum in C in as many threads (where there is a compiler), each of which reads its part in one place or
in four at once, that lie a quarter of the part or 256 KiB apart; NumPy's max in threads; PyTorch's sum. A read writes
no result. Ratios are taken round by round, floor seconds over the way's seconds. Have nothing else running. The first
line names the processor and the kernels' path; KLIMB_KERNELS=avx2 forces another.
"""

import argparse
import ctypes
import importlib.util
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
import time
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import klimb
from klimb.kernels.library import num_threads, path

PAUSE = 0.25  # seconds; threads of BLAS and OpenMP spin on for a while after their work
SPINNING = ("textbook", "r @ G", "torch.mv", "floor torch.sum")
POOL = ThreadPoolExecutor(num_threads())
SHAPES = [
    ("4096 × 65,536", 4096, 65_536, "float32"),
    ("2048 × 65,536", 2048, 65_536, "float64"),
    ("64 × 4,000,000", 64, 4_000_000, "float32"),
    ("1,000,000 × 128", 1_000_000, 128, "float32"),
    ("1,000,000 × 131", 1_000_000, 131, "float32"),
    ("999,983 × 131", 999_983, 131, "float64"),
    ("4096 × 65,536", 4096, 65_536, "float16"),
    ("4096 × 65,536", 4096, 65_536, "bfloat16"),
]
READ = """
#include <stdint.h>
__attribute__((target_clones("avx512f", "avx2", "default")))
float read_floats(const float *restrict x, int64_t count, int64_t num_places, int64_t stretch) {
    float sums[64] = {0};
    for (int64_t first = 0; first < count; first += num_places * stretch)
        for (int64_t i = 0; i < stretch; i += 64)
            for (int64_t k = 0; k < num_places; k++) {
                const int64_t at = first + k * stretch + i;
                if (at + 64 <= count)
                    for (int j = 0; j < 64; j++) sums[j] += x[at + j];
            }
    for (int j = 1; j < 64; j++) sums[0] += sums[j];
    return sums[0];
}
"""
PLACES = 4
STRETCH = 1 << 16  # floats between two of them


def compiled_read() -> Any:
    """Compile the plain read, or return None."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp())
    (folder / "read.c").write_text(READ)
    flags = ["-O3", "-ffast-math", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, "-o", str(folder / "read.so"), str(folder / "read.c")], check=True)
    function = ctypes.CDLL(str(folder / "read.so")).read_floats
    function.argtypes, function.restype = [ctypes.c_void_p, *[ctypes.c_int64] * 3], ctypes.c_float
    return function


def in_halves(flat: np.ndarray, read: Callable[[np.ndarray], Any]) -> None:
    """Read an array's parts in as many threads as are allowed."""
    list(POOL.map(read, np.array_split(flat, num_threads())))


def floors(matrix: np.ndarray, torch: Any, c_read: Any) -> dict[str, Callable[[], Any]]:
    """Plain reads of the same bytes as float32."""
    flat = matrix.reshape(-1, order="A").view(np.uint8).view(np.float32)
    ways: dict[str, Callable[[], Any]] = {"max": lambda: in_halves(flat, np.max)}
    if c_read is not None:
        ways["one place"] = lambda: in_halves(
            flat, lambda part: c_read(part.ctypes.data, part.size, 1, part.size)
        )
        ways["quarters"] = lambda: in_halves(
            flat,
            lambda part: c_read(part.ctypes.data, part.size, PLACES, part.size // PLACES // 64 * 64 + 64),
        )
        ways["four places"] = lambda: in_halves(
            flat, lambda part: c_read(part.ctypes.data, part.size, PLACES, STRETCH)
        )
    if torch is not None:
        tensor = torch.from_numpy(flat)
        ways["torch.sum"] = tensor.sum
    return ways


def bits_of(matrix: np.ndarray) -> np.ndarray:
    """The matrix as PyTorch can take it: bfloat16 travels as int16."""
    return matrix.view(np.int16) if str(matrix.dtype) == "bfloat16" else matrix


def contenders(
    weights: np.ndarray, matrix: np.ndarray, torch: Any, alone: bool
) -> dict[str, Callable[[], Any]]:
    """The ways to reduce the matrix; `alone`, klimb's on NumPy."""
    ways: dict[str, Callable[[], Any]] = {"klimb": lambda: klimb.reinforce_gradient(weights, matrix)}
    if alone:
        return ways
    if str(matrix.dtype) != "bfloat16":
        ways["textbook"] = lambda: np.mean(weights[:, None] * matrix, axis=0)
        ways["r @ G"] = lambda: weights @ matrix
    if torch is not None:
        tensor = torch.from_numpy(bits_of(matrix))
        if str(matrix.dtype) == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        vector = torch.from_numpy(weights.astype(np.float32)).to(tensor.dtype)
        ways["torch.mv"] = lambda: torch.mv(tensor.T, vector)
        ways["klimb, torch"] = lambda: klimb.reinforce_gradient(vector, tensor)
    return ways


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round; what takes over half a second runs in the first two alone."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)  # noqa: S311  an order, not a secret
    for turn in range(rounds + 1):
        for name in order.sample(list(ways), len(ways)):
            is_spinning = name in SPINNING
            if (turn > 5 and is_spinning and not name.startswith("floor")) or (
                turn > 2 and statistics.fmean(seconds[name]) > 0.5
            ):
                continue
            if is_spinning:
                time.sleep(PAUSE)
            start = time.perf_counter()
            ways[name]()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
            if is_spinning:
                time.sleep(PAUSE)
    return seconds


def make(rows: int, columns: int, dtype: str, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Random weights and a matrix in a layout; a strided one is every other row of a larger."""
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(0)
    pattern = rng.standard_normal(1 << 20).astype(kind)
    if layout == "strided":
        matrix = np.resize(pattern, (2 * rows, columns))[::2]
    else:
        matrix = np.resize(pattern, (rows, columns))
        matrix = np.asfortranarray(matrix) if layout == "Fortran" else matrix
    return rng.standard_normal(rows).astype(np.float64 if dtype == "float64" else np.float32), matrix


def report(label: str, layout: str, matrix: np.ndarray, seconds: dict[str, list[float]]) -> str:
    """One row of the table: GB/s of each way, and klimb's share of the floor with its quartiles."""
    speed = {name: matrix.nbytes / 1e9 / statistics.median(values) for name, values in seconds.items()}
    best = max((name for name in seconds if name.startswith("floor")), key=lambda name: speed[name])
    ratios = [f / k for f, k in zip(seconds[best], seconds["klimb"], strict=False)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    columns = [
        f"{speed[name]:.1f}" if name in speed else "" for name in ("textbook", "r @ G", "torch.mv", "klimb")
    ]
    columns += [f"{speed['klimb, torch']:.1f}" if "klimb, torch" in speed else "", f"{speed[best]:.1f}"]
    return (
        f"| {label} {matrix.dtype} | {layout} | {' | '.join(columns)} | {middle:.2f} ({low:.2f}–{high:.2f}) |"
    )


def small_calls() -> None:
    """Microseconds of a small call beside the bare expression."""
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32):
        weights, rewards, policy, reference, grads = (
            rng.normal(size=size).astype(dtype) for size in (64, 32, 32, 32, (32, 64))
        )

        def bare(
            w: Any = weights, r: Any = rewards, p: Any = policy, q: Any = reference, g: Any = grads
        ) -> Any:
            return w + 0.1 * (((r - 0.1 * (p - q)) @ g) / 32)

        def checked(
            w: Any = weights, r: Any = rewards, p: Any = policy, q: Any = reference, g: Any = grads
        ) -> Any:
            return klimb.rlhf_weight_update(w, r, p, q, g, 0.1, 0.1)

        pairs = [
            (timeit.timeit(bare, number=5000) / 5e-3, timeit.timeit(checked, number=5000) / 5e-3)
            for _ in range(9)
        ]
        ratios = sorted(ours / theirs for theirs, ours in pairs)
        bare_us, ours_us = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"N = 32, P = 64, {dtype.__name__}: bare expression {bare_us:.1f} µs, klimb with checks {ours_us:.1f} µs, "
            f"ratio {ratios[4]:.2f} ({ratios[2]:.2f}–{ratios[6]:.2f})"
        )


def processor() -> str:
    """The processor, as the system names it."""
    file = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in file.read_text().splitlines()] if file.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    name = facts.get("model name", platform.processor() or platform.machine())
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--layouts", nargs="+", default=["C", "Fortran", "strided"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64", "float16", "bfloat16"])
    parser.add_argument("--alone", action="store_true", help="without the other people's ways")
    arguments = parser.parse_args()
    torch = __import__("torch") if importlib.util.find_spec("torch") else None
    c_read = compiled_read()
    print(f"{processor()}; {num_threads()} threads; kernels' path {path()}; GB/s of the matrix, medians\n")
    print(
        "| matrix | layout | textbook | r @ G | torch.mv | klimb | klimb, torch | floor | klimb / floor (quartiles) |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for label, rows, columns, dtype in SHAPES:
        for layout in arguments.layouts if dtype in arguments.dtypes else []:
            weights, matrix = make(rows, columns, dtype, layout)
            contiguous = np.ascontiguousarray(matrix) if layout == "strided" else matrix
            ways = {f"floor {name}": way for name, way in floors(contiguous, torch, c_read).items()}
            seconds = measure(ways | contenders(weights, matrix, torch, arguments.alone), arguments.rounds)
            print(report(label, layout, matrix, seconds), flush=True)
    print()
    small_calls()


if __name__ == "__main__":
    main()
