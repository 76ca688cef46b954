"""One warm server and one healthy world for all tests of a module. They are slow, so the fixtures wait to be asked."""
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
