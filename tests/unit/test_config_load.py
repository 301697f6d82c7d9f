"""Loading: what a good file means, and that what a file says reaches the model to its last key."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from maglev.base.states import CheckType
from maglev.config.child import load_in_child
from maglev.config.load import LoadResult, load_file, load_text
from maglev.config.model import (
    MS,
    SECOND,
    Backend,
    Config,
    Frontend,
    HealthCheck,
    HttpParams,
    IcmpParams,
    LbConfig,
    MassChanges,
    OnAllDown,
    Panic,
    PanicAction,
    Pool,
    PoolMember,
    Protocol,
    Prune,
    TcpMode,
    TcpParams,
    Threshold,
    TlsParams,
)

FULL = Path(__file__).parent.parent / "data" / "config" / "full.yaml"

EXPECTED = Config(
    transition_history=7,
    netns="dataplane",
    lb=LbConfig(
        ipv4_src_address=IPv4Address("192.0.2.1"),
        ipv6_src_address=IPv6Address("2001:db8::1"),
        sticky_buckets_per_core=65536,
        flow_timeout=40 * SECOND,
        sync_interval=60 * SECOND,
        startup_min_delay=6 * SECOND,
        startup_max_delay=31 * SECOND,
        max_stall=4 * MS,
        max_duty=0.4,
        prune=Prune.ALL,
        mass_changes=MassChanges.OFF,
    ),
    healthchecks={
        "web": HealthCheck(
            name="web",
            type=CheckType.HTTP,
            params=HttpParams(
                path="/healthz",
                host="www.example.org",
                response_codes=((200, 299), (304, 304)),
                response_regexp="^ok",
            ),
            port=80,
            interval=3 * SECOND,
            fast_interval=500 * MS,
            down_interval=10 * SECOND,
            timeout=SECOND,
            rise=3,
            fall=4,
            probe_ipv4_src=IPv4Address("192.0.2.10"),
            probe_ipv6_src=IPv6Address("2001:db8::10"),
            netns="other",
        ),
        "secure": HealthCheck(
            name="secure",
            type=CheckType.HTTPS,
            params=HttpParams(tls=TlsParams(server_name="www.example.org", insecure_skip_verify=True)),
            port=443,
        ),
        "open": HealthCheck(name="open", type=CheckType.TCP, params=TcpParams(TcpMode.CONNECT), port=22),
        "handshake": HealthCheck(
            name="handshake",
            type=CheckType.TCP,
            params=TcpParams(TcpMode.CONNECT, TlsParams(server_name="dns.example.org")),
            port=853,
        ),
        "alive": HealthCheck(
            name="alive",
            type=CheckType.ICMP,
            params=IcmpParams(size=100),
            interval=90 * SECOND,
            fast_interval=90 * SECOND,
            down_interval=90 * SECOND,
            timeout=90 * SECOND,
        ),
    },
    backends={
        "nginx0-ams": Backend("nginx0-ams", ip_address("2001:db8:1::10"), "web"),
        "nginx1-ams": Backend("nginx1-ams", ip_address("2001:db8:1::11"), "secure", enabled=False),
        "nginx2-ams": Backend("nginx2-ams", ip_address("2001:db8:1::12"), "alive"),
        "static-primary": Backend("static-primary", ip_address("192.0.2.20")),
        "no": Backend("no", ip_address("192.0.2.21"), "open"),
        "12": Backend("12", ip_address("192.0.2.22"), "handshake"),
    },
    frontends={
        "www-v6": Frontend(
            name="www-v6",
            address=ip_address("2001:db8::80"),
            pools=(
                Pool(
                    "primary",
                    (PoolMember("nginx0-ams", 100), PoolMember("nginx1-ams", 100)),
                    min_up=Threshold(40, percent=True),
                    resume_up=Threshold(2),
                    resume_after=30 * SECOND,
                ),
                Pool("fallback", (PoolMember("nginx2-ams", 10),)),
            ),
            protocol=Protocol.TCP,
            port=80,
            description="public web",
            src_ip_sticky=True,
            flush_on_down=False,
            on_all_down=OnAllDown.KEEP,
            new_flows_table_length=4096,
            weight_unit=5,
            panic=Panic(0.3, PanicAction.KEEP),
            slow_start=60 * SECOND,
        ),
        "everything": Frontend(
            name="everything",
            address=ip_address("192.0.2.81"),
            pools=(Pool("on", (PoolMember("static-primary"), PoolMember("no", 0), PoolMember("12", 50))),),
        ),
    },
)


def typed(value: object) -> object:
    """The YAML loader's text as a JSON writer would put it: numbers and booleans by their look."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    if value == "":
        return None
    if value in ("true", "false"):
        return value == "true"
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value


