"""The debug CLI that ``cli_inband`` reaches: the lb plugin's commands, with VPP's words and line ends."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from maglev.vppsim.model import (
    ANY_PROTOCOL,
    COUNTERS,
    ENCAP_GRE4,
    ENCAP_GRE6,
    ENCAP_L3DSR,
    ENCAP_NAT4,
    ENCAP_NAT6,
    OK,
    VALUE_EXIST,
    Model,
    NewVip,
    Vip,
    VipType,
    embed,
    extract,
)
from maglev.vppsim.unformat import SPACE, Input, braces, end, ip46_address, ip46_prefix

_ENCAPS: Final = {
    "gre4": ENCAP_GRE4,
    "gre6": ENCAP_GRE6,
    "l3dsr": ENCAP_L3DSR,
    "nat4": ENCAP_NAT4,
    "nat6": ENCAP_NAT6,
}
_PROTOCOLS: Final = {"tcp": 6, "udp": 17}

_TOP: Final = """
adjacency api app bfd bier binary-api bond bvi classify clear create define delete device disable echo enable
event-logger exec exit flow history interface ip ip6 ipfix ipsec kill l2 l2fib loopback mask memory-trace monitor mpls
p2p_ethernet packet-generator pcap pipe punt q qos quit renumber restart save session set sfdp sr suspend tcp trace udp
undefine wait
"""
_OTHERS: Final[dict[tuple[str, ...], frozenset[str]]] = {(): frozenset(_TOP.split()), ("lb",): frozenset({"set"})}
"""Words of VPP's other commands: what is a unique abbreviation depends on them."""
_HELP: Final[dict[tuple[str, ...], str]] = {
    ("lb", "as"): (
        "lb as <vip-prefix> [protocol (tcp|udp) port <n>] [<address> [<address> [...]]] [weight <0-100>] [del] [flush]"
    ),
}


class CliError(Exception):
    """A failed command. Its text is the output, which VPP prefixes with the name of the command."""


