"""VPP's binary API as bytes: framing, the messages this project uses, and nothing that touches a socket.

Three layers, each usable without the next: frames (``frame``, ``Decoder``), messages (``MESSAGES``: one table of fields
that packs and unpacks every message by name), and typed shortcuts for messages that are sent and read in
bulk. The client and the stand-in (``maglev.vppsim``) use the same table, each from its own side.

On the wire a *body* is the message id, then its *envelope* (client index and context), then its *payload*. Ids differ
between builds of VPP and are agreed on at connect; a payload is what a ``name_crc`` stands for and never changes.

Sources: VPP's ``src/vlibmemory/memclnt.api``, ``src/plugins/lb/lb.api``, ``src/vnet/ip/ip_types.api`` and
``src/vlibmemory/socket_api.c``.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

HEADER_SIZE: Final = 16
MAX_MESSAGE: Final = 64 << 20
"""Longest body a peer may announce, bytes. ``get_api_json`` of a VPP with all its plugins is about 5 MiB."""

SOCKCLNT_CREATE_ID: Final = 15
SOCKCLNT_CREATE_REPLY_ID: Final = 16
ANY_PROTOCOL: Final = 255
KEEP: Final = 0xFFFFFFFF
"""In ``lb_conf``: leave the sticky buckets, or the flow time-out, as they are."""


class ProtocolError(Exception):
    """The peer sent bytes that are not a message, or a value does not fit into a message."""


class Encap(enum.IntEnum):
    """How VPP carries packets to an AS. The number names the family of the *backends*."""

    GRE4 = 0
    GRE6 = 1
    L3DSR = 2
    NAT4 = 3
    NAT6 = 4

    def __str__(self) -> str:
        return self.name.lower()


RETVALS: Final[Mapping[int, str]] = {
    -1: "unspecified error",
    -2: "invalid interface index",
    -3: "no such FIB or VRF",
    -6: "no such entry",
    -7: "invalid value",
    -70: "invalid memory size",
    -73: "invalid argument",
    -81: "value exists",
    -97: "invalid address family",
}
"""The meaning of VPP's return values (its ``vnet/api_errno.h``), as far as they were seen."""


def retval_text(retval: int) -> str:
    """``-6`` -> ``"no such entry (-6)"``."""
    return f"{RETVALS.get(retval, 'error')} ({retval})"


# --- frames ---------------------------------------------------------------------------------------------------------

_HEADER = struct.Struct(">QII")
_LENGTH = struct.Struct(">I")


def frame(body: bytes) -> bytes:
    """The body behind its 16-byte header, ready to be written."""
    return _HEADER.pack(0, len(body), 0) + body