def full_as_json() -> str:
    tree = yaml.load(FULL.read_text(), yaml.BaseLoader)
    return json.dumps(typed(tree))


def good(result: LoadResult) -> Config:
    assert result.config is not None, "\n".join(str(problem) for problem in result.problems)
    return result.config


def test_every_key_reaches_the_model() -> None:
    result = load_file(FULL)
    assert good(result) == EXPECTED
    assert result.problems == ()


def test_order_of_the_file_is_kept() -> None:
    config = good(load_file(FULL))
    assert list(config.backends) == list(EXPECTED.backends)
    assert list(config.healthchecks) == list(EXPECTED.healthchecks)
    assert list(config.frontends) == list(EXPECTED.frontends)


def test_json_of_the_same_shape_means_the_same() -> None:
    assert good(load_text(full_as_json(), json=True)) == EXPECTED


def test_suffix_json_selects_the_parser(tmp_path: Path) -> None:
    file = tmp_path / "maglev.json"
    file.write_text(full_as_json())
    assert good(load_file(file)) == EXPECTED


async def test_child_process_gives_the_same_result() -> None:
    assert await load_in_child(FULL) == load_file(FULL)


def test_only_the_outermost_key_is_needed() -> None:
    assert good(load_text("maglev:")) == Config()
    assert good(load_text("maglev: {}")) == Config()
    assert good(load_text('{"maglev": {}}', json=True)) == Config()


def test_sections_may_be_left_empty() -> None:
    text = "maglev:\n  healthchecker:\n  vpp:\n    lb:\n  healthchecks:\n  backends: ~\n  frontends:\n"
    assert good(load_text(text)) == Config()


def test_byte_order_mark_is_ignored() -> None:
    assert good(load_text(b"\xef\xbb\xbfmaglev: {}")) == Config()
    assert good(load_text(b'\xef\xbb\xbf{"maglev": {}}', json=True)) == Config()


@pytest.mark.parametrize("text", ["true", "True", "yes", "on", "ON"])
def test_yaml_truths(text: str) -> None:
    config = good(load_text(f"maglev: {{backends: {{a: {{address: 192.0.2.1, enabled: {text}}}}}}}"))
    assert config.backends["a"].enabled


def test_weight_unit_auto_is_the_default() -> None:
    text = """
      maglev:
        vpp: {lb: {ipv4-src-address: 192.0.2.1}}
        backends: {a: {address: 10.0.0.1}}
        frontends: {f: {address: 192.0.2.80, weight-unit: auto, pools: [{name: p, backends: {a: }}]}}
    """
    assert good(load_text(text)).frontends["f"].weight_unit is None


def test_anchors_aliases_and_merge_keys_work() -> None:
    text = """
      maglev:
        healthchecks:
          one: &base {type: tcp, port: 80, rise: 5}
          two: {<<: *base, port: 81}
          three:
            <<: [{fall: 9, rise: 1}, *base]
            type: icmp
            port: 82
    """
    result = load_text(text.replace("type: icmp", "type: tcp"))
    checks = good(result).healthchecks
    assert (checks["two"].port, checks["two"].rise) == (81, 5)
    assert (checks["three"].port, checks["three"].rise, checks["three"].fall) == (82, 1, 9)


def test_intervals_default_to_the_interval() -> None:
    check = good(load_text("maglev: {healthchecks: {a: {type: icmp, interval: 700ms}}}")).healthchecks["a"]
    assert (check.fast_interval, check.down_interval, check.timeout) == (700 * MS, 700 * MS, 700 * MS)


def test_full_file_says_something_of_every_field_of_the_model() -> None:
    # Guards the tests that load full.yaml, compare it or send it through the child: a new field with its default
    # everywhere would get lost on the way unnoticed.
    said: dict[type[Any], Iterable[object]] = {
        Config: [EXPECTED],
        LbConfig: [EXPECTED.lb],
        HealthCheck: [EXPECTED.healthchecks["web"]],
        HttpParams: [EXPECTED.healthchecks["web"].params],
        Backend: EXPECTED.backends.values(),
        Frontend: EXPECTED.frontends.values(),
        PoolMember: [
            one for frontend in EXPECTED.frontends.values() for pool in frontend.pools for one in pool.members
        ],
    }
    exempt = {"method", "tls"}
    for kind, values in said.items():
        for field in fields(kind):
            if field.name not in exempt:
                assert any(getattr(value, field.name) != field.default for value in values), f"{kind}.{field.name}"
