"""The environment that commands are rehearsed in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rehearsal.environment import CannotBeHereError, make


@pytest.fixture(scope="session")
def environment() -> Path:
    """Its root; made here where `make .rehearsal` did not."""
    try:
        return make()
    except CannotBeHereError as reason:
        pytest.skip(str(reason))
