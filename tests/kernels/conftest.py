"""Every test of the kernels runs on every path of theirs that this machine can run."""

import pytest

from klimb.kernels import library
from klimb.kernels.products import can_multiply
from klimb.model.capability import product_path, product_paths_here


@pytest.fixture(params=library.paths_here())
def path(request, use_path):
    """Each path that this machine can run, NumPy's included."""
    use_path(request.param)
    return request.param


@pytest.fixture(params=library.paths_here()[:-1] or [None])
def compiled_path(request, use_path):
    """Each compiled path that this machine can run."""
    assert request.param is not None, "the kernels should have been compiled with the package"
    use_path(request.param)
    return request.param


@pytest.fixture
def use_path(monkeypatch):
    """Have the kernels take a path that they are told, as KLIMB_KERNELS tells them when a process begins."""

    def forget():
        for found in (library.path, can_multiply, product_paths_here, product_path):
            found.cache_clear()

    def use(name):
        monkeypatch.setenv(library.VARIABLE, name)
        forget()
        assert library.path() == name

    yield use
    monkeypatch.undo()
    forget()
    library.path()
