"""One thread: these layers are so small that waiting for a second one takes longer than they do."""

from collections.abc import Iterator

import pytest
import torch

from channelwise.runtime.cpu import library


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["kernels", "torch"])
def kernels_or_torch(request: pytest.FixtureRequest) -> Iterator[None]:
    """A layer is the same on the CPU's kernels as where they were not built."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(library, "available", lambda: False)
        elif not library.available():
            pytest.skip("the kernels were not built: there is no C++ compiler")
        yield