class Decoder:
    """Cuts a byte stream into bodies. Holds at most one incomplete message.

    VPP sends its own buffer header, of which only the length means anything outside: the other twelve bytes are zero
    today and are not looked at, as VPP itself does not look at ours.
    """

    __slots__ = ("_limit", "_pending", "_want")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._pending = bytearray()
        self._want = HEADER_SIZE  # bytes that must be there before it is worth looking again

    @property
    def pending(self) -> int:
        """Bytes of the incomplete message at the end, header included."""
        return len(self._pending)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read; return the bodies that are complete now.

        Raises ProtocolError when a header announces less than a message id or more than the limit. The stream cannot
        be understood from there on: drop the connection.
        """
        pending = self._pending
        if pending:
            pending += data
            if len(pending) < self._want:
                return []
            data = bytes(pending)
            pending.clear()
        bodies: list[bytes] = []
        position, end = 0, len(data)
        self._want = HEADER_SIZE
        while end - position >= HEADER_SIZE:
            (length,) = _LENGTH.unpack_from(data, position + 8)
            if not 2 <= length <= self._limit:
                raise ProtocolError(f"a header announces a message of {length} bytes")
            after = position + HEADER_SIZE + length
            if after > end:
                self._want = HEADER_SIZE + length
                break
            bodies.append(data[position + HEADER_SIZE : after])
            position = after
        if position < end:
            pending += data[position:]
        return bodies


# --- values ---------------------------------------------------------------------------------------------------------


class Prefix(NamedTuple):
    """An address prefix: 4 or 16 bytes, and a length in bits."""

    address: bytes
    length: int

    def __str__(self) -> str:
        return f"{address_text(self.address)}/{self.length}"

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """``"192.0.2.1/32"``; host bits are kept, since VPP takes them off itself. Raises ValueError."""
        address, _, length = text.partition("/")
        packed = ipaddress.ip_address(address).packed
        bits = int(length) if length else len(packed) * 8
        if not 0 <= bits <= len(packed) * 8:
            raise ValueError(f"{text!r} is no prefix")
        return cls(packed, bits)


def address_text(address: bytes) -> str:
    """4 or 16 bytes as an operator writes them."""
    if len(address) == 4:
        return "{}.{}.{}.{}".format(*address)
    return str(ipaddress.ip_address(address))


def source_text(address: bytes) -> str:
    """An outer source address of ``lb_conf``; empty where none was ever set (all ones at VPP's start, or all zeros)."""
    return "" if address in (b"\xff" * len(address), bytes(len(address))) else address_text(address)


_PROTOCOL_NAMES: Final = {6: "tcp", 17: "udp", ANY_PROTOCOL: "any"}


class VipKey(NamedTuple):
    """The name of a VIP: prefix, protocol, port. ``protocol`` 255 and ``port`` 0 mean any.

    A named tuple, since it is hashed and compared some twenty times for each weight that changes.
    """

    address: bytes  # 4 or 16 bytes, host bits zero
    prefix_length: int
    protocol: int = ANY_PROTOCOL
    port: int = 0

    @classmethod
    def parse(cls, prefix: str, protocol: int = ANY_PROTOCOL, port: int = 0) -> VipKey:
        """From ``"192.0.2.1/32"``; host bits are cleared. Raises ValueError."""
        network = ipaddress.ip_network(prefix, strict=False)
        return cls(network.network_address.packed, network.prefixlen, protocol, port)

    @property
    def prefix(self) -> Prefix:
        """The prefix alone: all VIPs on one share their encap."""
        return Prefix(self.address, self.prefix_length)

    @property
    def sort_key(self) -> tuple[int, bytes, int, int, int]:
        """Numeric by address, IPv4 before IPv6; then prefix length, protocol, port."""
        return (len(self.address), self.address, self.prefix_length, self.protocol, self.port)

    def __str__(self) -> str:
        return _vip_text(self)


@functools.lru_cache(maxsize=1024)
def _vip_text(key: VipKey) -> str:
    # Remembered: the log names the VIP of every call, and the calls of a VIP come one after the other.
    if key.port == 0:
        return str(key.prefix)
    return f"{key.prefix} {_PROTOCOL_NAMES.get(key.protocol, key.protocol)} {key.port}"


@dataclass(frozen=True, slots=True)
class VipDetails:
    """One ``lb_vip_details``. The table length is u16 on the wire: 65536 reads as 0."""

    key: VipKey
    encap: int
    dscp: int
    srv_type: int
    target_port: int
    flow_table_length: int


class AsDetails(NamedTuple):
    """One ``lb_as_v2_details``. A named tuple, since a dump brings tens of thousands of them at once."""

    vip: VipKey
    address: bytes  # 4 or 16 bytes
    flags: int  # 1 live, 0 deleted and waiting for garbage collection
    in_use_since: int  # seconds of VPP's clock at the last change
    weight: int
    num_buckets: int

    @property
    def live(self) -> bool:
        """False for an AS that was deleted and lingers."""
        return bool(self.flags & 1)


@dataclass(frozen=True, slots=True)
class LbConf:
    """The answer to ``lb_conf_get``."""

    ip4_src_address: bytes
    ip6_src_address: bytes
    sticky_buckets_per_core: int
    flow_timeout: int  # seconds


@dataclass(frozen=True, slots=True)
class ShowVersion:
    """The answer to ``show_version``."""

    program: str
    version: str
    build_date: str
    build_directory: str


@dataclass(frozen=True, slots=True)
class Route:
    """The part of ``ip_route_lookup_reply`` that says where the route's counters are. Its paths stay undecoded."""

    table_id: int
    stats_index: int
    prefix: Prefix
    paths: bytes = b""
    n_paths: int = 0


class Thread(NamedTuple):
    """One entry of ``show_threads_reply``: ``type`` is ``"workers"`` for a worker and empty for the main thread."""

    id: int
    name: str
    type: str
    pid: int
    cpu_id: int
    core: int
    cpu_socket: int


# --- how the API's types look on the wire ---------------------------------------------------------------------------


def _pad(address: bytes) -> tuple[int, bytes]:
    if len(address) == 4:
        return 0, address + bytes(12)
    if len(address) == 16:
        return 1, address
    raise ProtocolError(f"an address has 4 or 16 bytes, not {len(address)}")


def _unpad(family: int, union: bytes) -> bytes:
    if family == 0:
        return union[:4]
    if family == 1:
        return union
    raise ProtocolError(f"address family {family}")


_ADDRESS = struct.Struct(">B16s")
_PREFIX = struct.Struct(">B16sB")
_NATIVE_F64 = struct.Struct("=d")
_VIP = struct.Struct(">B16sBBH")
_MATCHER = struct.Struct(">BB")
_ROUTE = struct.Struct(">IIB16sBB")
_ENTRY = struct.Struct(">H64s")
_THREAD = struct.Struct(">I64s64sIIII")


def address_bytes(address: bytes) -> bytes:
    """``vl_api_address_t`` (17 bytes): the family, then a union of 16 in which IPv4 stands at the *front*."""
    return _ADDRESS.pack(*_pad(address))


def vip_bytes(key: VipKey) -> bytes:
    """``vl_api_lb_vip_t`` (21 bytes); the same bytes open every request that names a VIP."""
    family, union = _pad(key.address)
    return _VIP.pack(family, union, key.prefix_length, key.protocol, key.port)


def _pack_address(value: Any) -> bytes:
    return address_bytes(value)


def _unpack_address(data: bytes) -> bytes:
    return _unpad(data[0], data[1:])


def _pack_prefix(value: Any) -> bytes:
    address, length = value
    return _PREFIX.pack(*_pad(address), length)


def _unpack_prefix(data: bytes) -> Prefix:
    family, union, length = _PREFIX.unpack(data)
    return Prefix(_unpad(family, union), length)


def _unpack_vip(data: bytes) -> VipKey:
    family, union, length, protocol, port = _VIP.unpack(data)
    address = _unpad(family, union)
    if length > len(address) * 8:
        # It could be read, but not be sent back: a filter for it does not fit into its byte.
        raise ProtocolError(f"a prefix of {length} bits in {address_text(address)}")
    return VipKey(address, length, protocol, port)


def _pack_raw(size: int) -> Callable[[Any], bytes]:
    def pack(value: Any) -> bytes:
        if len(value) != size:
            raise ProtocolError(f"{len(value)} bytes where {size} belong")
        return bytes(value)

    return pack


def _pack_text(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise ProtocolError(f"{value!r} is no text")


def text(data: bytes) -> str:
    """A C string of at most ``len(data)`` bytes. Bytes that are not UTF-8 become escapes and are never refused."""
    return data.partition(b"\0")[0].decode(errors="backslashreplace")


class _Type(NamedTuple):
    """A fixed-size type: its struct code, and how a Python value becomes what the code takes and back."""

    code: str
    pack: Callable[[Any], Any] | None = None
    unpack: Callable[[Any], Any] | None = None
    zero: Any = 0


_TYPES: Final[Mapping[str, _Type]] = {
    "u8": _Type("B"),
    "u16": _Type("H"),
    "u32": _Type("I"),
    "i32": _Type("i"),
    "bool": _Type("?", zero=False),
    # The one value that VPP sends in its own byte order: its f64 macros swap nothing.
    "vl_api_timestamp_t": _Type("8s", _NATIVE_F64.pack, lambda data: _NATIVE_F64.unpack(data)[0], 0.0),
    "vl_api_lb_encap_type_t": _Type("I"),
    "vl_api_lb_srv_type_t": _Type("I"),
    "vl_api_ip_dscp_t": _Type("B"),
    "vl_api_ip4_address_t": _Type("4s", _pack_raw(4), None, bytes(4)),
    "vl_api_ip6_address_t": _Type("16s", _pack_raw(16), None, bytes(16)),
    "vl_api_address_t": _Type("17s", _pack_address, _unpack_address, bytes(4)),
    "vl_api_prefix_t": _Type("18s", _pack_prefix, _unpack_prefix, Prefix(bytes(4), 0)),
    "vl_api_address_with_prefix_t": _Type("18s", _pack_prefix, _unpack_prefix, Prefix(bytes(4), 0)),
    "vl_api_prefix_matcher_t": _Type("2s", lambda value: _MATCHER.pack(*value), _MATCHER.unpack, (0, 0)),
    "vl_api_lb_vip_t": _Type("21s", vip_bytes, _unpack_vip, VipKey(bytes(4), 0, 0, 0)),
}


class _Tail(NamedTuple):
    """A type of no fixed size; it can only stand at the end. ``unpack`` takes all that is left of the payload."""

    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]
    zero: Any


def _pack_string(value: Any) -> bytes:
    data = _pack_text(value)
    return _LENGTH.pack(len(data)) + data


def _unpack_string(data: bytes) -> str:
    if len(data) < 4:
        raise ProtocolError("a string without its length")
    (length,) = _LENGTH.unpack_from(data)
    if length > len(data) - 4:
        raise ProtocolError(f"a string of {length} bytes in {len(data) - 4}")
    return data[4 : 4 + length].decode(errors="backslashreplace")


def _array_of(
    count: struct.Struct, entry: struct.Struct, take: Callable[[Any], Any], give: Callable[..., Any]
) -> _Tail:
    """``count`` entries behind their number; ``take`` makes struct arguments of one, ``give`` one of them."""

    def pack(values: Any) -> bytes:
        return count.pack(len(values)) + b"".join([entry.pack(*take(value)) for value in values])

    def unpack(data: bytes) -> list[Any]:
        if len(data) < count.size:
            raise ProtocolError("an array without its length")
        (number,) = count.unpack_from(data)
        entries = data[count.size :]
        if len(entries) != number * entry.size:
            raise ProtocolError(f"an array of {number} entries in {len(entries)} bytes")
        return [give(*values) for values in entry.iter_unpack(entries)]

    return _Tail(pack, unpack, ())


def _pack_route(route: Any) -> bytes:
    head = _ROUTE.pack(
        route.table_id, route.stats_index, *_pad(route.prefix.address), route.prefix.length, route.n_paths
    )
    return head + bytes(route.paths)


def _unpack_route(data: bytes) -> Route:
    if len(data) < _ROUTE.size:
        raise ProtocolError(f"a route in {len(data)} bytes")
    table_id, stats_index, family, union, length, n_paths = _ROUTE.unpack_from(data)
    return Route(table_id, stats_index, Prefix(_unpad(family, union), length), data[_ROUTE.size :], n_paths)


_TAILS: Final[Mapping[str, _Tail]] = {
    "string": _Tail(_pack_string, _unpack_string, ""),
    "vl_api_ip_route_t": _Tail(_pack_route, _unpack_route, Route(0, KEEP, Prefix(bytes(4), 0))),
    "vl_api_message_table_entry_t": _array_of(
        struct.Struct(">H"), _ENTRY, lambda entry: (entry[0], _pack_text(entry[1])), lambda i, name: (i, text(name))
    ),
    "vl_api_thread_data_t": _array_of(
        struct.Struct(">I"),
        _THREAD,
        lambda thread: (thread[0], _pack_text(thread[1]), _pack_text(thread[2]), *thread[3:]),
        lambda i, name, kind, *rest: Thread(i, text(name), text(kind), *rest),
    ),
}


# --- messages -------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One field, as the .api file has it: ``size`` for fixed strings, ``counter`` (type and name) for arrays."""

    type: str
    name: str
    default: Any = None
    size: int = 0
    counter: str = ""


class Envelope(enum.Enum):
    """The fields between message id and payload."""

    REQUEST = enum.auto()  # client index, context
    REPLY = enum.auto()  # context; sockclnt_create too, since its sender has no client index yet
    CREATE_REPLY = enum.auto()  # client index, context: sockclnt_create_reply alone among the replies


_REQUEST_HEAD = struct.Struct(">HII")
_REPLY_HEAD = struct.Struct(">HI")


@dataclass(slots=True, eq=False)
class Message:
    """A message: its identity, its fields, and the two functions between a payload and named values."""

    name: str
    crc: str  # eight hex digits over the definition: equal crc, equal bytes
    fields: tuple[Field, ...] = ()
    reply: str = ""  # requests only: the message that answers
    stream: bool = False  # requests only: any number of answers, and no end mark
    envelope: Envelope = Envelope.REPLY
    _struct: struct.Struct = field(init=False, repr=False)
    _fixed: tuple[tuple[Field, _Type], ...] = field(init=False, repr=False)
    _tail: tuple[Field, _Tail] | None = field(init=False, repr=False, default=None)
    _names: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fixed: list[tuple[Field, _Type]] = []
        for one in self.fields:
            if one.type == "string" and one.size:
                fixed.append((one, _Type(f"{one.size}s", _pack_text, text, "")))
            elif one.type in _TAILS:
                self._tail = (one, _TAILS[one.type])
            else:
                fixed.append((one, _TYPES[one.type]))
        if self._tail is not None and self.fields[-1] is not self._tail[0]:
            raise ValueError(f"{self.name}: {self._tail[0].name} must be the last field")
        self._fixed = tuple(fixed)
        self._struct = struct.Struct(">" + "".join(kind.code for _, kind in fixed))
        self._names = frozenset(one.name for one in self.fields)

    @property
    def name_crc(self) -> str:
        """The message's key in VPP's message table."""
        return f"{self.name}_{self.crc}"

    @property
    def size(self) -> int:
        """Bytes of the payload, without a tail of variable size."""
        return self._struct.size

    @property
    def has_tail(self) -> bool:
        """True if the last field has no fixed size."""
        return self._tail is not None

    def pack(self, **values: Any) -> bytes:
        """The payload of these values. Fields without a value have their default, or zero.

        Raises ProtocolError for a field that the message does not have and for a value that does not fit.
        """
        if not self._names.issuperset(values):
            raise ProtocolError(f"{self.name} has no field {', '.join(sorted(values.keys() - self._names))}")
        arguments: list[Any] = []
        try:
            for one, kind in self._fixed:
                value = values.get(one.name, one.default)
                if value is None:
                    value = kind.zero
                if kind.pack is not None:
                    value = kind.pack(value)
                    if one.size and len(value) > one.size:
                        raise ProtocolError(f"{self.name}.{one.name}: {len(value)} bytes where {one.size} fit")
                arguments.append(value)
            payload = self._struct.pack(*arguments)
            if self._tail is not None:
                one, tail = self._tail
                payload += tail.pack(values.get(one.name, tail.zero))
        except (struct.error, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"{self.name}: {error}") from error
        return payload

    def words(self, payload: bytes) -> str:
        """A payload in words, field by field, as an operator would write them; in hex if it is not such a message."""
        try:
            values = self.unpack(payload)
        except ProtocolError:
            return payload.hex()
        kinds = {one.name: one.type for one in self.fields}
        return " ".join(f"{name} {_word(kinds[name], value)}" for name, value in values.items())

    def unpack(self, payload: bytes) -> dict[str, Any]:
        """The values of a payload by field name. Raises ProtocolError when the bytes are not such a message."""
        size = self._struct.size
        if len(payload) < size or (self._tail is None and len(payload) != size):
            raise ProtocolError(f"{self.name} has {size} bytes, not {len(payload)}")
        values: dict[str, Any] = {}
        for (one, kind), value in zip(self._fixed, self._struct.unpack_from(payload), strict=True):
            values[one.name] = value if kind.unpack is None else kind.unpack(value)
        if self._tail is not None:
            one, tail = self._tail
            values[one.name] = tail.unpack(payload[size:])
        return values


_ADDRESSES: Final = ("vl_api_ip4_address_t", "vl_api_ip6_address_t", "vl_api_address_t")


def _word(kind: str, value: Any) -> str:
    """A value of a field of that type in words."""
    if kind in _ADDRESSES:
        return address_text(value)
    if kind == "u32" and value == KEEP:
        return "keep"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)


