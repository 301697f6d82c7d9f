"""State of the dataplane that survives a restart of the daemon, as JSON values in sections of the state file.

``vips``: the VIPs that are ours. ``held``: old addresses of backends that got new ones, by frontend. ``flushes``: what
is owed, by VIP and address, and why: ``down`` or ``operator``. ``pruning``: VIPs whose deletion was agreed to, and
those that wait for an operator. ``weights``: by VIP the weights of its ASes, and its nature while it is created again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol, TypeVar

from maglev.base import logs
from maglev.vpp.planning.model import MAX_WEIGHT, parse_vip_key
from maglev.vpp.planning.plan import Cause, FlushKey, Owed
from maglev.vpp.wire.messages import VipKey, address_text

log = logs.get(__name__)

Entries = TypeVar("Entries", list[Any], dict[Any, Any])

VIPS, HELD, FLUSHES, PRUNING, WEIGHTS = "vips", "held", "flushes", "pruning", "weights"

# How long the daemon was away is not known: the flows of what failed before that and serves now are where they belong,
# as if the flush had waited.
_OWED: Mapping[str, Owed] = {"down": Owed(Cause.DOWN, waited=True), "operator": Owed(Cause.OPERATOR)}


class Nature(NamedTuple):
    """The properties of a VIP that VPP cannot change; ``sticky`` None: not known."""

    encap: int
    length: int
    sticky: bool | None

    def is_of(self, encap: int, length: int, sticky: bool | None) -> bool:
        """Whether a VIP in VPP has this nature, as far as both are known."""
        same = (encap, length) == (self.encap, self.length)
        return same and (None in (sticky, self.sticky) or sticky == self.sticky)


class Kept(NamedTuple):
    """Weights of a VIP's ASes, in units. ``nature``: the VIP's before its recreation; None: it is not created again."""

    weights: Mapping[bytes, int]
    nature: Nature | None


class Store(Protocol):
    """Named sections of JSON values that survive a restart; the state file."""

    @property
    def lasting(self) -> bool:
        """Whether anything survives a restart: False without a state file, or if it is another daemon's."""
        ...

    def get(self, section: str) -> object:
        """The value of a section, None if there is none."""
        ...

    def set(self, section: str, value: object) -> None:
        """Remember this value. The caller does not change it afterwards. Must not wait."""
        ...

    async def saved(self) -> None:
        """Wait until all that was set before is on the disk. Raises ``MaglevError``."""
        ...


class MemoryStore:
    """A ``Store`` that forgets with the process."""

    lasting = False

    def __init__(self) -> None:
        self.sections: dict[str, object] = {}

    async def saved(self) -> None:
        """It is remembered already."""

    def get(self, section: str) -> object:
        """The value of a section, None if there is none."""
        return self.sections.get(section)

    def set(self, section: str, value: object) -> None:
        """Remember this."""
        self.sections[section] = value


def vips_to_json(keys: Iterable[VipKey]) -> object:
    """For ``vips_from_json``."""
    return [str(key) for key in sorted(keys, key=lambda key: key.sort_key)]


def vips_from_json(value: object, section: str = VIPS) -> Iterator[VipKey]:
    """The VIPs in a section; what names none is logged and left out, here and in the others."""
    for text in _entries(value, list, section):
        try:
            yield parse_vip_key(str(text))
        except ValueError as error:
            _unreadable(error)


def pruning_to_json(agreed: Iterable[VipKey], waiting: Iterable[VipKey]) -> object:
    """For ``pruning_from_json``."""
    return {"agreed": vips_to_json(agreed), "waiting": vips_to_json(waiting)}


def pruning_from_json(value: object) -> tuple[list[VipKey], list[VipKey]]:
    """VIPs whose deletion was agreed to, and those that wait for an operator."""
    entries = _entries(value, dict, PRUNING)
    agreed = list(vips_from_json(entries.get("agreed"), PRUNING))
    return agreed, list(vips_from_json(entries.get("waiting"), PRUNING))


def held_to_json(held: Mapping[str, Iterable[bytes]]) -> object:
    """For ``held_from_json``."""
    return {name: [address_text(address) for address in addresses] for name, addresses in held.items()}


def held_from_json(value: object) -> Iterator[tuple[str, bytes]]:
    """Frontends and addresses that they are held at."""
    for name, addresses in _entries(value, dict, HELD).items():
        for text in _entries(addresses, list, HELD):
            try:
                yield name, ip_address(str(text)).packed
            except ValueError as error:
                _unreadable(error)


def owed_to_json(items: Iterable[tuple[FlushKey, Owed]]) -> Generator[None, None, dict[str, dict[str, str]]]:
    """For ``owed_from_json``, made flush by flush: a generator, so that it can be done in slices."""
    vips: dict[VipKey, dict[str, str]] = {}
    for key, debt in items:
        vips.setdefault(key.vip, {})[address_text(key.address)] = debt.cause.value
        yield
    return {str(key): flushes for key, flushes in vips.items()}


def owed_from_json(value: object) -> Iterator[tuple[FlushKey, Owed]]:
    """The flushes that are owed; without serials."""
    for text, flushes in _entries(value, dict, FLUSHES).items():
        try:
            vip = parse_vip_key(text)
        except ValueError as error:
            _unreadable(error)
            continue
        for address, why in _entries(flushes, dict, FLUSHES).items():
            try:
                yield FlushKey(vip, ip_address(address).packed), _OWED[str(why)]
            except ValueError as error:
                _unreadable(error)
            except KeyError:
                _unreadable(f"a flush is owed for {why!r}")


def kept_to_json(items: Iterable[tuple[VipKey, Kept]]) -> Generator[None, None, dict[str, object]]:
    """For ``kept_from_json``, made VIP by VIP: a generator, so that it can be done in slices."""
    vips: dict[str, object] = {}
    for key, kept in items:
        ases = {address_text(address): weight for address, weight in kept.weights.items()}
        vips[str(key)] = {"ases": ases, "nature": list(kept.nature) if kept.nature is not None else None}
        yield
    return vips


def kept_from_json(value: object) -> Iterator[tuple[VipKey, Kept]]:
    """The weights in a section."""
    for text, entry in _entries(value, dict, WEIGHTS).items():
        entry = _entries(entry, dict, WEIGHTS)
        try:
            weights = {
                ip_address(str(address)).packed: _number(weight, MAX_WEIGHT)
                for address, weight in _entries(entry.get("ases"), dict, WEIGHTS).items()
            }
            yield parse_vip_key(str(text)), Kept(weights, _nature(entry.get("nature")))
        except ValueError as error:
            _unreadable(error)


def _nature(value: object) -> Nature | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 3 and (value[2] is None or type(value[2]) is bool)):
        raise ValueError(f"{value!r} is not the nature of a VIP")
    return Nature(_number(value[0], 255), _number(value[1], 1 << 32), value[2])


def _number(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a number from 0 to {most}")
    return value


def _entries(value: object, kind: type[Entries], section: str) -> Entries:
    """The entries of a section or of a part of it; none, and a word in the log, where it is of another type."""
    if isinstance(value, kind):
        return value
    if value is not None:
        _unreadable(f"{section} has a {type(value).__name__} where a {kind.__name__} belongs")
    return kind()


def _unreadable(why: object) -> None:
    log.warning("vpp-kept-unreadable", f"an entry of the state file makes no sense: {why}")
