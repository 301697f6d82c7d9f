"""Metrics: what they say, in a form that Prometheus' own parser reads, and how the server bounds its callers."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from maglev._probe import Histogram
from maglev.config.model import Backend
from maglev.metrics import exposition as rendering
from maglev.metrics import server as serving
from maglev.metrics.checker import CheckerFamilies
from maglev.metrics.dataplane import VppFamilies
from maglev.metrics.engine import EngineFamilies
from maglev.metrics.exposition import Exposition
from maglev.metrics.server import MetricsServer
from maglev.metrics.text import Family, escape_label, labelled, single
from maglev.views.dataplane import DataplaneFigures, VipFingerprint, VipTraffic
from tests.helpers.checker import config
from tests.helpers.rpc import VPP
from tests.unit.test_checker_verbs import Rig

A = "192.0.2.1"
B = "2001:db8::1"


async def text_of(exposition: Exposition) -> str:
    return b"".join([piece async for piece in exposition.render()]).decode()


def parsed(text: str) -> dict[str, list[Sample]]:
    """Samples by name. The parser raises for anything that is not the format."""
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def values(samples: list[Sample], *labels: str) -> dict[tuple[str, ...], float]:
    return {tuple(s.labels[label] for label in labels): s.value for s in samples}


@pytest.fixture
async def rig() -> Rig:
    """a (up, weight 100), b (down) and the static s, in frontend www."""
    rig = Rig()
    backends = [
        Backend("a", ip_address(A), "ping"),
        Backend("b", ip_address(B), "ping"),
        Backend("s", ip_address("192.0.2.3")),
    ]
    await rig.checker.apply(config(backends, {"www": [{"a": 100, "b": 40}, {"s": 10}]}), by="start")
    rig.checker.settle(())
    rig.result(A, True, times=2)
    rig.result(B, False)
    return rig


async def test_backend_and_frontend_families(rig: Rig) -> None:
    exposition = Exposition()
    exposition.add(CheckerFamilies(rig.checker).families())
    found = parsed(await text_of(exposition))
    assert values(found["maglev_backend_state"], "backend", "address", "healthcheck", "state") == {
        ("a", A, "ping", "up"): 1,
        ("b", B, "ping", "down"): 1,
        ("s", "192.0.2.3", "", "up"): 1,
    }
    assert values(found["maglev_backend_health"], "backend") == {("a",): 4, ("b",): 0}
    assert values(found["maglev_backend_enabled"], "backend") == {("a",): 1, ("b",): 1, ("s",): 1}
    assert values(found["maglev_frontend_state"], "frontend", "state") == {("www", "up"): 1}
    member = ("frontend", "pool", "backend")
    assert values(found["maglev_frontend_pool_backend_weight"], *member) == {
        ("www", "pool0", "a"): 100,
        ("www", "pool0", "b"): 40,
        ("www", "pool1", "s"): 10,
    }
    assert values(found["maglev_frontend_pool_backend_effective_weight"], *member) == {
        ("www", "pool0", "a"): 100,
        ("www", "pool0", "b"): 0,
        ("www", "pool1", "s"): 0,
    }
    assert values(found["maglev_probe_total"], "backend", "type", "result", "code") == {
        ("a", "icmp", "pass", "L3OK"): 2,
        ("b", "icmp", "fail", "L3TOUT"): 1,
    }
    assert values(found["maglev_probe_rtt_seconds_count"], "backend") == {("a",): 2}
    assert values(found["maglev_probe_rtt_seconds_sum"], "backend") == {("a",): 2e-6}
    assert values(found["maglev_backend_transitions_total"], "backend", "from", "to") == {
        ("a", "unknown", "up"): 1,
        ("b", "unknown", "down"): 1,
        ("s", "unknown", "up"): 1,
    }


async def test_backends_without_a_line_do_not_hold_the_loop(rig: Rig) -> None:
    silent = Family("silent", "gauge", "No line, however long it takes.", lambda: iter([""] * 10))
    exposition = Exposition()
    exposition.add([silent])
    assert "silent" not in await text_of(exposition)
    for family in CheckerFamilies(rig.checker).families():
        if family.name in ("maglev_backend_unprobed_since_seconds", "maglev_backend_transitions_total"):
            assert "" in family.rows()


async def test_operators_settings_and_trouble_show(rig: Rig) -> None:
    rig.checker.disable("a", by="op")
    rig.checker.drain("s", by="op")
    target = rig.engine.probed(B)
    target.blocked_since_ns = 1_500_000_000
    exposition = Exposition()
    exposition.add(CheckerFamilies(rig.checker).families())
    found = parsed(await text_of(exposition))
    assert values(found["maglev_backend_enabled"], "backend")["a",] == 0
    assert values(found["maglev_backend_drained"], "backend")["s",] == 1
    assert values(found["maglev_overrides"], "kind") == {
        ("drain",): 1,
        ("disable",): 1,
        ("enable",): 0,
        ("pause",): 0,
        ("weight",): 0,
    }
    assert values(found["maglev_backend_unprobed_since_seconds"], "backend") == {("b",): 1.5}


class FakeStats:
    def stats(self) -> dict[str, int]:
        return {"targets": 2, "sent_icmp": 7}

    def histograms(self) -> dict[tuple[str, str], Histogram]:
        return {("icmp", "pass"): Histogram((0.001, 0.01), (3, 2, 1), 0.25)}

    def lateness(self) -> Histogram:
        return Histogram((0.001,), (5, 0), 0.001)


async def test_engine_families_and_cumulative_histograms() -> None:
    exposition = Exposition()
    exposition.add(EngineFamilies(FakeStats()).families())
    found = parsed(await text_of(exposition))
    assert values(found["maglev_probe_duration_seconds_bucket"], "type", "result", "le") == {
        ("icmp", "pass", "0.001"): 3,
        ("icmp", "pass", "0.01"): 5,
        ("icmp", "pass", "+Inf"): 6,
    }
    assert found["maglev_probe_duration_seconds_count"][0].value == 6
    assert found["maglev_probe_duration_seconds_sum"][0].value == 0.25
    assert found["maglev_engine_send_lateness_seconds_count"][0].value == 5
    assert found["maglev_engine_targets"][0].value == 2
    assert found["maglev_engine_sent_icmp_total"][0].value == 7


FIGURES = DataplaneFigures(
    vpp=replace(VPP, version='v1 "quoted"', build_date="today", pid=7, uptime_ns=5_000_000_000),
    connects=1,
    api_total={("lb_as_set_weight", "request", "sent"): 3},
    lbsync={},
    drift={},
    batches=0,
    full_syncs=0,
    failed_syncs=0,
    suppressed_syncs=0,
    recreations_given_up=0,
    bucket_mismatches=0,
    refused_calls=2,
    unmanaged_vips=1,
    waiting_vips=0,
    unlocked=False,
    cost_factor=1.5,
    estimated_work_ns=2_000_000_000,
    mass_changes=True,
    commands_failed=0,
)


class FakeDataplane:
    """A dataplane with one VIP of ours and one that is not configured."""

    def __init__(self) -> None:
        self.now = FIGURES

    def figures(self) -> DataplaneFigures:
        return self.now

    def traffic(self) -> Iterator[VipTraffic]:
        if self.now.vpp is not None:
            yield VipTraffic("www", "192.0.2.80/32", "tcp", 80, 1, 2, 3, 4, 5, 6)
            yield VipTraffic("", "192.0.2.81/32", "any", 0, 1, 2, 3, 4, 5, 6)

    def fingerprints(self) -> Iterator[VipFingerprint]:
        if self.now.vpp is not None:
            yield VipFingerprint("www", "192.0.2.80/32", "tcp", 80, (1 << 53) - 1)


async def test_what_describes_vpp_is_absent_while_it_is_away() -> None:
    dataplane = FakeDataplane()
    families = VppFamilies(dataplane).families()
    exposition = Exposition()
    exposition.add(families)
    found = parsed(await text_of(exposition))
    assert found["maglev_vpp_info"][0].labels == {"version": 'v1 "quoted"', "build_date": "today", "pid": "7"}
    assert found["maglev_vpp_uptime_seconds"][0].value == 5
    assert (
        values(found["maglev_vpp_vip_packets_total"], "frontend", "prefix", "protocol", "port", "kind")[
            "www", "192.0.2.80/32", "tcp", "80", "untracked"
        ]
        == 3
    )
    assert values(found["maglev_vpp_vip_route_bytes_total"], "frontend", "protocol", "port") == {
        ("www", "tcp", "80"): 6,
        ("", "any", "0"): 6,
    }
    assert values(found["maglev_vpp_vip_fingerprint"], "frontend", "prefix", "protocol", "port") == {
        ("www", "192.0.2.80/32", "tcp", "80"): (1 << 53) - 1
    }
    assert values(found["maglev_vpp_lbsync_total"], "scope", "kind")["one", "as_weight_updated"] == 0
    assert values(found["maglev_vpp_api_total"], "msg", "direction", "result") == {
        ("lb_as_set_weight", "request", "sent"): 3
    }
    assert found["maglev_vpp_lb_supported"][0].value == 1
    dataplane.now = replace(FIGURES, vpp=replace(VPP, lb_supported=False))
    assert parsed(await text_of(exposition))["maglev_vpp_lb_supported"][0].value == 0
    dataplane.now = replace(FIGURES, vpp=None)
    away = parsed(await text_of(exposition))
    assert away["maglev_vpp_connected"][0].value == 0
    assert {name for name in found if name.startswith("maglev_vpp_")} - set(away) == {
        "maglev_vpp_info",
        "maglev_vpp_lb_supported",
        "maglev_vpp_unlocked",
        "maglev_vpp_uptime_seconds",
        "maglev_vpp_vip_fingerprint",
        "maglev_vpp_connected_seconds",
        "maglev_vpp_unmanaged_vips",
        "maglev_vpp_cost_factor",
        "maglev_vpp_vip_packets_total",
        "maglev_vpp_vip_route_packets_total",
        "maglev_vpp_vip_route_bytes_total",
    }


async def test_family_without_samples_is_left_out_and_the_process_is_in() -> None:
    exposition = Exposition()
    exposition.add([single("maglev_absent", "gauge", "Not there.", lambda: None), Family("m", "gauge", "h", list)])
    text = await text_of(exposition)
    assert "maglev" not in text
    assert "process_resident_memory_bytes" in text


async def test_labels_are_escaped() -> None:
    assert escape_label('a"b\\c\nd') == r"a\"b\\c\nd"
    exposition = Exposition()
    exposition.add([labelled("maglev_x", "gauge", "Help.", "text", lambda: {'q"\\\n': 1})])
    assert values(parsed(await text_of(exposition))["maglev_x"], "text") == {('q"\\\n',): 1}


def test_two_families_of_one_name_are_a_mistake() -> None:
    exposition = Exposition()
    family = single("maglev_x", "gauge", "Help.", lambda: 1)
    with pytest.raises(ValueError, match="maglev_x"):
        exposition.add([family, family])


@pytest.mark.parametrize("at", [1, 30, 180, 195, 198, 205, 250])
async def test_a_scrape_gives_the_loop_its_turn_and_survives_a_reload(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr(rendering, "SLICE_NS", 0)
    rig = Rig()
    names = {f"b{i}": f"192.0.2.{i}" for i in range(1, 40)}
    frontends = {f"f{i}": [{"b1": 1, "b2": 2}] for i in range(40)}
    await rig.checker.apply(config(names, frontends), by="start")
    exposition = Exposition()
    exposition.add(CheckerFamilies(rig.checker).families())
    pieces: list[bytes] = []
    async for piece in exposition.render():
        pieces.append(piece)
        if len(pieces) == at:
            await rig.checker.apply(config({"b1": "192.0.2.1"}, {"f0": [{"b1": 1}]}), by="x", force=True)
    assert len(pieces) > at
    parsed(b"".join(pieces).decode())


@pytest.fixture
async def server() -> AsyncIterator[MetricsServer]:
    exposition = Exposition()
    exposition.add([single("maglev_x", "gauge", "Help.", lambda: 1)])
    server = MetricsServer(exposition)
    await server.start("127.0.0.1:0")
    yield server
    await server.stop()


async def ask(server: MetricsServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    if request == b"":
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """The bytes up to the end of the connection, orderly or not."""
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""


def unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        if count == 0:
            assert rest == b"\r\n"
            return whole
        whole += rest[:count]
        assert rest[count : count + 2] == b"\r\n"
        body = rest[count + 2 :]
    raise AssertionError("the last chunk is missing")


async def test_get_metrics_in_http_1_1_is_chunked(server: MetricsServer) -> None:
    answer = await ask(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"text/plain; version=0.0.4" in head
    assert parsed(unchunked(body).decode())["maglev_x"][0].value == 1
    assert server.scraped == 1


async def test_http_1_0_gets_the_plain_body(server: MetricsServer) -> None:
    answer = await ask(server, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert parsed(body.decode())["maglev_x"][0].value == 1


@pytest.mark.parametrize(
    ("header", "packed"),
    [
        (b"Accept-Encoding: gzip", True),
        (b"accept-encoding: deflate, gzip;q=0.5", True),
        (b"Accept-Encoding: gzip;q=0", False),
        (b"Accept-Encoding: identity", False),
        (b"X-Accept-Encoding: gzip", False),
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_the_text_is_compressed_for_those_who_take_that(
    server: MetricsServer, header: bytes, packed: bool, version: bytes
) -> None:
    answer = await ask(server, b"GET /metrics HTTP/%b\r\n%b\r\n\r\n" % (version, header))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (b"Content-Encoding: gzip" in head) is packed
    assert b"Vary: Accept-Encoding" in head
    text = unchunked(body) if version == b"1.1" else body
    assert parsed((gzip.decompress(text) if packed else text).decode())["maglev_x"][0].value == 1


async def test_healthz_says_that_the_loop_runs(server: MetricsServer) -> None:
    assert (await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\nok\n")
    head = await ask(server, b"HEAD /healthz HTTP/1.0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert server.scraped == 0


async def test_head_has_no_body(server: MetricsServer) -> None:
    answer = await ask(server, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/3\r\n\r\n", b"400"),
        (b"\x16\x03\x01 garbage \xff\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"", b"400"),
    ],
)
async def test_what_is_no_request_for_metrics_gets_a_plain_answer(
    server: MetricsServer, request_bytes: bytes, status: bytes
) -> None:
    answer = await ask(server, request_bytes)
    assert answer.split(b" ")[1] == status
    assert server.scraped == 0


async def test_who_says_nothing_makes_room_for_who_asks(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 2)
    silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
    # The oldest has made room for the third, which asks while the second says nothing still.
    assert await answer_of(silent[0][0]) == b""
    assert server.refused["connections"] == 1
    assert b"maglev_x 1" in await ask(server, b"GET /metrics HTTP/1.0\r\n\r\n")
    for _, writer in silent:
        writer.close()


async def test_connections_that_ask_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 1)
    exposition = Exposition()
    exposition.add([Family("m", "gauge", "h", lambda: (f'm{{n="{i}"}} 1\n' for i in range(2_000_000)))])
    server = MetricsServer(exposition)
    await server.start("127.0.0.1:0")
    begun, scraper = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    scraper.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    await begun.readexactly(100)
    other, writer = await asyncio.open_connection("127.0.0.1", server.port)
    assert await answer_of(other) == b""
    assert server.refused["connections"] == 1
    await begun.readexactly(100)
    for each in (scraper, writer):
        each.close()
    await server.stop()


async def test_a_client_that_says_nothing_is_dropped(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    assert await answer_of(reader) == b""
    assert server.refused["slow"] == 1
    writer.close()


async def test_a_reader_that_stops_reading_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SCRAPE_SECONDS", 0.05)
    exposition = Exposition()
    exposition.add([Family("m", "gauge", "h", lambda: (f'm{{n="{i}"}} 1\n' for i in range(2_000_000)))])
    server = MetricsServer(exposition)
    await server.start("127.0.0.1:0")
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(10):
        while not server.refused["slow"]:
            await asyncio.to_thread(lambda: None)
    writer.close()
    await server.stop()