_PFX = Field("vl_api_address_with_prefix_t", "pfx")
_PORT = Field("u16", "port")
_RETVAL = Field("i32", "retval")
_ANY = Field("u8", "protocol", ANY_PROTOCOL)
_VIP_FIELDS = (_PFX, _ANY, _PORT)
_VIP_FILTER = (_PFX, Field("u8", "protocol"), _PORT)
_AS_ADDRESS = Field("vl_api_address_t", "as_address")
_PLAIN_REPLY = "e8d4e804"  # the crc of every reply that holds a return value and nothing else

_NEW_VIP = (
    *_VIP_FIELDS,
    Field("vl_api_lb_encap_type_t", "encap"),
    Field("u8", "dscp"),
    Field("vl_api_lb_srv_type_t", "type"),
    Field("u16", "target_port"),
    Field("u16", "node_port"),
    Field("u32", "new_flows_table_length", 1024),
)
_AS_ENTRY = (
    Field("vl_api_lb_vip_t", "vip"),
    Field("vl_api_address_t", "app_srv"),
    Field("u8", "flags"),
    Field("u32", "in_use_since"),
)


def _call(
    name: str, crc: str, fields: tuple[Field, ...] = (), *, answer: tuple[str, tuple[Field, ...]] | None = None
) -> tuple[Message, Message]:
    """A request and the one reply it gets; without ``answer`` a reply that holds a return value only."""
    reply_crc, reply_fields = answer or (_PLAIN_REPLY, (_RETVAL,))
    return (
        Message(name, crc, fields, reply=f"{name}_reply", envelope=Envelope.REQUEST),
        Message(f"{name}_reply", reply_crc, reply_fields),
    )


