"""Gradients in row blocks, from loops and files, in constant memory."""

import io
import itertools
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import klimb
from klimb import KlimbError, row_blocks, streamed_weight_update
from klimb.cli.main import main
from klimb.cli.update import _shown


@pytest.fixture
def arguments():
    rng = np.random.default_rng(0)
    sizes = {
        "weights": 7,
        "rewards": 100,
        "policy_log_probs": 100,
        "ref_log_probs": 100,
        "log_prob_grads": (100, 7),
    }
    return {name: rng.normal(size=size) for name, size in sizes.items()} | {"beta": 0.3, "lr": 0.1}


def cut(matrix, sizes):
    starts = np.cumsum([0, *sizes])
    return [matrix[start:stop] for start, stop in itertools.pairwise(starts)]


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [33, 33, 34], [99, 1]])
def test_however_the_rows_are_cut_the_step_is_the_definitions(sizes, arguments):
    blocks = iter(cut(arguments["log_prob_grads"], sizes))
    streamed = streamed_weight_update(**(arguments | {"log_prob_grads": blocks}))
    np.testing.assert_allclose(streamed, klimb.rlhf_weight_update(**arguments), rtol=1e-13)


def test_float32_stays_float32(arguments):
    single = {name: np.float32(value) if np.ndim(value) else value for name, value in arguments.items()}
    streamed = streamed_weight_update(
        **(single | {"log_prob_grads": cut(single["log_prob_grads"], [50, 50])})
    )
    assert streamed.dtype == np.float32
    np.testing.assert_allclose(streamed, klimb.rlhf_weight_update(**single), rtol=1e-5)


def test_a_memory_map_is_an_array_like_any_other(arguments, tmp_path):
    np.save(tmp_path / "grads.npy", arguments["log_prob_grads"])
    mapped = np.load(tmp_path / "grads.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        klimb.rlhf_weight_update(**(arguments | {"log_prob_grads": mapped})),
        klimb.rlhf_weight_update(**arguments),
    )


def test_update_takes_gradients_from_a_file_of_their_own(arguments, tmp_path, capsys):
    small = {name: arguments[name] for name in ("weights", "rewards", "policy_log_probs", "ref_log_probs")}
    np.savez(tmp_path / "step.npz", **small)
    safetensors.numpy.save_file({"log_prob_grads": arguments["log_prob_grads"]}, tmp_path / "g.safetensors")
    command = [
        "update",
        str(tmp_path / "step.npz"),
        "--beta",
        "0.3",
        "--lr",
        "0.1",
        "-o",
        str(tmp_path / "w.npy"),
    ]
    assert main([*command, "--log-prob-grads", str(tmp_path / "g.safetensors")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "w.npy"), klimb.rlhf_weight_update(**arguments), rtol=1e-13)
    assert "7 weights, float64" in capsys.readouterr().out


