"""What the tests of generated code share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels of the tests are built by the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SARC_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
    yield
    patch.undo()
