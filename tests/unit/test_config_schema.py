"""The table of keys is true: its defaults are the model's, its attributes exist, its examples load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import pytest

from maglev.config import keys
from maglev.config.model import (
    Backend,
    Config,
    Frontend,
    HealthCheck,
    LbConfig,
    Pool,
    PoolMember,
)
from maglev.kinds.kind import Kind, Presence
from maglev.kinds.params import Block, specs
from maglev.kinds.registry import KINDS
from maglev.schema.problems import ProblemKind, Report
from maglev.schema.section import Key, Listed, Named, Section, Variants


def block_classes(kind: Kind[Any]) -> list[type[Any]]:
    """The classes of the blocks that parameters of a kind may have."""
    return [
        spec.params
        for name, spec in specs(kind.params).items()
        if isinstance(spec, Block) and kind.blocks[name] is not Presence.NEVER
    ]


SECTIONS: list[tuple[Section, tuple[type[Any], ...]]] = [
    (keys.HEALTHCHECKER, (Config,)),
    (keys.LB, (LbConfig,)),
    (keys.HEALTHCHECK, (HealthCheck,)),
    (keys.BACKEND, (Backend,)),
    (keys.FRONTEND, (Frontend,)),
    (keys.POOL, (Pool,)),
    (keys.MEMBER, (PoolMember,)),
    *((kind.section, (kind.params, *block_classes(kind))) for kind in KINDS.values()),
]

# A block is true or false in the file, or not there at all, and parameters of its own or None in the model.
DIFFERENT = {name for kind in KINDS.values() for name in kind.blocks}


def scalar_keys() -> Iterator[tuple[Key, tuple[type[Any], ...]]]:
    for section, models in SECTIONS:
        for key in section.keys:
            if not isinstance(key.type, Section | Named | Listed | Variants) and key.name not in DIFFERENT:
                yield key, models


def model_default(key: Key, models: tuple[type[Any], ...]) -> object:
    for model in models:
        for field in fields(model):
            if field.name == key.attribute:
                return field.default
    raise AssertionError(f"{key.name} ends up in no field of {models}")


@pytest.mark.parametrize(("key", "models"), list(scalar_keys()), ids=lambda value: getattr(value, "name", ""))
def test_default_is_that_of_the_model(key: Key, models: tuple[type[Any], ...]) -> None:
    default = model_default(key, models)
    if key.required:
        assert default is MISSING
    elif key.default is not None:
        assert key.type.read(key.default.strip('"'), (), Report()) == default  # type: ignore[union-attr]
    elif key.attribute not in ("protocol", "port", "fast_interval", "down_interval", "timeout", "resume_up"):
        assert default is None


@pytest.mark.parametrize(("key", "models"), list(scalar_keys()), ids=lambda value: getattr(value, "name", ""))
def test_key_describes_itself(key: Key, models: tuple[type[Any], ...]) -> None:
    assert key.help.endswith(".")
    assert key.type.rule()  # type: ignore[union-attr]
    assert key.type.json_schema()  # type: ignore[union-attr]
    assert key.example is not None
    for text in (key.example, key.default):
        if text is not None:
            report = Report()
            key.type.read(text.strip('"'), (), report)  # type: ignore[union-attr]
            assert not report.problems(*ProblemKind)


def test_every_field_of_the_model_has_a_key() -> None:
    for section, models in SECTIONS:
        attributes = {key.attribute for key in section.keys}
        for model in models:
            named = {field.name for field in fields(model)}
            if model is Config:
                named = {"transition_history", "netns"}
            assert named - attributes - DIFFERENT - {"name", "backend"} == set(), model.__name__
