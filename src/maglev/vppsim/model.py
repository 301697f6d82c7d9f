"""VPP's lb plugin as plain data: VIPs, ASes, new-flow tables, sticky flows, garbage collection.

No I/O; the caller passes the clock in. The behaviour follows VPP's ``src/plugins/lb/lb.c`` with its oddities, because a
controller has to cope with them: pools reuse the index that was freed last, deleted ASes linger until garbage
collection, and values survive in reused slots. All times are seconds since the start of the (simulated) VPP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import itemgetter
from typing import Final, Generic, TypeVar

from maglev import _flowtable

GC_INTERVAL: Final = 60
"""Garbage collection looks at a VIP at most this often, seconds."""
GC_GRACE: Final = 10
"""A deleted AS is kept for at least this long, seconds."""

NS_PER_BUCKET: Final = 17
NS_PER_REPLICA: Final = 125
PACKET_SIZE: Final = 64
"""Bytes that a simulated packet counts for."""
MAX_TABLE_LENGTH: Final = 1 << 24

OK: Final = 0
NO_SUCH_ENTRY: Final = -6
INVALID_VALUE: Final = -7
INVALID_MEMORY_SIZE: Final = -70
INVALID_ARGUMENT: Final = -73
VALUE_EXIST: Final = -81
INVALID_ADDRESS_FAMILY: Final = -97

ANY_PROTOCOL: Final = 255
COUNTERS: Final = (
    "packet from existing sessions",
    "first session packet",
    "untracked packet",
    "no server configured",
)
EXISTING, FIRST, UNTRACKED, NO_SERVER = range(4)


class Crash(Exception):
    """The real VPP dies of this call."""


class VipType(IntEnum):
    """Families of the VIP and of its backends. 0 is also what an encap that fits nothing silently becomes."""

    IP6_GRE6 = 0
    IP6_GRE4 = 1
    IP4_GRE6 = 2
    IP4_GRE4 = 3
    IP4_L3DSR = 4
    IP4_NAT4 = 5
    IP6_NAT6 = 6

    @property
    def is_ip4(self) -> bool:
        """The VIP's own family."""
        return self in _IP4_VIPS

    @property
    def backends_ip4(self) -> bool:
        """The family of its ASes."""
        return self in _IP4_BACKENDS

    @property
    def is_nat(self) -> bool:
        """True for the encaps that have a target port."""
        return self in (VipType.IP4_NAT4, VipType.IP6_NAT6)

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


_IP4_VIPS: Final = frozenset({VipType.IP4_GRE6, VipType.IP4_GRE4, VipType.IP4_L3DSR, VipType.IP4_NAT4})
_IP4_BACKENDS: Final = frozenset({VipType.IP6_GRE4, VipType.IP4_GRE4, VipType.IP4_L3DSR, VipType.IP4_NAT4})

ENCAP_GRE4, ENCAP_GRE6, ENCAP_L3DSR, ENCAP_NAT4, ENCAP_NAT6 = range(5)
_TYPE_OF: Final = {
    (True, ENCAP_GRE4): VipType.IP4_GRE4,
    (True, ENCAP_GRE6): VipType.IP4_GRE6,
    (True, ENCAP_L3DSR): VipType.IP4_L3DSR,
    (True, ENCAP_NAT4): VipType.IP4_NAT4,
    (False, ENCAP_GRE4): VipType.IP6_GRE4,
    (False, ENCAP_GRE6): VipType.IP6_GRE6,
    (False, ENCAP_NAT6): VipType.IP6_NAT6,
}
ENCAP_OF: Final = {
    VipType.IP4_GRE4: ENCAP_GRE4,
    VipType.IP6_GRE4: ENCAP_GRE4,
    VipType.IP4_GRE6: ENCAP_GRE6,
    VipType.IP6_GRE6: ENCAP_GRE6,
    VipType.IP4_L3DSR: ENCAP_L3DSR,
    VipType.IP4_NAT4: ENCAP_NAT4,
    VipType.IP6_NAT6: ENCAP_NAT6,
}


# Addresses are held as VPP holds them: 16 bytes, IPv4 behind 12 zeros.

_V4: Final = bytes(12)


def embed(address: bytes) -> bytes:
    """4 or 16 bytes as the 16 that VPP computes with."""
    return _V4 + address if len(address) == 4 else address


def extract(address: bytes) -> bytes:
    """The 4 bytes of an embedded IPv4 address, else the 16. ``::a.b.c.d`` looks like IPv4, to VPP as well."""
    return address[12:] if address[:12] == _V4 else address


