"""Which path of the kernels is used, and what is said of one that cannot be."""

from pathlib import Path

import pytest

from klimb.config.train import TrainConfig
from klimb.errors import ConfigError
from klimb.kernels import library
from klimb.kernels.library import paths_here
from klimb.training.run import check, train


@pytest.mark.parametrize("name", ["avx512", "avx2", "neon", "generic", "numpy"])
def test_every_path_that_this_machine_can_run_is_used_when_it_is_named(name, use_path):
    if name not in paths_here():
        pytest.skip(f"this machine cannot run {name}: no test of the kernels ran on it")
    use_path(name)
    assert library.path() == name
    assert (library.library() is None) == (name == "numpy")
    is_best = name == paths_here()[0]
    assert library.why_not_faster() == ("" if is_best else f"KLIMB_KERNELS={name} is set")


def test_the_best_is_used_where_none_is_named(monkeypatch, use_path):
    use_path("numpy")
    monkeypatch.delenv("KLIMB_KERNELS")
    library.path.cache_clear()
    assert library.path() == paths_here()[0] != "numpy"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nobody else here says what the processor has")
def test_what_the_processor_has_is_what_the_system_says_that_it_has():
    text = Path("/proc/cpuinfo").read_text()
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    if not flags:
        assert paths_here() == ("neon", "numpy")
        return
    assert ("avx2" in paths_here()) == (flags >= {"avx2", "fma", "f16c"})
    needed = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "f16c"}
    assert ("avx512" in paths_here()) == (flags >= needed)


def refusal_of(name, use_path):
    with pytest.raises(ConfigError) as caught:
        use_path(name)
    return str(caught.value)


def test_a_path_of_no_such_name_is_refused(use_path):
    assert refusal_of("sse9", use_path) == (
        f"KLIMB_KERNELS=sse9: no such path of the kernels; use one of {', '.join(paths_here())}, or unset it"
    )


def test_a_path_of_another_processor_is_refused(use_path, monkeypatch):
    built = library._compiled()
    weaker = built._replace(num_here=1)
    monkeypatch.setattr(library, "_compiled", lambda: weaker)
    if len(built.paths) > 1:
        assert "this processor cannot run it" in refusal_of(built.paths[-1], use_path)
    other = "generic" if built.paths[0] == "neon" else "neon"
    assert "it was not compiled when klimb was installed here" in refusal_of(other, use_path)


def test_without_compiled_functions_numpy_is_used_and_the_reason_is_said(use_path, monkeypatch):
    monkeypatch.delenv("KLIMB_KERNELS", raising=False)
    nothing = library._Compiled(problem="klimb was installed without a C compiler")
    monkeypatch.setattr(library, "_compiled", lambda: nothing)
    library.path.cache_clear()
    assert library.path() == "numpy"
    assert library.why_not_faster() == "klimb was installed without a C compiler"
    assert "without a C compiler" in refusal_of("avx2", use_path)


def test_a_library_of_another_machine_is_done_without(tmp_path, monkeypatch):
    file = tmp_path / "_compiled.so"
    file.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setattr(library, "_FILE", file)
    found = library._compiled.__wrapped__()
    assert found.functions is None
    assert f"{file} does not fit this machine" in found.problem


def test_a_run_is_told_so_before_anything_is_read(use_path, monkeypatch, tmp_path):
    use_path("numpy")
    monkeypatch.setenv("KLIMB_KERNELS", "sse9")
    library.path.cache_clear()
    config = TrainConfig(model="nowhere", prompts=tmp_path / "none", reward=("vader",), out=tmp_path / "out")
    for begin in (train, check):
        with pytest.raises(ConfigError, match="KLIMB_KERNELS=sse9"):
            begin(config)
