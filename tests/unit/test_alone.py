"""Locks between test processes have a deadline."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.helpers.alone import alone


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize(("held_shared", "shared"), [(False, False), (False, True), (True, False)])
def test_a_lock_that_is_held_too_long_is_an_error_that_names_it(
    tmp_path: Path, held_shared: bool, shared: bool
) -> None:
    with (
        alone("table", shared=held_shared),
        pytest.raises(TimeoutError, match=f"{tmp_path}/maglev-tests-table.lock for more than 0.01 s"),
        alone("table", shared=shared, patience=0.01),
    ):
        pass


def test_a_lock_is_free_again_at_the_end_and_shared_ones_stand_beside_each_other() -> None:
    with alone("table", shared=True), alone("table", shared=True, patience=0.01):
        pass
    with alone("table", patience=0.01):
        pass
