"""The configuration file of a running daemon."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from maglev.checker import Checker
from maglev.daemon.configfile import ConfigFile
from maglev.daemon.sdnotify import Notifier
from tests.helpers.checker import FakeClock


def config_file(path: str) -> ConfigFile:
    return ConfigFile(Path(path), cast("Checker", None), cast("Notifier", None), FakeClock())


def test_the_file_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file("maglev.yaml").file == str(tmp_path / "maglev.yaml")
    assert config_file("/etc/vpp-maglev/maglev.yaml").file == "/etc/vpp-maglev/maglev.yaml"


def test_a_working_directory_that_is_gone_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert config_file("maglev.yaml").file == "maglev.yaml"
