"""The configuration guide and the JSON schema say what the loader does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from maglev.config import docs
from maglev.config.load import load_text
from tests.helpers.configschema import errors

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "config-guide.md").read_text()
SCHEMA = docs.json_schema()
DATA = ROOT / "tests" / "data" / "config"


def typed(value: Any) -> Any:
    """A tree of text as an editor's YAML parser has it: numbers, booleans and nothing by their look."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    if value in ("true", "false", ""):
        return {"true": True, "false": False, "": None}[value]
    return int(value) if re.fullmatch(r"-?[0-9]+", value) else value


def tree(text: str) -> Any:
    return typed(yaml.load(text, yaml.BaseLoader))


def test_guide_has_the_present_tables() -> None:
    assert docs.guide(GUIDE) == GUIDE, "run: python -m maglev.config.docs docs"


def test_guide_has_every_section() -> None:
    assert sorted(re.findall(r"<!-- keys: ([a-z0-9-]+) -->", GUIDE)) == sorted(docs.sections())


def test_user_guide_has_the_present_counters() -> None:
    text = (ROOT / "docs" / "user-guide.md").read_text()
    assert "<!-- counters -->" in text
    assert docs.user_guide(text) == text, "run: python -m maglev.config.docs docs"


def test_schema_file_is_the_present_one() -> None:
    found = (ROOT / "docs" / "maglev.schema.json").read_text()
    assert found == docs.schema_text(), "run: python -m maglev.config.docs docs"
    assert json.loads(found) == SCHEMA


def test_examples_of_the_guide_load_without_a_warning() -> None:
    examples = [text for text in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL) if text.startswith("maglev:")]
    assert examples
    for example in examples:
        assert load_text(example).problems == ()
        assert errors(tree(example)) == []


def test_schema_accepts_what_the_loader_accepts() -> None:
    assert errors(tree((DATA / "full.yaml").read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "maglev: {colour: red}",
        "maglev: {backends: {a: {}}}",
        "maglev: {backends: {a: {address: www.example.org}}}",
        "maglev: {backends: {'a b': {address: 192.0.2.1}}}",
        "maglev: {backends: {a: {address: 192.0.2.1, enabled: 7}}}",
        "maglev: {healthchecks: {a: {type: ftp}}}",
        "maglev: {healthchecks: {a: {type: icmp, interval: 5}}}",
        "maglev: {healthchecks: {a: {type: icmp, rise: 0}}}",
        "maglev: {healthchecks: {a: {type: icmp, params: {path: /}}}}",
        "maglev: {healthchecks: {a: {type: http, port: 80, params: {path: healthz}}}}",
        "maglev: {healthchecks: {a: {type: http, port: 80, params: {response-code: 99}}}}",
        "maglev: {healthchecks: {a: {type: tcp, port: 70000}}}",
        "maglev: {vpp: {lb: {ipv4-src-address: '2001:db8::1'}}}",
        "maglev: {vpp: {lb: {max-duty: 50}}}",
        "maglev: {frontends: {f: {address: 192.0.2.1, pools: []}}}",
        "maglev: {frontends: {f: {address: 192.0.2.1, weight-unit: most, pools: [{name: p, backends: {a: }}]}}}",
        "maglev: {frontends: {f: {address: 192.0.2.1, new-flows-table-length: 1000, pools: [{name: p, backends: }]}}}",
        "maglev: {frontends: {f: {address: 192.0.2.1, pools: [{backends: {a: }}]}}}",
    ],
)
def test_schema_refuses_what_the_loader_refuses(text: str) -> None:
    assert load_text(text).config is None
    assert errors(tree(text))


def test_command_rewrites_the_files(tmp_path: Path) -> None:
    (tmp_path / "config-guide.md").write_text("before\n<!-- keys: icmp -->\nold\n<!-- end -->\nafter\n")
    (tmp_path / "user-guide.md").write_text("| <!-- counters -->old<!-- end counters --> | probes |\n")
    assert docs.main([str(tmp_path)]) == 0
    assert (tmp_path / "user-guide.md").read_text().startswith("| <!-- counters -->`maglev_engine_sent_icmp_total`, ")
    text = (tmp_path / "config-guide.md").read_text()
    assert "old" not in text
    assert "| `size` |" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert json.loads((tmp_path / "maglev.schema.json").read_text()) == SCHEMA
    assert docs.main([]) == 2
