"""The table of keys is true: its defaults are the model's, its attributes exist, its examples load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import pytest

from maglev.base.states import CheckType
from maglev.config import keys
from maglev.config.model import (
    Backend,
    Config,
    Frontend,
    HealthCheck,
    HttpParams,
    IcmpParams,
    LbConfig,
    Pool,
    PoolMember,
    TcpParams,
    TlsParams,
)
from maglev.kinds.registry import SECTIONS as SECTIONS_OF_KINDS
from maglev.schema.problems import ProblemKind, Report
from maglev.schema.section import Key, Listed, Named, Section, Variants

SECTIONS: list[tuple[Section, tuple[type[Any], ...]]] = [
    (keys.HEALTHCHECKER, (Config,)),
    (keys.LB, (LbConfig,)),
    (keys.HEALTHCHECK, (HealthCheck,)),
    (keys.BACKEND, (Backend,)),
    (keys.FRONTEND, (Frontend,)),
    (keys.POOL, (Pool,)),
    (keys.MEMBER, (PoolMember,)),
    (SECTIONS_OF_KINDS[CheckType.ICMP], (IcmpParams,)),
    (SECTIONS_OF_KINDS[CheckType.TCP], (TcpParams, TlsParams)),
    (SECTIONS_OF_KINDS[CheckType.HTTP], (HttpParams,)),
    (SECTIONS_OF_KINDS[CheckType.HTTPS], (HttpParams, TlsParams)),
]

# tls is true or false in the file, and the parameters of the handshake or None in the model.
DIFFERENT = {"tls"}


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
    elif key.attribute not in ("protocol", "port", "fast_interval", "down_interval", "timeout"):
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
            elif model is HttpParams:
                named -= {"tls"}
            assert named - attributes - {"name", "backend"} == set(), model.__name__
