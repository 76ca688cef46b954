"""One warm server and one healthy world for all tests of a module. The modules import these two, because a second
conftest.py would hide the first from the tests that import it."""
import pytest
from warm import Warm
from worlds import made


@pytest.fixture(scope="module")
def warm():
    server = Warm()
    yield server
    server.close()


@pytest.fixture(scope="module")
def world(warm, tmp_path_factory):
    return made(warm, tmp_path_factory.mktemp("hardening") / "world")
