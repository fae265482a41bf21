"""What all tests share: hypothesis' profile, no network, and where the shared data lies."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.simulated import Simulation

# Set before anything imports transformers: a test that would download something fails at once instead.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Without a GPU, its kernels run by Triton's interpreter, which has to be said before anything imports Triton.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

IN_CI = os.environ.get("CI", "").lower() == "true"

# No deadline: the time of one example says nothing on a busy machine.
settings.register_profile("channelwise", deadline=None, derandomize=IN_CI, print_blob=True)
settings.load_profile("channelwise")


LONGEST = "test_real_models.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that at the end no process is left with one of them while the others wait."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Comparisons by the command line keep their runs in a folder of the tests', not of the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CHANNELWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Simulation]":
    """A simulated GPU: see tests/simulated.py. Operations are recorded for it as for a real one."""
    import torch

    from tests.simulated import recorder, simulated_device

    if torch.cuda.is_available():
        pytest.skip("this machine has a real one")
    with simulated_device() as simulated:
        monkeypatch.setattr("channelwise.methods.gptq.recorder_for", lambda device: recorder(simulated, device))
        yield simulated


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("data/sst2.tsv")`: a path in the shared folder beside the repository, or in $CHANNELWISE_SHARED.

    What is not there skips the test on a user's machine and fails it in CI.
    """
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("CHANNELWISE_SHARED", beside))

    def find(path: str) -> Path:
        found = folder / path
        if not found.exists():
            refuse = pytest.fail if IN_CI else pytest.skip
            refuse(f"shared data {path} is not there; CHANNELWISE_SHARED names the folder that holds it")
        return found

    return find
