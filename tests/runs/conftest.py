"""Finished runs that nothing disturbed, for all tests of runs on disk."""

from __future__ import annotations

import pytest

from tests.killing import run
from tests.runs.tools import KEEPS
from tests.tiny import tiny


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Finished runs that nothing disturbed, by what they keep."""
    folder = tmp_path_factory.mktemp("whole")
    for keep in KEEPS:
        run(model, folder / keep / "scores", keep)
    return folder
