"""The semantic rules: what must hold between the values of a configuration. Pure: a model in, problems out.

Rules for a single value (its range, its form) were checked when it was read (``maglev.schema.types``); rules between
the parameters of a probe kind are the kind's own (``maglev.kinds``). Every function here is given a ``Report``, which
collects: a broken rule is recorded there and checking continues, so that one run finds all problems. The place of a
problem is looked up only when one is recorded, and nothing is joined on the way up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice

from maglev._weights import programmed_weight, weight_unit
from maglev.config.model import Config, Frontend, HealthCheck, LbConfig, Pool, Protocol
from maglev.config.rampcost import ramp_cost
from maglev.kinds.kind import PortRule
from maglev.kinds.params import Files, Site
from maglev.kinds.registry import kind_of
from maglev.schema import addresses
from maglev.schema.addresses import IPAddress, taken_for_ipv4
from maglev.schema.durations import format_duration
from maglev.schema.problems import Path, Report, make_path, quote

DEFAULT_TABLE_LENGTH = 16384
# Replicas above this share of the table's buckets: weights lose their proportions, and other flows move with every
# change (measured; docs/architecture.md).
CROWDED = 20
# Frontends whose cost of slow start is computed: each takes the builds of ten tables, about 3 ms.
MOST_COSTS = 100
# Below this share of flows, slow start moves none: two backends have no others.
NO_COST = 0.0005

_LB: Path = make_path("maglev", "vpp", "lb")
_HEALTHCHECKS: Path = make_path("maglev", "healthchecks")
_BACKENDS: Path = make_path("maglev", "backends")
_FRONTENDS: Path = make_path("maglev", "frontends")


def check(config: Config, report: Report) -> None:
    """Report every rule that ``config`` breaks, and as warnings the valid parts that look like mistakes."""
    _check_lb(config.lb, report)
    files = Files()
    vips = {frontend.address: frontend.name for frontend in reversed([*config.frontends.values()])}
    for healthcheck in config.healthchecks.values():
        _check_healthcheck(healthcheck, files, report)
        _check_sources(healthcheck, vips, report)
    _check_backends(config, report)
    _check_addresses(config, vips, report)
    for frontend in config.frontends.values():
        _check_frontend(frontend, config, report)
    _check_vips(config, report)
    for frontend in islice((one for one in config.frontends.values() if one.slow_start and one.pools), MOST_COSTS):
        _check_slow_start(frontend, config, (_FRONTENDS, frontend.name), report)
    if not config.frontends and not report.refused:
        report.warn(
            _FRONTENDS,
            "there are no frontends: with this file nothing is served, and a forced reload or prune would remove every "
            "VIP from VPP; was the file cut off?",
            at_key=True,
        )


def _check_lb(lb: LbConfig, report: Report) -> None:
    if lb.startup_min_delay > lb.startup_max_delay:
        report.semantic(
            (_LB, "startup-min-delay"),
            f"startup-min-delay ({format_duration(lb.startup_min_delay)}) is longer than startup-max-delay "
            f"({format_duration(lb.startup_max_delay)})",
        )


def _check_healthcheck(healthcheck: HealthCheck, files: Files, report: Report) -> None:
    path: Path = (_HEALTHCHECKS, healthcheck.name)
    kind = kind_of(healthcheck.type)
    if kind.port is PortRule.REFUSED:
        if healthcheck.port:
            report.semantic((path, "port"), f"{kind.a_check} has no port")
    elif not healthcheck.port:
        report.semantic(path, f"{kind.a_check} needs a port", at_key=True)
    if healthcheck.timeout > healthcheck.interval:
        report.warn(
            (path, "timeout"),
            f"the timeout ({format_duration(healthcheck.timeout)}) is longer than the interval "
            f"({format_duration(healthcheck.interval)}); a probe ends with its interval",
        )
    kind.check(healthcheck.params, Site((path, "params"), report, files))


def _check_backends(config: Config, report: Report) -> None:
    for name, backend in config.backends.items():
        wanted = backend.healthcheck
        if wanted is not None and wanted not in config.healthchecks:
            report.semantic(
                ((_BACKENDS, name), "healthcheck"),
                f"there is no health check {quote(wanted)}{report.suggest(wanted, config.healthchecks)}",
            )


def _check_sources(healthcheck: HealthCheck, vips: Mapping[IPAddress, str], report: Report) -> None:
    """Warn of source addresses to which no answer can come."""
    sources = {"probe-ipv4-src": healthcheck.probe_ipv4_src, "probe-ipv6-src": healthcheck.probe_ipv6_src}
    for key, address in sources.items():
        if address is None:
            continue
        path: Path = ((_HEALTHCHECKS, healthcheck.name), key)
        _warn_of_doubt(path, address, report)
        if address in vips:
            report.warn(
                path,
                f"{address} is the VIP of the frontend {quote(vips[address])}, where VPP takes the answers to probes",
            )


def _check_addresses(config: Config, vips: Mapping[IPAddress, str], report: Report) -> None:
    """Rules for the addresses of VIPs and backends, and between the two; warns of backends that no frontend uses.

    Backends are many: one warning stands for all backends of one doubt, and numbers are compared in place of address
    objects, whose hash is made in Python and takes longer than the whole rest of the loop.
    """
    _warn_of_doubt((_LB, "ipv4-src-address"), config.lb.ipv4_src_address, report)
    _warn_of_doubt((_LB, "ipv6-src-address"), config.lb.ipv6_src_address, report)
    used: set[str] = set()
    for name, frontend in config.frontends.items():
        _warn_of_doubt(((_FRONTENDS, name), "address"), frontend.address, report)
        for pool in frontend.pools:
            used.update([member.backend for member in pool.members])
    numbers = {int(address) for address in vips}
    doubts: dict[str, list[str]] = {}
    for name, backend in config.backends.items():
        address = backend.address
        if int(address) in numbers and address in vips and name in used:
            report.semantic(
                ((_BACKENDS, name), "address"),
                f"{address} is the VIP of the frontend {quote(vips[address])}: "
                "VPP would send to itself what is for this backend",
            )
        doubt = addresses.doubt(address)
        if doubt is not None:
            doubts.setdefault(doubt, []).append(name)
    # A frontend that names a backend that is not there has an error already, and may mean one of the unused.
    if config.frontends and len(used) < len(config.backends) and used.issubset(config.backends):
        unused = [name for name in config.backends if name not in used]
        report.warn((_BACKENDS, unused[0]), f"no frontend uses this backend{_likewise(unused)}", at_key=True)
    for doubt, names in doubts.items():
        first = config.backends[names[0]].address
        message = f"{first} {doubt}{_likewise(names)}"
        report.warn(((_BACKENDS, names[0]), "address"), message)


def _warn_of_doubt(path: Path, address: IPAddress | None, report: Report) -> None:
    doubt = None if address is None else addresses.doubt(address)
    if doubt is not None:
        report.warn(path, f"{address} {doubt}")


def _likewise(names: list[str]) -> str:
    """The end of a message about the first name that holds for all of them: the others' number, and three of them."""
    rest = names[1:]
    if not rest:
        return ""
    listed = ", ".join(rest[:3])
    return f"; likewise {listed}" if len(rest) <= 3 else f"; likewise {len(rest)} others: {listed}, …"