def _dump(
    name: str, crc: str, fields: tuple[Field, ...], answer: tuple[str, str, tuple[Field, ...]]
) -> tuple[Message, Message]:
    """A dump and its details message."""
    reply, reply_crc, reply_fields = answer
    return (
        Message(name, crc, fields, reply=reply, stream=True, envelope=Envelope.REQUEST),
        Message(reply, reply_crc, reply_fields),
    )


_NO_FIELDS = "51077d14"  # the crc of every request without fields

_ALL: tuple[Message, ...] = (
    # The connection
    Message("sockclnt_create", "455fb9c4", (Field("string", "name", size=64),), reply="sockclnt_create_reply"),
    Message(
        "sockclnt_create_reply",
        "35166268",
        (
            Field("i32", "response"),
            Field("u32", "index"),
            Field("vl_api_message_table_entry_t", "message_table", counter="u16 count"),
        ),
        envelope=Envelope.CREATE_REPLY,
    ),
    *_call("sockclnt_delete", "8ac76db6", (Field("u32", "index"),), answer=("8f38b1ee", (Field("i32", "response"),))),
    *_call("memclnt_keepalive", _NO_FIELDS),
    *_call(
        "control_ping",
        _NO_FIELDS,
        answer=("f6b0b8ca", (_RETVAL, Field("u32", "client_index"), Field("u32", "vpe_pid"))),
    ),
    *_call("get_api_json", _NO_FIELDS, answer=("ea715b59", (_RETVAL, Field("string", "json")))),
    # VPP itself
    *_call(
        "show_version",
        _NO_FIELDS,
        answer=(
            "c919bde1",
            (
                _RETVAL,
                Field("string", "program", size=32),
                Field("string", "version", size=32),
                Field("string", "build_date", size=32),
                Field("string", "build_directory", size=256),
            ),
        ),
    ),
    *_call(
        "show_vpe_system_time",
        _NO_FIELDS,
        answer=("7ffd8193", (_RETVAL, Field("vl_api_timestamp_t", "vpe_system_time"))),
    ),
    *_call(
        "show_threads",
        _NO_FIELDS,
        answer=("efd78e83", (_RETVAL, Field("vl_api_thread_data_t", "thread_data", counter="u32 count"))),
    ),
    *_call(
        "cli_inband", "f8377302", (Field("string", "cmd"),), answer=("05879051", (_RETVAL, Field("string", "reply")))
    ),
    *_call(
        "ip_route_lookup",
        "710d6471",
        (Field("u32", "table_id"), Field("u8", "exact"), Field("vl_api_prefix_t", "prefix")),
        answer=("5d8febcb", (_RETVAL, Field("vl_api_ip_route_t", "route"))),
    ),
    # The lb plugin
    *_call(
        "lb_conf",
        "56cd3261",
        (
            Field("vl_api_ip4_address_t", "ip4_src_address"),
            Field("vl_api_ip6_address_t", "ip6_src_address"),
            Field("u32", "sticky_buckets_per_core", KEEP),
            Field("u32", "flow_timeout", KEEP),
        ),
    ),
    *_call(
        "lb_conf_get",
        _NO_FIELDS,
        answer=(
            "923427ac",
            (
                _RETVAL,
                Field("vl_api_ip4_address_t", "ip4_src_address"),
                Field("vl_api_ip6_address_t", "ip6_src_address"),
                Field("u32", "sticky_buckets_per_core"),
                Field("u32", "flow_timeout"),
            ),
        ),
    ),
    *_call("lb_add_del_vip", "6fa569c7", (*_NEW_VIP, Field("bool", "is_del"))),
    *_call("lb_add_del_vip_v2", "7c520e0f", (*_NEW_VIP, Field("bool", "src_ip_sticky"), Field("bool", "is_del"))),
    *_call(
        "lb_add_del_as", "35d72500", (*_VIP_FIELDS, _AS_ADDRESS, Field("bool", "is_del"), Field("bool", "is_flush"))
    ),
    *_call(
        "lb_add_del_as_v2",
        "2f1d3b0e",
        (*_VIP_FIELDS, _AS_ADDRESS, Field("u8", "weight", 100), Field("bool", "is_del"), Field("bool", "is_flush")),
    ),
    *_call(
        "lb_as_set_weight", "2d89bdbd", (*_VIP_FIELDS, _AS_ADDRESS, Field("u8", "weight"), Field("bool", "is_flush"))
    ),
    *_call("lb_flush_vip", "1063f819", _VIP_FILTER),
    *_dump(
        "lb_vip_dump",
        "56110cb7",
        (_PFX, Field("vl_api_prefix_matcher_t", "pfx_matcher"), _ANY, _PORT),
        (
            "lb_vip_details",
            "1329ec9b",
            (
                Field("vl_api_lb_vip_t", "vip"),
                Field("vl_api_lb_encap_type_t", "encap"),
                Field("vl_api_ip_dscp_t", "dscp"),
                Field("vl_api_lb_srv_type_t", "srv_type"),
                Field("u16", "target_port"),
                Field("u16", "flow_table_length"),
            ),
        ),
    ),
    *_dump("lb_as_dump", "1063f819", _VIP_FILTER, ("lb_as_details", "8d24c29e", _AS_ENTRY)),
    *_dump(
        "lb_as_v2_dump",
        "1063f819",
        _VIP_FILTER,
        ("lb_as_v2_details", "90064aae", (*_AS_ENTRY, Field("u8", "weight"), Field("u32", "num_buckets"))),
    ),
)