def normalise(prefix: bytes, length: int) -> bytes:
    """The 16 bytes with all bits behind ``length`` cleared."""
    if length >= 128:
        return prefix
    return (int.from_bytes(prefix, "big") >> (128 - length) << (128 - length)).to_bytes(16, "big")


T = TypeVar("T")


class Pool(Generic[T]):
    """VPP's pool: slots with an index, of which the one freed last is given out first."""

    __slots__ = ("_free", "_make", "_slots", "_used")

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._slots: list[T] = []
        self._used: list[bool] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._slots) - len(self._free)

    def __iter__(self) -> Iterator[T]:
        """The elements in use, by index."""
        return (one for one, used in zip(self._slots, self._used, strict=True) if used)

    def get(self) -> tuple[int, T]:
        """An index and its element. A reused element is as it was left: VPP does not clear it."""
        if self._free:
            index = self._free.pop()
            self._used[index] = True
        else:
            index = len(self._slots)
            self._slots.append(self._make(index))
            self._used.append(True)
        return index, self._slots[index]

    @property
    def capacity(self) -> int:
        """Slots, in use or not."""
        return len(self._slots)

    def put(self, index: int) -> None:
        """Give an index back."""
        self._used[index] = False
        self._free.append(index)

    def __getitem__(self, index: int) -> T:
        return self._slots[index]

    def __setitem__(self, index: int, value: T) -> None:
        self._slots[index] = value


@dataclass(slots=True, eq=False)
class As:
    """One application server of one VIP."""

    index: int
    address: bytes = bytes(16)
    used: bool = False
    weight: int = 0
    vip_index: int = -1
    last_used: int = 0  # when it was deleted last; kept when the slot is reused
    route: bytes = b""  # of the next hop, key into Model.routes
    dpo: int = 0  # forwarding object of the route; held on to until the slot is reused
    flows: int = 0  # sticky flows, over all workers


@dataclass(slots=True, eq=False)
class Vip:
    """One virtual service, or what is left of it."""

    index: int
    prefix: bytes = bytes(16)
    length: int = 0  # of the prefix; IPv4: 96 and more
    protocol: int = ANY_PROTOCOL
    port: int = 0
    type: VipType = VipType.IP6_GRE6
    encap_low: int = 0  # one byte: the DSCP of L3DSR, the service type of NAT
    target_port: int = 0  # as stored: network byte order read on a little-endian machine
    used: bool = False
    src_ip_sticky: bool = False
    table_length: int = 1
    last_gc: int = 0
    as_slots: Pool[int] = field(default_factory=lambda: Pool(lambda _: 0))
    slot_of: dict[bytes, int] = field(default_factory=dict)  # AS address -> slot in as_slots
    weights: int = 0  # sum over the live ASes
    counters: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    flows: dict[int, int] = field(default_factory=dict)  # sticky flows: hash -> index of the AS
    table: list[int] | None = None  # AS index of each bucket, computed at the first query
    buckets: dict[int, int] | None = None  # AS index -> buckets, computed at the first query

    @property
    def is_ip4(self) -> bool:
        """By the bytes of the prefix, as VPP's formatters tell it."""
        return self.length >= 96 and self.prefix[:12] == _V4


@dataclass(frozen=True, slots=True)
class NewVip:
    """The arguments of adding a VIP."""

    prefix: bytes  # 16 bytes
    length: int
    protocol: int
    port: int
    encap: int
    table_length: int = 1024
    src_ip_sticky: bool = False
    dscp: int = 0
    srv_type: int = 0
    target_port: int = 0


@dataclass(slots=True)
class Conf:
    """The plugin's global settings, with its defaults."""

    ip4_src_address: bytes = b"\xff" * 4
    ip6_src_address: bytes = b"\xff" * 16
    sticky_buckets_per_core: int = 1024
    flow_timeout: int = 40


FIRST_ROUTE_INDEX: Final = 8
"""Load-balance objects that a VPP without interfaces has made for itself when the first VIP comes."""


def _is_power_of_two(value: int) -> bool:
    return value & (value - 1) == 0  # 0 counts as one, as in VPP