def _check_frontend(frontend: Frontend, config: Config, report: Report) -> None:
    path: Path = (_FRONTENDS, frontend.name)
    if frontend.port and frontend.protocol is Protocol.ANY:
        report.semantic((path, "port"), "a port needs a protocol")
    elif frontend.protocol is not Protocol.ANY and not frontend.port:
        report.semantic(
            (path, "protocol"), "a protocol needs a port; leave both out for a VIP of any protocol and port"
        )
    if not frontend.pools:
        report.semantic((path, "pools"), "a frontend needs at least one pool", at_key=True)
        return
    _check_pools(frontend, config, path, report)
    for index, pool in enumerate(frontend.pools):
        _check_thresholds(pool, ((path, "pools"), index), report)
    _check_weights(frontend, path, report)


def _check_slow_start(frontend: Frontend, config: Config, path: Path, report: Report) -> None:
    """State what slow start costs this frontend: every step moves flows of other servers."""
    backends = [config.backends.get(member.backend) for member in frontend.pools[0].members]
    known = [backend for backend in backends if backend is not None]
    length = frontend.new_flows_table_length or DEFAULT_TABLE_LENGTH
    unit = frontend.weight_unit
    if len(known) < len(backends) or len({one.address for one in known}) < len(known) or not known:
        return  # An error, or a warning about one address, is reported for these.
    if (unit is not None and not 1 <= unit <= 100) or length & (length - 1) or not 2 <= length <= 65536:
        return
    if any(not 0 <= weight <= 100 for _, _, weight in _members(frontend.pools)):
        return
    cost = ramp_cost(frontend, known, length)
    if cost is None:
        return
    if cost.steps == 1:
        report.warn((path, "slow-start"), "no effect: the weights of the first pool are of one unit, without parts")
        return
    if cost.by_steps < NO_COST:
        return
    report.warn(
        (path, "slow-start"),
        f"when a backend of the first pool comes back, its {cost.steps} steps move {cost.by_steps:.1%} of all flows "
        f"between other backends; without slow-start it is {cost.at_once:.1%}",
    )