MESSAGES: Final[Mapping[str, Message]] = {message.name: message for message in _ALL}
"""Every message this project sends or reads, by name."""

WEIGHT_MESSAGES: Final = ("lb_add_del_as_v2", "lb_as_set_weight", "lb_as_v2_dump", "lb_as_v2_details", "lb_conf_get")
"""Messages that this daemon needs. Without them the lb plugin has no weights (all releases up to 26.06)."""


# --- bodies ---------------------------------------------------------------------------------------------------------


def request(message_id: int, client_index: int, context: int, payload: bytes = b"") -> bytes:
    """A framed request (every one but ``sockclnt_create``)."""
    return frame(_REQUEST_HEAD.pack(message_id, client_index, context) + payload)


def reply(message_id: int, context: int, payload: bytes = b"") -> bytes:
    """A framed reply, or ``sockclnt_create``, which has the same layout."""
    return frame(_REPLY_HEAD.pack(message_id, context) + payload)


def request_head(body: bytes) -> tuple[int, int, int]:
    """Message id, client index and context of a request; its payload begins at 10. Raises ProtocolError."""
    if len(body) < _REQUEST_HEAD.size:
        raise ProtocolError(f"a request of {len(body)} bytes")
    message_id, client_index, context = _REQUEST_HEAD.unpack_from(body)
    return message_id, client_index, context