class _Words:
    """The arguments of a command, taken from the front."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = list(words)

    def __bool__(self) -> bool:
        return bool(self._words)

    def __str__(self) -> str:
        return " ".join(self._words)

    def take(self, *wanted: str) -> bool:
        """Take these words if they come next."""
        if self._words[: len(wanted)] != list(wanted):
            return False
        del self._words[: len(wanted)]
        return True

    def value(self, name: str) -> str | None:
        """Take ``name`` and the word after it, if ``name`` comes next."""
        if len(self._words) < 2 or self._words[0] != name:
            return None
        value = self._words[1]
        del self._words[:2]
        return value

    def number(self, name: str) -> int | None:
        """Take ``name`` and the number after it."""
        if len(self._words) < 2 or self._words[0] != name or not self._words[1].isdecimal():
            return None
        return int(self.value(name) or 0) & 0xFFFFFFFF

    def choice(self, name: str, choices: dict[str, int]) -> int | None:
        """Take ``name`` and one of the words that may follow it."""
        if len(self._words) < 2 or self._words[0] != name or self._words[1] not in choices:
            return None
        return choices[self.value(name) or ""]

    def address(self) -> bytes | None:
        """Take an address: 16 bytes."""
        try:
            address = embed(ipaddress.ip_address(self._words[0]).packed)
        except (IndexError, ValueError):
            return None
        del self._words[0]
        return address

    def prefix(self) -> tuple[bytes, int] | None:
        """Take a prefix: 16 bytes and the embedded length."""
        try:
            text, _, bits = self._words[0].partition("/")
            address = ipaddress.ip_address(text)
            length = int(bits)
        except (IndexError, ValueError):
            return None
        if not 0 <= length <= address.max_prefixlen:
            return None
        del self._words[0]
        return embed(address.packed), length + 128 - address.max_prefixlen

    def refuse(self) -> CliError:
        """The error for words that the command does not know."""
        return CliError(f"parse error: '{self}'")


def _vip_arguments(words: _Words, prefix: tuple[bytes, int]) -> tuple[NewVip, bool]:
    """The arguments of ``lb vip`` after its prefix: the VIP, and True if it is to be deleted. Raises CliError."""
    args = NewVip(*prefix, protocol=0, port=0, encap=ENCAP_GRE4)
    delete, dscp = False, None
    while words:
        if (number := words.number("new_len")) is not None:
            args = replace(args, table_length=number)
        elif words.take("del"):
            delete = True
        elif words.take("src_ip_sticky"):
            args = replace(args, src_ip_sticky=True)
        elif (number := words.choice("protocol", _PROTOCOLS)) is not None:
            args = replace(args, protocol=number)
        elif (number := words.number("port")) is not None:
            args = replace(args, port=number & 0xFFFF)
        elif (number := words.choice("encap", _ENCAPS)) is not None:
            args = replace(args, encap=number)
        elif (number := words.number("dscp")) is not None:
            dscp = number
        elif (number := words.choice("type", {"clusterip": 0, "nodeport": 1})) is not None:
            args = replace(args, srv_type=number)
        elif (number := words.number("target_port")) is not None:
            args = replace(args, target_port=number & 0xFFFF)
        else:
            raise words.refuse()
    if args.port == 0:
        args = replace(args, protocol=ANY_PROTOCOL)
    return _with_checked_encap(args, dscp), delete


def _with_checked_encap(args: NewVip, dscp: int | None) -> NewVip:
    """The VIP with its DSCP, once encapsulation, DSCP and address family fit together. Raises CliError.

    The checks stand in VPP's order: with two mistakes in a command, the first one names the error.
    """
    if args.encap != ENCAP_L3DSR and dscp is not None:
        raise CliError("lb_vip_add error: should not configure dscp for none L3DSR.")
    if args.encap == ENCAP_L3DSR:
        if dscp is None or dscp >= 64:
            raise CliError("lb_vip_add error: dscp for L3DSR should be less than 64.")
        args = replace(args, dscp=dscp)
    is_ip4 = args.length >= 96 and extract(args.prefix) != args.prefix
    if is_ip4 and args.encap == ENCAP_NAT6:
        raise CliError("currently does not support NAT46")
    if not is_ip4 and args.encap == ENCAP_NAT4:
        raise CliError("currently does not support NAT64")
    return args


@dataclass(slots=True)
class _AsArguments:
    """The arguments of ``lb as`` after its prefix. Addresses have 16 bytes; no ``weight`` means VPP's default."""

    addresses: list[bytes] = field(default_factory=list)
    protocol: int = 0
    port: int = 0
    weight: int | None = None
    delete: bool = False
    flush: bool = False


_NOT_GIVEN: Final = 0xFFFFFFFF
"""The value with which VPP marks a weight that no word gave; so this number counts as none."""


def _as_arguments(line: Input) -> _AsArguments:
    """Parse ``lb as`` after its prefix. Raises CliError."""
    args = _AsArguments()
    while not line.ended:
        if (found := line.scan("%U", ip46_address)) is not None:
            args.addresses.append(found[0])
        elif (found := line.scan("weight %u")) is not None:
            args.weight = None if found[0] == _NOT_GIVEN else found[0]
        elif line.scan("del") is not None:
            args.delete = True
        elif line.scan("flush") is not None:
            args.flush = True
        elif line.scan("protocol tcp") is not None:
            args.protocol = _PROTOCOLS["tcp"]
        elif line.scan("protocol udp") is not None:
            args.protocol = _PROTOCOLS["udp"]
        elif (found := line.scan("port %d")) is not None:
            args.port = found[0]
        else:
            raise CliError(f"parse error: '{line.shown()}'")
    if args.port == 0:
        args.protocol = ANY_PROTOCOL
    args.port &= 0xFFFF
    if args.weight is not None and args.weight > 100:
        raise CliError("weight must be between 0 and 100")
    if args.weight is not None and args.delete:
        raise CliError("weight and del are mutually exclusive")
    return args