def _check_thresholds(pool: Pool, place: Path, report: Report) -> None:
    least, again = pool.min_up, pool.resume_up
    if again.percent == least.percent and again.value < least.value:
        report.semantic(
            (place, "resume-up"),
            f"resume-up ({again}) is less than min-up ({least}): a pool that takes over has to be usable",
        )
    countable = sum(1 for member in pool.members if member.weight > 0)
    for key, threshold in (("min-up", least), ("resume-up", again)):
        if not threshold.percent and threshold.value > max(countable, 1) and (key == "min-up" or again != least):
            report.warn(
                (place, key),
                f"{key} is {threshold}, but the pool has {countable} backend{'s' * (countable != 1)} with a weight:"
                " it can never have as many up",
            )


def _check_pools(frontend: Frontend, config: Config, path: Path, report: Report) -> None:
    names: dict[str, int] = {}
    users: dict[str, str] = {}  # backend -> pool
    servers: dict[object, str] = {}  # address -> backend
    family = 0
    first = ""
    for index, pool in enumerate(frontend.pools):
        place: Path = ((path, "pools"), index)
        if pool.name in names:
            report.semantic((place, "name"), f"there is a pool {quote(pool.name)} already, pools[{names[pool.name]}]")
        else:
            names[pool.name] = index
        if not pool.members:
            report.semantic((place, "backends"), "a pool needs at least one backend", at_key=True)
        for member in pool.members:
            name = member.backend
            backend = config.backends.get(name)
            if backend is None:
                report.semantic(
                    ((place, "backends"), name),
                    f"there is no backend {quote(name)}{report.suggest(name, config.backends)}",
                    at_key=True,
                )
                continue
            if name in users:
                report.semantic(
                    ((place, "backends"), name),
                    f"the backend {quote(name)} is in pool {quote(users[name])} of this frontend already",
                    at_key=True,
                )
                continue
            users[name] = pool.name
            address = backend.address
            other = servers.setdefault(address, name)
            if other is not name:
                # Two checks of one server may well be wanted; but VPP knows an AS by its address alone.
                report.warn(
                    ((place, "backends"), name),
                    f"the backend {quote(name)} has the same address ({address}) as {quote(other)}; "
                    "VPP has one AS for the two and gets the larger of their weights",
                    at_key=True,
                )
            if taken_for_ipv4(address):
                report.semantic(
                    ((place, "backends"), name),
                    f"the backend {quote(name)} is {address}, which VPP takes for an IPv4 address and refuses; "
                    "give the server another address",
                    at_key=True,
                )
            if not family:
                family, first = address.version, name
            elif address.version != family:
                report.semantic(
                    ((place, "backends"), name),
                    f"the backend {quote(name)} is IPv{address.version}, but {quote(first)} is IPv{family}; "
                    "the backends of a frontend are of one family",
                    at_key=True,
                )


def _members(pools: Iterable[Pool]) -> Iterable[tuple[int, str, int]]:
    for index, pool in enumerate(pools):
        for member in pool.members:
            yield index, member.backend, member.weight