def test_the_progress_of_a_stream_is_shown_in_a_terminal_only():
    class Screen(io.StringIO):
        def isatty(self):
            return True

    blocks = [np.zeros((2, 3)), np.zeros((1, 3))]
    screen, plain = Screen(), io.StringIO()
    assert len(list(_shown(blocks, 3, screen))) == len(list(_shown(blocks, 3, plain))) == 2
    assert "3/3 samples, 0 s left" in screen.getvalue()
    assert plain.getvalue() == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda grads: [grads[:99]], "log_prob_grads: expected 100 rows, got 99"),
        (lambda grads: [grads, grads], "log_prob_grads: expected 100 rows, got at least 200"),
        (lambda grads: [grads[:, :6]], r"log_prob_grads: expected shape \(n, 7\), got \(100, 6\)"),
        (lambda grads: [grads[0]], r"log_prob_grads: expected shape \(n, 7\), got \(7,\)"),
        (
            lambda grads: [np.where(grads == grads[3, 2], np.nan, grads)],
            r"log_prob_grads: .* nan at \[3, 2\]",
        ),
        (lambda _: [], "log_prob_grads: expected 100 rows, got 0"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(change, message, arguments):
    arguments["log_prob_grads"] = change(arguments["log_prob_grads"])
    with pytest.raises(KlimbError, match=message):
        streamed_weight_update(**arguments)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("block_bytes", [1, 100, 10**9])
def test_both_kinds_of_file_give_their_rows(dtype, block_bytes, tmp_path):
    matrix = np.random.default_rng(0).normal(size=(20, 3)).astype(dtype)
    safetensors.numpy.save_file({"other": np.ones(5), "log_prob_grads": matrix}, tmp_path / "a.safetensors")
    files = [tmp_path / "a.safetensors"]
    if dtype is not ml_dtypes.bfloat16:
        np.save(tmp_path / "a.npy", matrix)
        files.append(tmp_path / "a.npy")
    for file in files:
        rows = [block.copy() for block in row_blocks(file, block_bytes=block_bytes)]
        np.testing.assert_array_equal(np.concatenate(rows), matrix)
        assert rows[0].dtype == dtype


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"expected a \.npy or \.safetensors file"),
        ("a.npy", b"nonsense", r"not a \.npy file"),
        ("a.npy", None, "cannot read: No such file"),
        ("a.safetensors", b"\xff" * 20, r"not a \.safetensors file: its header would have"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"{}", "has no tensor 'log_prob_grads'; it has none"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]", r"not a \.safetensors file"),
    ],
)
def test_a_file_that_is_no_matrix_is_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KlimbError, match=message):
        list(row_blocks(tmp_path / name))


def test_npy_files_that_cannot_be_streamed_are_named(tmp_path):
    cases = {
        "cut off": (np.ones((50, 3)), lambda data: data[:-8]),
        "Fortran": (np.asfortranarray(np.ones((4, 3))), lambda data: data),
        r"expected a matrix \(N, P\), got shape \(4,\)": (np.ones(4), lambda data: data),
        "never unpickles": (np.array([[None]]), lambda data: data),
    }
    for message, (array, change) in cases.items():
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        (tmp_path / "a.npy").write_bytes(change((tmp_path / "a.npy").read_bytes()))
        with pytest.raises(KlimbError, match=message):
            list(row_blocks(tmp_path / "a.npy"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_a_matrix_four_times_larger_than_the_memory_allowed(tmp_path):
    """`klimb update` in a process whose address space is limited; each row is its number, so the answer is known."""
    num_rows, num_columns, allowed = 8192, 65_536, 512 << 20
    assert num_rows * num_columns * 4 == 4 * allowed
    header = np.lib.format.header_data_from_array_1_0(np.empty((num_rows, num_columns), np.float32))
    with (tmp_path / "grads.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for row in range(0, num_rows, 512):  # sparse: one row in 512 is not zero
            file.seek(start + row * num_columns * 4)
            file.write(np.full(num_columns, row + 1, np.float32).tobytes())
        file.truncate(start + num_rows * num_columns * 4)
    zeros = np.zeros(num_rows, np.float32)
    np.savez(
        tmp_path / "step.npz",
        weights=np.zeros(num_columns, np.float32),
        rewards=zeros + 1,
        policy_log_probs=zeros,
        ref_log_probs=zeros,
    )
    code = (
        "import numpy, resource, sys\n"
        "import klimb.cli.main, klimb.cli.update\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({allowed}, {allowed}))\n"
        "sys.exit(klimb.cli.main.main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "update",
        "step.npz",
        "--beta",
        "0",
        "--lr",
        "1",
        "-o",
        "weights.npy",
    ]
    environment = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PATH": ""}
    finished = subprocess.run(
        [*command, "--log-prob-grads", "grads.npy"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    expected = sum(range(1, num_rows + 1, 512)) / num_rows
    np.testing.assert_allclose(np.load(tmp_path / "weights.npy"), expected, rtol=1e-6)
