"""What a reload would change, in the words of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from maglev.config.diff import ChangeKind, diff_configs
from maglev.config.load import load_text
from maglev.config.model import Config

FULL = (Path(__file__).parent.parent / "data" / "config" / "full.yaml").read_text()


def config_of(text: str) -> Config:
    result = load_text(text)
    assert result.config is not None, result.problems
    return result.config


def shown(old: str, new: str) -> list[str]:
    assert old != new
    return [str(change) for change in diff_configs(config_of(old), config_of(new))]


def test_equal_configurations_have_no_changes() -> None:
    assert diff_configs(config_of(FULL), config_of(FULL)) == []


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("transition-history: 7", "transition-history: 8", ["maglev.healthchecker.transition-history: 7 -> 8"]),
        ("    netns: dataplane\n", "", ["maglev.healthchecker.netns: removed dataplane"]),
        ("max-duty: 40%", "max-duty: 12.5%", ["maglev.vpp.lb.max-duty: 40% -> 12.5%"]),
        ("max-stall: 4ms", "max-stall: 1500us", ["maglev.vpp.lb.max-stall: 4ms -> 1.5ms"]),
        ("min-up: 40%", "min-up: 2", ["maglev.frontends.www-v6.pools.primary.min-up: 40% -> 2"]),
        ("          resume-up: 2\n", "", ["maglev.frontends.www-v6.pools.primary.resume-up: 2 -> 40%"]),
        ("resume-after: 30s", "resume-after: 0s", ["maglev.frontends.www-v6.pools.primary.resume-after: 30s -> 0s"]),
        ("below: 30%, action: keep", "below: 40%", [
            "maglev.frontends.www-v6.panic.below: 30% -> 40%",
            "maglev.frontends.www-v6.panic.action: keep -> all",
        ]),
        ("      panic: {below: 30%, action: keep}\n", "",
         ["maglev.frontends.www-v6.panic: removed below 30%, action keep"]),
        ("slow-start: 1m", "slow-start: 90s", ["maglev.frontends.www-v6.slow-start: 1m0s -> 1m30s"]),
        ("prune: all", "prune: none", ["maglev.vpp.lb.prune: all -> none"]),
        ("mass-changes: off", "mass-changes: auto", ["maglev.vpp.lb.mass-changes: off -> auto"]),
        ("      flow-timeout: 40s\n", "", ["maglev.vpp.lb.flow-timeout: removed 40s"]),
        ("ipv4-src-address: 192.0.2.1", "ipv4-src-address: 192.0.2.2",
         ["maglev.vpp.lb.ipv4-src-address: 192.0.2.1 -> 192.0.2.2"]),
        ("interval: 1m30s", "interval: 1m", [
            f"maglev.healthchecks.alive.{key}: 1m30s -> 1m0s"
            for key in ("interval", "fast-interval", "down-interval", "timeout")
        ]),
        ("path: /healthz", "path: /", ["maglev.healthchecks.web.params.path: /healthz -> /"]),
        ("200-299,304", "200,204-205", ["maglev.healthchecks.web.params.response-code: 200-299,304 -> 200,204-205"]),
        ("type: icmp, params: {size: 100}", "type: tcp, port: 7", [
            "maglev.healthchecks.alive.type: icmp -> tcp",
            "maglev.healthchecks.alive.port: added 7",
            "maglev.healthchecks.alive.params.mode: added syn",
            "maglev.healthchecks.alive.params.tls: added false",
            "maglev.healthchecks.alive.params.size: removed 100",
        ]),
        ("tls: true, server-name: dns.example.org", "mode: syn", [
            "maglev.healthchecks.handshake.params.mode: added syn",
            "maglev.healthchecks.handshake.params.tls: true -> false",
            "maglev.healthchecks.handshake.params.server-name: removed dns.example.org",
            "maglev.healthchecks.handshake.params.insecure-skip-verify: removed false",
        ]),
        ("insecure-skip-verify: true", "insecure-skip-verify: false",
         ["maglev.healthchecks.secure.params.insecure-skip-verify: true -> false"]),
        ("address: 192.0.2.20", "address: 192.0.2.30",
         ["maglev.backends.static-primary.address: 192.0.2.20 -> 192.0.2.30"]),
        ("healthcheck: secure, enabled: false", "healthcheck: secure",
         ["maglev.backends.nginx1-ams.enabled: false -> true"]),
        ("192.0.2.21, healthcheck: open", "192.0.2.21", ["maglev.backends.no.healthcheck: removed open"]),
        ("  frontends:\n", "    x: {address: 192.0.2.9}\n  frontends:\n",
         ["maglev.backends.x: added 192.0.2.9"]),
        ("      protocol: tcp\n      port: 80\n", "",
         ["maglev.frontends.www-v6.protocol: removed tcp", "maglev.frontends.www-v6.port: removed 80"]),
        ("weight-unit: 5", "weight-unit: auto", ["maglev.frontends.www-v6.weight-unit: 5 -> auto"]),
        ("on-all-down: keep", "on-all-down: drain", ["maglev.frontends.www-v6.on-all-down: keep -> drain"]),
        ("nginx0-ams: {weight: 100}", "nginx0-ams: {weight: 60}",
         ["maglev.frontends.www-v6.pools.primary.backends.nginx0-ams.weight: 100 -> 60"]),
        ("nginx0-ams: {weight: 100}, nginx1-ams: {}", "nginx1-ams: {}, nginx0-ams: {}",
         ["maglev.frontends.www-v6.pools.primary.backends: "
          "order nginx0-ams, nginx1-ams -> order nginx1-ams, nginx0-ams"]),
        (", nginx1-ams: {}", "",
         ["maglev.frontends.www-v6.pools.primary.backends.nginx1-ams: removed weight 100"]),
        ("name: fallback", "name: reserve", [
            "maglev.frontends.www-v6.pools: primary, fallback -> primary, reserve",
            "maglev.frontends.www-v6.pools.reserve.backends.nginx2-ams: added weight 10",
            "maglev.frontends.www-v6.pools.fallback.backends.nginx2-ams: removed weight 10",
        ]),
        ("description: public web", 'description: ""', ["maglev.frontends.www-v6.description: removed public web"]),
    ],
)  # fmt: skip
def test_change_is_reported(old: str, new: str, changes: list[str]) -> None:
    assert FULL.count(old) >= 1
    assert shown(FULL, FULL.replace(old, new, 1)) == changes


def test_frontends_and_checks_come_and_go() -> None:
    before = """
      maglev:
        backends: {a: {address: "2001:db8::1"}}
        healthchecks: {ping: {type: icmp}, web: {type: http, port: 80}}
        frontends: {f: {address: 192.0.2.1, protocol: tcp, port: 80, pools: [{name: p, backends: {a: }}]}}
    """
    changes = diff_configs(config_of(before), config_of("maglev: {}"))
    assert [str(change) for change in changes] == [
        "maglev.healthchecks.ping: removed icmp",
        "maglev.healthchecks.web: removed http 80",
        "maglev.backends.a: removed 2001:db8::1",
        "maglev.frontends.f: removed 192.0.2.1 tcp 80",
    ]
    back = diff_configs(config_of("maglev: {}"), config_of(before))
    assert [change.kind for change in back] == [ChangeKind.ADDED] * 4
    assert [change.new for change in back] == [change.old for change in changes]


def test_another_order_is_one_change() -> None:
    names = ["a", "b", "c", "d"]
    backends = [f"{name}: {{address: 192.0.2.{index}}}" for index, name in enumerate(names, 1)]
    before = f"maglev: {{backends: {{{', '.join(backends)}}}}}"
    after = f"maglev: {{backends: {{{', '.join([backends[0], *reversed(backends[1:])])}}}}}"
    assert shown(before, after) == ["maglev.backends: order b, c, d -> order d, c, b"]