class Cli:
    """The command line of one model. ``refuse``: the return value with which to refuse a line of ``lb as``, or None."""

    def __init__(
        self,
        model: Model,
        version: Callable[[], str],
        now: Callable[[], float],
        refuse: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._model = model
        self._version = version
        self._now = now
        self._refuse = refuse
        self._output: list[str] = []
        self._commands: dict[tuple[str, ...], Callable[[Input], str]] = {
            ("show", "lb"): self._show,
            ("show", "lb", "vips"): _by_words(self._show_vips),
            ("show", "version"): _by_words(lambda _: f"{version()}\n"),
            ("show", "clock"): self._show_clock,
            ("lb", "vip"): _by_words(self._vip),
            ("lb", "as"): self._as,
            ("lb", "conf"): _by_words(self._conf),
            ("lb", "flush", "vip"): _by_words(self._flush_vip),
            ("test", "lb", "flowtable", "flush"): _by_words(self._flush_all),
        }

    def execute(self, text: str) -> tuple[int, str]:
        """Run the commands in a text, up to the first that fails; return value and output.

        Line ends are white space between commands; a command of the lb plugin takes the rest of its line.
        """
        source = Input(text)
        self._output = []
        try:
            while True:
                self._dispatch(source, ())
                if source.scan("%U", end) is not None:
                    return OK, "".join(self._output)
        except CliError as error:
            return -1, "".join([*self._output, f"{error}\n"])

    def _dispatch(self, source: Input, path: tuple[str, ...]) -> None:
        """Run the command that the input begins with, one of those below ``path``. Raises CliError."""
        name = source.attempt(lambda source: _word_of(source, self._below(path)))
        if name is None:
            where = f"{' '.join(path)}: " if path else ""
            raise CliError(f"{where}unknown input `{source.shown()}'")
        path = (*path, name)
        inner = source.attempt(braces) or source
        failed: CliError | None = None
        if self._below(path):
            try:
                self._dispatch(inner, path)
            except CliError as error:
                failed = error
            else:
                return
        command = self._commands.get(path)
        if command is None:
            raise failed or CliError(f"{' '.join(path)}: unknown input `{inner.shown()}'")
        inner.skip_space()
        if inner.scan("?") is not None:
            self._output.append(f"  {' '.join(path):<40} {_HELP.get(path, '')}\n")
            return
        try:
            self._output.append(command(inner))
        except CliError as error:
            raise CliError(f"{' '.join(path)}: {error}") from error

    def _below(self, path: tuple[str, ...]) -> set[str]:
        """The words that may follow."""
        depth = len(path)
        words = {command[depth] for command in self._commands if command[:depth] == path and len(command) > depth}
        return words | _OTHERS.get(path, frozenset())

    # --- show

    def _show(self, source: Input) -> str:
        model = self._model
        return (
            f"lb_main ip4-src-address: {_text(model.conf.ip4_src_address)} \n"
            f" ip6-src-address: {_text(model.conf.ip6_src_address)} \n"
            f" #vips: {len(model.vips)}\n"
            f" #ass: {len(model.ases) - 1}\n"
        )

    def _show_vips(self, words: _Words) -> str:
        show = self._detailed if words.take("verbose") else self._brief
        return "".join([f"{show(vip)}\n" for vip in self._model.visible_vips()])

    def _show_clock(self, source: Input) -> str:
        now = self._now()
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        return (
            f"Time now {now:.6f}, {date}\n"
            f"Time last barrier release 0.000000000\n"
            f"0: Time now {now:.6f}\nThread 0 offset 0.000000000 error 0.000000000\n"
        )

    def _brief(self, vip: Vip) -> str:
        text = f"{vip.type} {_prefix(vip)} new_size:{vip.table_length} #as:{len(vip.as_slots)}"
        if not vip.used:
            text += " removed"
        if vip.port:
            text += f"  protocol:{vip.protocol} port:{vip.port} "
        if vip.type is VipType.IP4_L3DSR:
            text += f"  dscp:{vip.encap_low}"
        elif vip.type.is_nat:
            text += f" {_nat(vip)}"
        return text

    def _detailed(self, vip: Vip) -> str:
        model = self._model
        flags = (" src_ip_sticky" if vip.src_ip_sticky else "") + ("" if vip.used else " removed")
        lines = [f" {vip.type} [{vip.index}] {_prefix(vip)}{flags}\n", f"  new_size:{vip.table_length}\n"]
        if vip.port:
            lines.append(f"  protocol:{vip.protocol} port:{vip.port}\n")
        if vip.type is VipType.IP4_L3DSR:
            lines.append(f"  dscp:{vip.encap_low}\n")
        elif vip.type.is_nat:
            lines.append(f"  {_nat(vip)}")  # no line end here in VPP
        lines.append("  counters:\n")
        lines += [f"    {name}: {value}\n" for name, value in zip(COUNTERS, vip.counters, strict=True)]
        lines.append(f"  #as:{len(vip.as_slots)}\n")
        buckets = model.buckets(vip)
        for server in model.ases_of(vip):
            lines.append(
                f"    {_text(server.address)} weight:{server.weight} buckets:{buckets.get(server.index, 0)}"
                f" flows:{server.flows} dpo:{server.dpo} {'used' if server.used else ' removed'}\n"
            )
        return "".join(lines)

    # --- change

    def _vip(self, words: _Words) -> str:
        if not words:
            return ""
        prefix = words.prefix()
        if prefix is None:
            raise CliError(f"invalid vip prefix: '{words}'")
        args, delete = _vip_arguments(words, prefix)
        self._model.collect_garbage()
        if delete:
            vip = self._find(prefix, args.protocol, args.port)
            _check("lb_vip_del", self._model.delete_vip(vip))
            return ""
        retval, index = self._model.add_vip(args)
        _check("lb_vip_add", retval)
        return f"lb_vip_add ok {index}\n"

    def _as(self, source: Input) -> str:
        line = source.line()
        if line is None:
            return ""
        prefix = line.scan("%U", ip46_prefix)
        if prefix is None:
            raise CliError(f"invalid as address: '{line.shown()}'")
        args = _as_arguments(line)
        vip = self._find(prefix[0], args.protocol, args.port)
        if not args.addresses:
            raise CliError("No AS address provided")
        refused = self._refuse()
        if args.delete:
            _check("lb_vip_del_ass", refused or self._one_rebuild(vip, args, self._delete))
            return ""
        retval = refused or self._one_rebuild(vip, args, self._add)
        if retval == VALUE_EXIST and args.weight is not None:
            # With a weight, one AS that exists makes VPP change the weights one by one. New ones in the same list are
            # then refused, because ``lb_vip_set_as_weight`` does not add.
            for address in args.addresses:
                retval = self._model.set_weight(vip, address, args.weight, flush=args.flush)
                _check("lb_vip_set_as_weight", retval)
            return ""
        _check("lb_vip_add_ass", retval)
        return ""

    def _one_rebuild(self, vip: Vip, args: _AsArguments, change: Callable[[Vip, _AsArguments], int]) -> int:
        """Change a list of ASes, which rebuilds the table once. The line costs what a line costs, not what a call does.

        The binary API's calls have an estimate of their own, so what the model has charged is replaced.
        """
        model = self._model
        before, slots = model.work_ns, len(vip.as_slots)
        retval = change(vip, args)
        if retval == OK:
            added = max(0, len(vip.as_slots) - slots)
            model.work_ns = before + line_work_ns(vip, listed=len(args.addresses), added=added)
        return retval

    def _add(self, vip: Vip, args: _AsArguments) -> int:
        weight = 100 if args.weight is None else args.weight
        return self._model.add_ases(vip, args.addresses, weight, flush=args.flush)

    def _delete(self, vip: Vip, args: _AsArguments) -> int:
        return self._model.delete_ases(vip, args.addresses, flush=args.flush)

    def _conf(self, words: _Words) -> str:
        if not words:
            return ""
        conf = replace(self._model.conf)
        while words:
            if (text := words.value("ip4-src-address")) is not None:
                conf.ip4_src_address = _address(text, 4)
            elif (text := words.value("ip6-src-address")) is not None:
                conf.ip6_src_address = _address(text, 16)
            elif (number := words.number("buckets")) is not None:
                conf.sticky_buckets_per_core = number
            elif (number := words.number("buckets-log2")) is not None:
                if number >= 32:
                    raise CliError("buckets-log2 value is too high")
                conf.sticky_buckets_per_core = 1 << number
            elif (number := words.number("timeout")) is not None:
                conf.flow_timeout = number
            else:
                raise words.refuse()
        self._model.collect_garbage()
        _check("lb_conf", self._model.set_conf(conf))
        return ""

    def _flush_vip(self, words: _Words) -> str:
        if not words:
            return ""
        prefix = words.prefix()
        if prefix is None:
            raise CliError(f"invalid vip prefix: '{words}'")
        protocol = port = 0
        while words:
            if (number := words.choice("protocol", _PROTOCOLS)) is not None:
                protocol = number
            elif (number := words.number("port")) is not None:
                port = number & 0xFFFF
            else:
                raise words.refuse()
        vip = self._find(prefix, ANY_PROTOCOL if port == 0 else protocol, port)
        self._model.flush_vip(vip)
        return f"lb_flush_vip ok {vip.index}\n"

    def _flush_all(self, words: _Words) -> str:
        self._model.flush_all()
        return ""

    def _find(self, prefix: tuple[bytes, int], protocol: int, port: int) -> Vip:
        vip = self._model.find(*prefix, protocol, port)
        if vip is None:
            raise CliError("lb_vip_find_index error -6")
        return vip


def _by_words(command: Callable[[_Words], str]) -> Callable[[Input], str]:
    """A command that takes the rest of its line, word by word."""

    def run(source: Input) -> str:
        line = source.line()
        return command(_Words(line.rest().split() if line is not None else ()))

    return run


def _word_of(source: Input, known: set[str]) -> str | None:
    """Take a word that begins one of ``known``, and no other of them unless it is that one (``vlib/cli.c``).

    The white space behind the word is taken too, even if it ends the line.
    """
    source.skip_space()
    taken = ""
    while (character := source.get()) and ((character.isascii() and character.isalnum()) or character in "-_"):
        taken += character
        known = {word for word in known if word.startswith(taken)}
        if not known:
            return None
    if character and character not in SPACE:
        source.put(character)
    elif len(known) > 1 and taken in known:
        known = {taken}
    return known.pop() if len(known) == 1 and taken else None


def line_work_ns(vip: Vip, *, listed: int, added: int) -> int:
    """What a line of ``lb as`` costs VPP's main thread, after it, with a working syslog. Fitted to measurements.

    ``listed``: ASes that it names; ``added``: those of them that VPP did not have.
    """
    weights = vip.weights
    rebuild = 12 * vip.table_length + 4.3 * weights * math.log2(max(2, weights))
    return int(10_000 + rebuild + 200 * listed + 0.7 * listed * len(vip.as_slots) + 8_000 * added)


def _check(what: str, retval: int) -> None:
    if retval != OK:
        raise CliError(f"{what} error {retval}")


def _address(text: str, size: int) -> bytes:
    try:
        packed = ipaddress.ip_address(text).packed
    except ValueError:
        packed = b""
    if len(packed) != size:
        raise CliError(f"parse error: '{text}'")
    return packed


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(extract(address) if len(address) == 16 else address))


def _prefix(vip: Vip) -> str:
    if vip.is_ip4:
        return f"{_text(vip.prefix)}/{vip.length - 96}"
    return f"{ipaddress.IPv6Address(vip.prefix)}/{vip.length}"


def _nat(vip: Vip) -> str:
    # VPP swaps the bytes of a port that is in host order already.
    port = int.from_bytes(vip.port.to_bytes(2, "big"), "little")
    target = int.from_bytes(vip.target_port.to_bytes(2, "big"), "little")
    return f"type:{'nodeport' if vip.encap_low else 'clusterip'} port:{port} target_port:{target}"
