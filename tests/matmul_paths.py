"""What multiplies, forced."""

import pytest

from klimb.model.capability import product_path, product_paths_here


@pytest.fixture
def use_products(monkeypatch):
    """Have models multiplied in a way that is named, as KLIMB_PRODUCTS names it when a process begins."""

    def use(name):
        monkeypatch.setenv("KLIMB_PRODUCTS", name)
        product_path.cache_clear()
        assert product_path() == name

    yield use
    monkeypatch.undo()
    product_path.cache_clear()


@pytest.fixture(params=product_paths_here())
def every_product_path(request, use_products):
    """Each way to multiply that works on this machine."""
    use_products(request.param)
    return request.param