def reply_head(body: bytes) -> tuple[int, int]:
    """Message id and context of a reply; its payload begins at 6. Raises ProtocolError."""
    if len(body) < _REPLY_HEAD.size:
        raise ProtocolError(f"a reply of {len(body)} bytes")
    message_id, context = _REPLY_HEAD.unpack_from(body)
    return message_id, context


REQUEST_PAYLOAD: Final = _REQUEST_HEAD.size
REPLY_PAYLOAD: Final = _REPLY_HEAD.size


def number_of(digits: str, most: int) -> int:
    """The number that VPP wrote into a CLI output, 0 to ``most``. Raises ProtocolError for a larger one.

    Python refuses to convert more than 4,300 digits with a ValueError: the length is looked at first.
    """
    shown = digits.lstrip("0")
    if len(shown) > len(str(most)) or (number := int(shown or "0")) > most:
        shown = digits if len(digits) <= 24 else f"{digits[:20]}... ({len(digits)} digits)"
        raise ProtocolError(f"the number {shown}, where at most {most} makes sense")
    return number


@dataclass(frozen=True, slots=True)
class Handshake:
    """The terms of one connection, from ``sockclnt_create_reply``."""

    response: int
    client_index: int  # to be put into every request
    context: int
    ids: Mapping[str, int]  # name_crc -> message id; of this connection only

    def id_of(self, name: str) -> int | None:
        """The id of the message with exactly our definition, or None if this VPP has another one or none."""
        return self.ids.get(MESSAGES[name].name_crc)


def pack_handshake(name: str, context: int) -> bytes:
    """The first frame of a connection. ``show api clients`` prints the name; VPP uses at most 63 bytes of it."""
    payload = MESSAGES["sockclnt_create"].pack(name=name.encode()[:63])
    return reply(SOCKCLNT_CREATE_ID, context, payload)


