"""New-flow tables as values, their fingerprints, and the memory of the last two of each VIP."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from maglev._flowtable import address_key, build
from maglev.vpp.planning.model import ActualAs, ActualVip
from maglev.vpp.planning.tables import Table, fingerprint_text, table_of
from maglev.vpp.state.tables import Tables
from maglev.vpp.wire.messages import VipKey
from tests.helpers.checker import FakeClock

WWW, API = VipKey.parse("192.0.2.1/32", 6, 80), VipKey.parse("192.0.2.2/32", 6, 80)


def ases(**weights: int) -> dict[bytes, ActualAs]:
    """ASes 10.0.0.<letter>, in the order of the arguments."""
    return {bytes((10, 0, 0, ord(name) - 96)): ActualAs(weight) for name, weight in weights.items()}


def vip(key: VipKey = WWW, length: int = 64, **weights: int) -> ActualVip:
    return ActualVip(key, 0, length, ases=ases(**weights))


@pytest.mark.parametrize("base", ["10.0.0.", "2001:db8::"])
def test_a_table_gives_back_its_weights_buckets_and_owners(base: str) -> None:
    weights = {ip_address(f"{base}{number}").packed: number for number in (3, 1, 0, 2)}
    table = table_of({address: ActualAs(weight) for address, weight in weights.items()}, 64)
    assert table.weights() == {address: weight for address, weight in weights.items() if weight}
    counts, owners = build([(address_key(ip_address(one)), weight) for one, weight in weights.items()], 64)
    assert table.owners() == [list(weights)[index] for index in owners]
    assert [table.owner(bucket) for bucket in range(64)] == table.owners()
    assert table.buckets() == {address: count for address, count in zip(weights, counts, strict=True) if count}


@pytest.mark.parametrize("found", [{}, ases(a=0)])
def test_a_table_without_weight_is_empty(found: dict[bytes, ActualAs]) -> None:
    table = table_of(found, 64)
    assert not table.weights()
    assert not table.owners()
    assert table.owner(5) is None
    assert not table.buckets()
    assert table.fingerprint == Table(64, b"").fingerprint


def test_a_fingerprint_is_of_length_addresses_and_weights_alone() -> None:
    one = table_of(ases(a=1, b=2, c=0), 64)
    # Neither order nor servers without weight, nor buckets as read or remembered, make another table.
    same = {address: ActualAs(found.weight, 5, clean=True) for address, found in reversed(ases(a=1, b=2).items())}
    assert table_of(same, 64).fingerprint == one.fingerprint
    others = [table_of(ases(a=1, b=2), 128), table_of(ases(a=2, b=1), 64), table_of(ases(a=1, c=2), 64)]
    assert len({one.fingerprint, *(table.fingerprint for table in others)}) == 4


def test_a_fingerprint_is_the_same_in_all_versions() -> None:
    # Nodes of different versions are compared by it: this number may never change.
    assert fingerprint_text(table_of(ases(a=1, b=2), 64).fingerprint) == "9659b9932f126dfb"
    six = {ip_address("2001:db8::1").packed: ActualAs(3)}
    assert fingerprint_text(table_of(six, 16384).fingerprint) == "ad1f19937c5a5a9b"


def test_the_memory_has_the_table_before_the_last_change() -> None:
    clock = FakeClock()
    tables = Tables(clock)
    assert tables.find(WWW) is None
    tables.read(vip(a=1, b=1))
    found = tables.find(WWW)
    assert found is not None
    assert (found.before, found.changed_at_ns, found.read_at_ns) == (None, 0, clock.time_ns())
    clock.now += 5
    tables.read(vip(a=1, b=1, c=0))
    found = tables.find(WWW)
    assert found is not None
    assert (found.before, found.read_at_ns) == (None, clock.time_ns())
    clock.now += 5
    changed = clock.time_ns()
    tables.read(vip(a=0, b=1))
    clock.now += 5
    tables.read(vip(a=0, b=1))
    found = tables.find(WWW)
    assert found is not None
    assert found.table == table_of(ases(b=1), 64)
    assert found.fingerprint == found.table.fingerprint
    assert found.before == table_of(ases(a=1, b=1), 64)
    assert (found.changed_at_ns, found.read_at_ns) == (changed, clock.time_ns())


def test_the_memory_forgets_vips_that_are_gone() -> None:
    tables = Tables(FakeClock())
    tables.read(vip(WWW, a=1))
    tables.read(vip(API, a=1))
    tables.keep({API})
    assert tables.find(WWW) is None
    assert tables.find(API) is not None
