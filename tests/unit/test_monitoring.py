"""Metric names by promtool's rules; alerts, dashboard and user guide name series that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from maglev._probe import Engine
from maglev.metrics.engine import ENGINE_COUNTERS, ENGINE_GAUGES
from tests.helpers.metrics import ROOT, documented, families, used

# The rules of `promtool check metrics`, in short.
UNITS = re.compile(r"_(milliseconds|microseconds|nanoseconds|minutes|hours|days|kilobytes|megabytes|percent|bits)\b")
PROMTOOL = sorted((ROOT / "tests" / "promtool").glob("*.yml"))
RUNBOOK = "file:///usr/share/doc/vpp-maglev/operations.md"
"""Where the package puts the book; headings of Markdown have anchors in lower case."""

KINDS = ("counter", "gauge", "histogram", "summary")


def test_every_name_passes_the_lint_of_prometheus() -> None:
    found = families()
    assert len(found) > 60
    for name, (kind, text) in found.items():
        assert re.fullmatch(r"maglev_[a-z][a-z0-9]*(_[a-z0-9]+)*", name), name
        assert kind in KINDS, name
        assert text.endswith("."), f"{name}: help is a sentence"
        assert name.endswith("_total") == (kind == "counter"), f"{name}: _total is for counters, and all of them"
        assert not re.search(r"_(count|sum|bucket)$", name), f"{name}: reserved"
        assert not re.search(rf"_({'|'.join(KINDS)})(_|$)", name), f"{name}: says its type"
        assert not UNITS.search(name), f"{name}: not a base unit"


@pytest.mark.parametrize(
    "page", [ROOT / "docs/alerts.yml", ROOT / "docs/grafana.json", *PROMTOOL], ids=lambda page: page.name
)
def test_what_watches_us_names_series_that_exist(page: Path) -> None:
    names = used(page.read_text(encoding="utf-8"))
    assert names
    assert names <= families().keys()


def test_the_user_guide_has_every_family() -> None:
    assert {name for name in documented() if name.startswith("maglev_")} == families().keys()


def test_every_stat_of_the_engine_has_words() -> None:
    assert set(Engine(capacity=16).stats()) == ENGINE_COUNTERS.keys() | ENGINE_GAUGES.keys()


def test_every_alert_is_tested_and_has_words() -> None:
    rules = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in PROMTOOL]
    looks = [one for file in files for test in file["tests"] for one in test["alert_rule_test"]]
    fires = {one["alertname"] for one in looks if one["exp_alerts"]}
    quiet = {one["alertname"] for one in looks if not one["exp_alerts"]}
    assert fires == quiet == {rule["alert"] for rule in rules}
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{rule['alert'].lower()}"
        assert f"### {rule['alert']}\n" in operations, "the book says what to do about it"


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    board = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])