def pack_handshake_reply(client_index: int, context: int, response: int, table: Iterable[tuple[int, str]]) -> bytes:
    """The stand-in's side of the handshake: the message table as pairs of id and name_crc."""
    payload = MESSAGES["sockclnt_create_reply"].pack(response=response, index=client_index, message_table=list(table))
    return frame(_REQUEST_HEAD.pack(SOCKCLNT_CREATE_REPLY_ID, client_index, context) + payload)


def unpack_handshake_reply(body: bytes) -> Handshake:
    """Read ``sockclnt_create_reply``. Raises ProtocolError when the body is anything else."""
    message_id, _, context = request_head(body)
    if message_id != SOCKCLNT_CREATE_REPLY_ID:
        raise ProtocolError(f"message {message_id} instead of sockclnt_create_reply")
    values = MESSAGES["sockclnt_create_reply"].unpack(body[REQUEST_PAYLOAD:])
    # The name of a message may come with a NUL and padding, and the same one twice under two ids: the last one counts,
    # as in VPP's own clients.
    return Handshake(values["response"], values["index"], context, {name: i for i, name in values["message_table"]})


# --- what is sent ---------------------------------------------------------------------------------------------------


def pack_vip_add(
    key: VipKey, encap: int, new_flows_table_length: int, *, src_ip_sticky: bool = False, dscp: int = 0
) -> bytes:
    """Payload of ``lb_add_del_vip_v2`` that creates a VIP.

    Raises ProtocolError for a table length of 0, which makes VPP crash instead of taking its default.
    """
    if new_flows_table_length < 1:
        raise ProtocolError("a new-flow table has at least one bucket")
    return MESSAGES["lb_add_del_vip_v2"].pack(
        pfx=key.prefix,
        protocol=key.protocol,
        port=key.port,
        encap=encap,
        dscp=dscp,
        new_flows_table_length=new_flows_table_length,
        src_ip_sticky=src_ip_sticky,
    )


def pack_vip_del(key: VipKey) -> bytes:
    """Payload of ``lb_add_del_vip_v2`` that deletes a VIP."""
    return MESSAGES["lb_add_del_vip_v2"].pack(pfx=key.prefix, protocol=key.protocol, port=key.port, is_del=True)


def pack_as_add(key: VipKey, address: bytes, weight: int) -> bytes:
    """Payload of ``lb_add_del_as_v2`` that adds an AS, or revives one that lingers."""
    return _as_v2(key, address, weight, False, False)


def pack_as_del(key: VipKey, address: bytes, *, flush: bool) -> bytes:
    """Payload of ``lb_add_del_as_v2`` that deletes an AS."""
    return _as_v2(key, address, 0, True, flush)


def _as_v2(key: VipKey, address: bytes, weight: int, delete: bool, flush: bool) -> bytes:
    try:
        return vip_bytes(key) + address_bytes(address) + struct.pack(">B??", weight, delete, flush)
    except struct.error as error:
        raise ProtocolError(f"lb_add_del_as_v2: {error}") from error


def pack_set_weight(key: VipKey, address: bytes, weight: int, *, flush: bool) -> bytes:
    """Payload of ``lb_as_set_weight``."""
    try:
        return vip_bytes(key) + address_bytes(address) + struct.pack(">B?", weight, flush)
    except struct.error as error:
        raise ProtocolError(f"lb_as_set_weight: {error}") from error


class WeightCall(NamedTuple):
    """One ``lb_as_set_weight`` of a batch."""

    vip: VipKey
    address: bytes
    weight: int
    flush: bool


_WEIGHT_TAILS: Final = tuple(bytes((weight, flush)) for weight in range(256) for flush in (0, 1))
_ZEROS = bytes(12)


def pack_weight_calls(message_id: int, client_index: int, first_context: int, calls: Iterable[WeightCall]) -> bytes:
    """Frames of many ``lb_as_set_weight``, in one piece; call n has context ``first_context + n`` (modulo 2^32).

    A call is 66 bytes, and all of a VIP differ in three places only: the context, the address, and weight with flush.
    So the pieces are joined and nothing is packed per call but the context. ``address`` must have 4 or 16 bytes and
    ``weight`` be 0..255; both raise ProtocolError.
    """
    size = REQUEST_PAYLOAD + MESSAGES["lb_as_set_weight"].size
    head = _HEADER.pack(0, size, 0) + struct.pack(">HI", message_id, client_index)
    parts: list[bytes] = []
    add = parts.append
    context = first_context
    last: VipKey | None = None
    vip4 = vip6 = b""
    for key, address, weight, flush in calls:
        if key is not last:
            last = key
            wire = vip_bytes(key)
            vip4, vip6 = wire + b"\0", wire + b"\1"
        add(head)
        add((context & 0xFFFFFFFF).to_bytes(4, "big"))
        if len(address) == 4:
            add(vip4)
            add(address)
            add(_ZEROS)
        elif len(address) == 16:
            add(vip6)
            add(address)
        else:
            raise ProtocolError(f"an address has 4 or 16 bytes, not {len(address)}")
        if not 0 <= weight <= 255:
            raise ProtocolError(f"a weight is 0..255, not {weight}")
        add(_WEIGHT_TAILS[weight * 2 + (1 if flush else 0)])
        context += 1
    return b"".join(parts)