class Model:
    """One VPP's lb plugin.

    ``now`` gives the seconds since its start. ``work_ns`` is an estimate of the main-thread time that the rebuilt
    tables would have cost a real VPP so far.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.conf = Conf()
        self.vips: Pool[Vip] = Pool(Vip)
        self.ases: Pool[As] = Pool(As)
        self.work_ns = 0
        self._by_key: dict[tuple[bytes, int, int, int], int] = {}  # VIPs in use
        self._by_prefix: dict[tuple[bytes, int], dict[int, None]] = {}  # VIPs in use, by prefix
        self._by_filter: dict[tuple[bytes, int, int], set[int]] = {}  # visible VIPs, by what dumps compare
        self._next_gc = float(GC_INTERVAL)
        # Routes (prefix and length) -> [index of the forwarding object, users]. The index is what VPP prints as "dpo",
        # and what selects the route's counters in the stats segment. Routes and ASes lock their object; VPP forgets to
        # unlock it when it collects an AS, so the index stays taken until the AS's slot is used again.
        self.routes: dict[bytes, list[int]] = {}
        self._locks: dict[int, int] = {}
        self._traffic: dict[int, list[int]] = {}  # index -> packets and bytes to the route
        self._route_indexes: Pool[None] = Pool(lambda _: None)
        for _ in range(FIRST_ROUTE_INDEX):
            self._route_indexes.get()
        # Index 0 of both pools is a placeholder.
        _, placeholder = self.vips.get()
        placeholder.prefix, placeholder.length = b"\xff" * 16, 0
        self.ases.get()[1].address = b"\xff" * 16

    # --- time

    def second(self) -> int:
        """VPP's clock as it writes it down: whole seconds, 32 bits."""
        return int(self._now()) & 0xFFFFFFFF

    def run_timers(self) -> None:
        """Garbage collection of all VIPs, every 60 seconds. Call it before every call, and now and then."""
        now = self._now()
        while self._next_gc <= now:
            self._collect_all(int(self._next_gc))
            self._next_gc += GC_INTERVAL

    def collect_garbage(self) -> None:
        """Collect the garbage of all VIPs. The plugin's CLI commands begin with this."""
        self._collect_all(self.second())

    def _collect_all(self, now: int) -> None:
        emptied: list[Vip] = []
        for vip in self.vips:
            self._collect(vip, now)
            if not vip.used and not len(vip.as_slots) and vip.index:
                emptied.append(vip)
        for vip in emptied:
            vip.as_slots = Pool(lambda _: 0)
            vip.slot_of = {}
            same = self._by_filter[vip.prefix, vip.protocol, vip.port]
            same.discard(vip.index)
            if not same:
                del self._by_filter[vip.prefix, vip.protocol, vip.port]
            self.vips.put(vip.index)

    def _collect(self, vip: Vip, now: int) -> None:
        if not _passed(now, vip.last_gc + GC_INTERVAL):
            return
        vip.last_gc = now
        # In the order of the slots: what is freed last here is what the next AS gets.
        for address, slot in sorted(vip.slot_of.items(), key=itemgetter(1)):
            server = self.ases[vip.as_slots[slot]]
            if not server.used and server.flows == 0 and _passed(now, server.last_used + GC_GRACE):
                self._release_route(server.route)
                del vip.slot_of[address]
                vip.as_slots.put(slot)
                self.ases.put(server.index)

    # --- VIPs

    def find(self, prefix: bytes, length: int, protocol: int, port: int) -> Vip | None:
        """The VIP in use with exactly this key."""
        index = self._by_key.get((normalise(prefix, length), length, protocol, port))
        return None if index is None else self.vips[index]

    def add_vip(self, args: NewVip) -> tuple[int, int]:
        """Return value, and the index of the new VIP. Raises Crash where VPP does."""
        prefix = normalise(args.prefix, args.length)
        is_ip4 = args.length >= 96 and prefix[:12] == _V4
        kind = _TYPE_OF.get((is_ip4, args.encap), VipType.IP6_GRE6)
        key = (prefix, args.length, args.protocol, args.port)
        neighbours = self._by_prefix.get((prefix, args.length), {})
        if key in self._by_key:
            return VALUE_EXIST, 0
        if neighbours:
            if args.port == 0 or any(self.vips[index].port == 0 for index in neighbours):
                return VALUE_EXIST, 0
            if self.vips[min(neighbours)].type is not kind:
                return INVALID_ARGUMENT, 0
        if not _is_power_of_two(args.table_length):
            return INVALID_MEMORY_SIZE, 0
        if is_ip4 != kind.is_ip4:
            return INVALID_ADDRESS_FAMILY, 0
        if args.table_length == 0:
            raise Crash("a VIP with a new-flow table of length 0")
        if args.table_length > MAX_TABLE_LENGTH:
            raise Crash(f"no memory for a new-flow table of length {args.table_length}")

        index, vip = self.vips.get()
        vip.prefix, vip.length = prefix, args.length
        vip.port = args.port
        vip.protocol = args.protocol if args.port else ANY_PROTOCOL
        vip.last_gc = self.second()
        vip.type = kind
        if kind is VipType.IP4_L3DSR:
            vip.encap_low = args.dscp
        elif kind.is_nat:
            vip.encap_low = args.srv_type
            vip.target_port = int.from_bytes(args.target_port.to_bytes(2, "big"), "little")
        vip.used = True
        vip.src_ip_sticky = args.src_ip_sticky
        vip.table_length = args.table_length
        vip.counters = [0, 0, 0, 0]
        vip.weights = 0
        self._rebuild(vip)
        if not neighbours:
            self._acquire_route(_route(prefix, args.length))
        self._by_key[key] = index
        self._by_prefix.setdefault((prefix, args.length), {})[index] = None
        self._by_filter.setdefault((prefix, vip.protocol, vip.port), set()).add(index)
        return OK, index

    def delete_vip(self, vip: Vip) -> int:
        """Delete a VIP with all its ASes, which linger until garbage collection takes them. Flows are not flushed."""
        self.delete_ases(vip, [server.address for server in self.ases_of(vip)], flush=False)
        vip.used = False
        del self._by_key[(vip.prefix, vip.length, vip.protocol, vip.port)]
        neighbours = self._by_prefix[(vip.prefix, vip.length)]
        del neighbours[vip.index]
        if not neighbours:
            del self._by_prefix[(vip.prefix, vip.length)]
            self._release_route(_route(vip.prefix, vip.length))
        return OK

    def visible_vips(self) -> Iterator[Vip]:
        """The VIPs without the placeholder, deleted ones included, by index."""
        return (vip for vip in self.vips if vip.index)

    def filtered_vips(self, prefix: bytes, protocol: int, port: int) -> list[Vip]:
        """The same of that prefix (16 bytes), protocol and port; the length of the prefix does not count."""
        return [self.vips[index] for index in sorted(self._by_filter.get((prefix, protocol, port), ()))]

    # --- ASes

    def ases_of(self, vip: Vip) -> Iterator[As]:
        """The ASes of a VIP in the order of the dumps, deleted ones included."""
        return (self.ases[index] for index in vip.as_slots)

    def add_ases(self, vip: Vip, addresses: Sequence[bytes], weight: int, *, flush: bool) -> int:
        """Add ASes (16 bytes each), all or none, with one rebuild. Lingering ones are revived with this weight."""
        revived: list[As] = []
        added: list[bytes] = []
        for position in range(len(addresses) - 1, -1, -1):  # VPP goes backwards, hence its order of indexes
            address = addresses[position]
            server = self._find_as(vip, address)
            if server is not None:
                if server.used:
                    return VALUE_EXIST
                revived.append(server)
                continue
            if (address[:12] == _V4) != vip.type.backends_ip4:
                return INVALID_ADDRESS_FAMILY
            if address not in addresses[:position]:
                added.append(address)
        for server in revived:
            if not server.used:
                vip.weights += weight
            server.used = True
            server.weight = weight
            if flush:
                self._flush(vip, server)
        for address in added:
            index, server = self.ases.get()
            server.address, server.used, server.weight, server.vip_index = address, True, weight, vip.index
            slot, _ = vip.as_slots.get()
            vip.as_slots[slot] = index
            vip.slot_of[address] = slot
            server.route = _route(address, 128)
            before, server.dpo = server.dpo, self._acquire_route(server.route)
            self._locks[server.dpo] += 1
            if before:
                self._unlock(before)
            vip.weights += weight
        self._rebuild(vip)
        self._collect(vip, self.second())
        return OK

    def delete_ases(self, vip: Vip, addresses: Sequence[bytes], *, flush: bool) -> int:
        """Delete ASes, all or none, with one rebuild. Deleting a lingering AS again succeeds."""
        found: list[As] = []
        for address in addresses:
            server = self._find_as(vip, address)
            if server is None:
                return NO_SUCH_ENTRY
            found.append(server)
        now = self.second()
        self._collect(vip, now)  # may take one that is in ``found``: the writes below then go to a free slot, as in VPP
        for server in found:
            if server.used:
                vip.weights -= server.weight
            server.used = False
            server.last_used = now
            if flush:
                self._flush(vip, server)
        if found:
            self._rebuild(vip)
        return OK

    def set_weight(self, vip: Vip, address: bytes, weight: int, *, flush: bool) -> int:
        """Set the weight of a live AS. The table is rebuilt even if nothing changes."""
        server = self._find_as(vip, address)
        if server is None or not server.used:
            return NO_SUCH_ENTRY
        vip.weights += weight - server.weight
        server.weight = weight
        self._rebuild(vip)
        if flush:
            self._flush(vip, server)
        return OK

    def _find_as(self, vip: Vip, address: bytes) -> As | None:
        slot = vip.slot_of.get(address)
        return None if slot is None else self.ases[vip.as_slots[slot]]

    # --- tables

    def _rebuild(self, vip: Vip) -> None:
        # Most tables are never queried: record the work that VPP would have done, and compute the table on demand.
        vip.table = vip.buckets = None
        self.work_ns += NS_PER_BUCKET * vip.table_length + NS_PER_REPLICA * vip.weights

    def _shares(self, vip: Vip) -> tuple[list[int], list[tuple[bytes, int]]]:
        live = [server for server in self.ases_of(vip) if server.used and server.weight]
        return [server.index for server in live], [(server.address, server.weight) for server in live]

    def buckets(self, vip: Vip) -> dict[int, int]:
        """AS index -> buckets in the new-flow table. An AS without buckets is not in it."""
        if vip.buckets is None:
            indexes, shares = self._shares(vip)
            vip.buckets = dict(zip(indexes, _flowtable.bucket_counts(shares, vip.table_length), strict=True))
        return vip.buckets

    def table(self, vip: Vip) -> list[int]:
        """The new-flow table: AS index of each bucket, or 0 without a server."""
        if vip.table is None:
            indexes, shares = self._shares(vip)
            if indexes:
                _, positions = _flowtable.build(shares, vip.table_length)
                vip.table = [indexes[position] for position in positions]
            else:
                vip.table = [0] * vip.table_length
        return vip.table

    # --- flows

    def packets(self, vip: Vip, flows: Iterable[int]) -> None:
        """One packet of each flow, given by its hash: known flows stay with their AS, new ones are given one.

        Sticky tables have no bounds here, and flows do not time out: in VPP too an expired flow goes on counting for
        its AS until its entry is taken by another one.
        """
        table = self.table(vip)
        mask = vip.table_length - 1
        route = self._traffic[self.routes[_route(vip.prefix, vip.length)][0]]
        for flow in flows:
            route[0] += 1
            route[1] += PACKET_SIZE
            if flow in vip.flows:
                vip.counters[EXISTING] += 1
                continue
            index = table[flow & mask]
            if index == 0:
                vip.counters[NO_SERVER] += 1
                continue
            vip.flows[flow] = index
            self.ases[index].flows += 1
            vip.counters[FIRST] += 1

    def _flush(self, vip: Vip, server: As | None = None) -> None:
        for flow, index in list(vip.flows.items()):
            if server is None or index == server.index:
                self.ases[index].flows -= 1
                del vip.flows[flow]

    def flush_vip(self, vip: Vip) -> int:
        """Forget all flows of a VIP."""
        self._flush(vip)
        return OK

    def flush_all(self) -> None:
        """Forget all flows."""
        for vip in self.vips:
            self._flush(vip)

    # --- the rest

    def set_conf(self, conf: Conf) -> int:
        """Replace the global settings."""
        if not _is_power_of_two(conf.sticky_buckets_per_core):
            return INVALID_MEMORY_SIZE
        self.conf = conf
        return OK

    def route_index(self, prefix: bytes, length: int) -> int | None:
        """The index of a route's counters, for exactly this prefix (16 bytes, embedded length)."""
        route = self.routes.get(_route(normalise(prefix, length), length))
        return None if route is None else route[0]

    def route_counters(self) -> list[int]:
        """Packets and bytes to each route, alternating, by index."""
        row = [0] * (2 * self._route_indexes.capacity)
        for index, traffic in self._traffic.items():
            row[2 * index : 2 * index + 2] = traffic
        return row

    def _acquire_route(self, route: bytes) -> int:
        known = self.routes.get(route)
        if known is None:
            index, _ = self._route_indexes.get()
            self._locks[index] = 1
            self._traffic[index] = [0, 0]
            known = self.routes[route] = [index, 0]
        known[1] += 1
        return known[0]

    def _release_route(self, route: bytes) -> None:
        known = self.routes[route]
        known[1] -= 1
        if not known[1]:
            del self.routes[route]
            self._unlock(known[0])

    def _unlock(self, index: int) -> None:
        self._locks[index] -= 1
        if not self._locks[index]:
            del self._locks[index]
            self._route_indexes.put(index)


def _route(prefix: bytes, length: int) -> bytes:
    return prefix + bytes((length,))


def _passed(now: int, moment: int) -> bool:
    # VPP compares seconds modulo 2^32; "after" includes the moment itself.
    return (now - moment) & 0xFFFFFFFF < 0x7FFFFFFF