def _check_weights(frontend: Frontend, path: Path, report: Report) -> None:
    unit = frontend.weight_unit
    if unit is not None and not 1 <= unit <= 100:
        return  # out of range, which has been reported
    if any(not 0 <= weight <= 100 for _, _, weight in _members(frontend.pools)):
        return  # likewise: a total of such weights says nothing about the table
    unit = weight_unit(frontend)
    units = total = 0
    heaviest = 0
    common = 0  # greatest common divisor: the largest unit that rounds no weight
    odd: list[str] = []
    for index, name, weight in _members(frontend.pools):
        programmed = programmed_weight(weight, unit)
        units += programmed
        total += weight
        common = math.gcd(common, weight)
        heaviest = max(heaviest, weight)
        if weight > 0 and programmed * unit != weight:
            odd.append(f"pools[{index}].backends.{name}")
    if not heaviest and any(pool.members for pool in frontend.pools):
        report.warn((path, "pools"), "every backend has weight 0: this frontend can never serve", at_key=True)
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        report.warn(
            (path, "weight-unit"),
            f"weights that are no multiple of {unit} are rounded: {', '.join(odd[:3])}{more}",
        )
    length = frontend.new_flows_table_length or DEFAULT_TABLE_LENGTH
    if units * CROWDED > length:
        remedy = "use a longer table or a larger weight-unit"
        if common > unit:
            remedy += f": {common} gives the same shares with {total // common} units"
        report.warn(
            (path, "new-flows-table-length"),
            f"the table of {length} buckets is small for {units} units of weight: above a {CROWDED}th of the table, "
            f"shares become inexact and changes move more flows than they have to; {remedy}",
        )


def _check_vips(config: Config, report: Report) -> None:
    """Rules between frontends, and between frontends and the section lb."""
    families: dict[object, tuple[int, str]] = {}  # VIP address -> family of the backends, first frontend
    taken: dict[object, str] = {}  # (address, protocol, port) -> frontend
    any_port: dict[object, str] = {}  # address -> frontend without port
    with_port: dict[object, str] = {}  # address -> first frontend with a port
    encaps: dict[int, str] = {}  # family of the backends -> first frontend
    for name, frontend in config.frontends.items():
        path: Path = (_FRONTENDS, name)
        address = frontend.address
        if taken_for_ipv4(address):
            report.semantic((path, "address"), f"VPP takes {address} for an IPv4 address; use another one")
        key = (address, frontend.protocol, frontend.port)
        other = taken.setdefault(key, name)
        if other != name:
            what = f"{frontend.protocol} port {frontend.port}" if frontend.port else "any port"
            report.semantic((path, "address"), f"{address}, {what}, is the frontend {quote(other)} already")
        elif frontend.protocol is Protocol.ANY:
            any_port[address] = name
            if address in with_port:
                report.semantic(
                    (path, "address"),
                    f"a frontend for any port cannot share {address} with {quote(with_port[address])}, "
                    "which has a port",
                )
        else:
            with_port.setdefault(address, name)
            if address in any_port:
                report.semantic(
                    (path, "address"),
                    f"a frontend with a port cannot share {address} with {quote(any_port[address])}, "
                    "which is for any port",
                )
        family = _family(frontend, config)
        if not family:
            continue
        encaps.setdefault(family, name)
        known, first = families.setdefault(address, (family, name))
        if known != family:
            report.semantic(
                (path, "address"),
                f"the backends are IPv{family}, but those of {quote(first)}, on the same address {address}, are "
                f"IPv{known}; VPP has one encapsulation per address",
            )
    if 4 in encaps and config.lb.ipv4_src_address is None:
        report.semantic(
            (_LB, "ipv4-src-address"),
            f"required: the frontend {quote(encaps[4])} has IPv4 backends, which VPP reaches by GRE4",
        )
    if 6 in encaps and config.lb.ipv6_src_address is None:
        report.warn(
            (_LB, "ipv6-src-address"),
            f"not set: the frontend {quote(encaps[6])} has IPv6 backends, and VPP's own outer source of GRE6 stays",
        )


def _family(frontend: Frontend, config: Config) -> int:
    """The family of the frontend's backends: that of the first one that exists; 0 when none does."""
    for pool in frontend.pools:
        for member in pool.members:
            backend = config.backends.get(member.backend)
            if backend is not None:
                return backend.address.version
    return 0