def pack_flush_vip(key: VipKey) -> bytes:
    """Payload of ``lb_flush_vip``. Only for a VIP that is known to exist: VPP does not check it."""
    return vip_bytes(key)


def pack_vip_dump() -> bytes:
    """Payload of ``lb_vip_dump``. VPP ignores every filter."""
    return MESSAGES["lb_vip_dump"].pack()


def pack_as_dump(key: VipKey | None = None) -> bytes:
    """Payload of ``lb_as_v2_dump`` (and ``lb_as_dump``): the ASes of one VIP, or of all.

    VPP compares the filter with its own form of a prefix, in which IPv4 is ``::a.b.c.d`` with a length of 96 and more;
    a filter of family IPv4 matches nothing.
    """
    if key is None:
        return bytes(_VIP.size)
    if len(key.address) == 4:
        key = VipKey(_ZEROS + key.address, key.prefix_length + 96, key.protocol, key.port)
    return vip_bytes(key)


def pack_conf(
    ip4_src_address: bytes, ip6_src_address: bytes, sticky_buckets_per_core: int = KEEP, flow_timeout: int = KEEP
) -> bytes:
    """Payload of ``lb_conf``. Both addresses are always written; buckets and time-out (seconds) may be kept."""
    return MESSAGES["lb_conf"].pack(
        ip4_src_address=ip4_src_address,
        ip6_src_address=ip6_src_address,
        sticky_buckets_per_core=sticky_buckets_per_core,
        flow_timeout=flow_timeout,
    )


def pack_cli(command: str) -> bytes:
    """Payload of ``cli_inband``."""
    return MESSAGES["cli_inband"].pack(cmd=command)


def pack_route_lookup(prefix: Prefix, table_id: int = 0, *, exact: bool = True) -> bytes:
    """Payload of ``ip_route_lookup``."""
    return MESSAGES["ip_route_lookup"].pack(table_id=table_id, exact=exact, prefix=prefix)


# --- what is read ---------------------------------------------------------------------------------------------------

_I32 = struct.Struct(">i")


def unpack_retval(payload: bytes) -> int:
    """The return value of any reply but details. Raises ProtocolError."""
    if len(payload) < _I32.size:
        raise ProtocolError(f"a reply with {len(payload)} bytes of payload")
    (retval,) = _I32.unpack_from(payload)
    return int(retval)


_VIP_DETAILS = struct.Struct(">21sIBIHH")


def unpack_vip_details(payload: bytes) -> VipDetails:
    """Read ``lb_vip_details``. Raises ProtocolError."""
    if len(payload) != _VIP_DETAILS.size:
        raise ProtocolError(f"lb_vip_details has {_VIP_DETAILS.size} bytes, not {len(payload)}")
    vip, *rest = _VIP_DETAILS.unpack(payload)
    return VipDetails(_unpack_vip(vip), *rest)


_AS_BODY = struct.Struct(">6x21sB16sBIBI")


def unpack_as_details(bodies: Iterable[bytes], keys: dict[bytes, VipKey] | None = None) -> list[AsDetails]:
    """Read the *bodies* of many ``lb_as_v2_details``, in order. Raises ProtocolError.

    ``keys`` remembers the VIPs that were seen, from their bytes; pass the same one for all slices of a dump, and the
    ASes of a VIP share one key object.
    """
    known = {} if keys is None else keys
    found: list[AsDetails] = []
    unpack = _AS_BODY.unpack
    try:
        for body in bodies:
            vip, family, union, flags, since, weight, buckets = unpack(body)
            key = known.get(vip)
            if key is None:
                key = known[vip] = _unpack_vip(vip)
            address = union[:4] if family == 0 else _unpad(family, union)
            found.append(AsDetails(key, address, flags, since, weight, buckets))
    except struct.error as error:
        raise ProtocolError(f"lb_as_v2_details: {error}") from error
    return found


def unpack_conf(payload: bytes) -> LbConf:
    """Read ``lb_conf_get_reply``. Raises ProtocolError."""
    values = MESSAGES["lb_conf_get_reply"].unpack(payload)
    return LbConf(
        values["ip4_src_address"],
        values["ip6_src_address"],
        values["sticky_buckets_per_core"],
        values["flow_timeout"],
    )


def unpack_version(payload: bytes) -> ShowVersion:
    """Read ``show_version_reply``. Raises ProtocolError."""
    values = MESSAGES["show_version_reply"].unpack(payload)
    return ShowVersion(values["program"], values["version"], values["build_date"], values["build_directory"])


def unpack_cli_reply(payload: bytes) -> tuple[int, str]:
    """Read ``cli_inband_reply``: return value and output. Raises ProtocolError."""
    values = MESSAGES["cli_inband_reply"].unpack(payload)
    return values["retval"], values["reply"]


def unpack_route(payload: bytes) -> tuple[int, Route]:
    """Read ``ip_route_lookup_reply``: return value and route. Raises ProtocolError."""
    values = MESSAGES["ip_route_lookup_reply"].unpack(payload)
    return values["retval"], values["route"]


def unpack_threads(payload: bytes) -> list[Thread]:
    """Read ``show_threads_reply``. Raises ProtocolError."""
    threads: list[Thread] = MESSAGES["show_threads_reply"].unpack(payload)["thread_data"]
    return threads
