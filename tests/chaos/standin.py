"""``python -m tests.chaos.standin SOCKET CONTROL LEDGER``: the stand-in, with a ledger and a trigger.

The ledger gets a line of JSON for each call that changes VPP, and for each connection, with the machine's monotonic
time, at the moment when the call is done. The trigger sends a signal to a process when the Nth call of a kind from now
on has been done and not answered yet: so a test can kill a client in the middle of anything.

Over the control socket: ``arm CALL NTH SIGNAL PID`` (CALL may end in ``:del``), ``armed``, and what the stand-in's own
command language has.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TextIO

import uvloop

from maglev.vpp.wire.messages import VipKey, address_text
from maglev.vppsim.control import Control, ControlSocket
from maglev.vppsim.journal import Entry, Journal
from maglev.vppsim.server import StandIn

WRITES = ("lb_add_del_vip_v2", "lb_add_del_as_v2", "lb_as_set_weight", "lb_flush_vip")


class Trigger:
    """Sends a signal once, after so many calls of a kind."""

    def __init__(self) -> None:
        self.left = 0
        self.call = ""
        self.number = signal.SIGKILL
        self.pid = 0

    def arm(self, call: str, nth: int, number: int, pid: int) -> None:
        """Send ``number`` to ``pid`` at the ``nth`` such call from now."""
        self.call, self.left, self.number, self.pid = call, nth, signal.Signals(number), pid

    def see(self, call: str) -> None:
        """A call was done."""
        if self.left and call == self.call:
            self.left -= 1
            if not self.left:
                os.kill(self.pid, self.number)


class Ledger(Journal):
    """A journal that writes a line for each change, and that pulls the trigger."""

    def __init__(self, file: TextIO, trigger: Trigger) -> None:
        super().__init__(size=1000)
        self._file = file
        self._trigger = trigger
        self._calls = 0

    def add(self, entry: Entry) -> None:
        """Record a call."""
        super().add(entry)
        self._calls += 1
        values = entry.values
        if entry.message in WRITES:
            line = self._line(entry, values)
            print(json.dumps(line), file=self._file)
            self._trigger.see(entry.message + (":del" if line["delete"] else ""))
        elif entry.message == "cli_inband":
            for line in self._commands(entry, values["cmd"]):
                print(json.dumps(line), file=self._file)
                self._trigger.see(line["call"] + (":del" if line["delete"] else ""))
        elif entry.message == "sockclnt_create":
            print(json.dumps({"t": time.monotonic(), "client": entry.client, "call": entry.message}), file=self._file)

    def _commands(self, entry: Entry, text: str) -> Iterator[dict[str, Any]]:
        """The effect of the ``lb as`` lines of a text on each AS, as calls of the API.

        An AS that one line deletes and a later line of the same text adds has its weight set: nothing runs in between.
        """
        deleted: dict[tuple[str, str], bool] = {}
        for words in (line.split() for line in text.splitlines()):
            if words[:2] != ["lb", "as"]:
                continue
            at = 7 if words[3:4] == ["protocol"] else 3
            end = next((place for place, word in enumerate(words) if word in ("del", "weight")), len(words))
            numbers = {"tcp": 6, "udp": 17}
            prefix = ip_network(words[2])
            port = int(words[6]) if at == 7 else 0
            number = numbers[words[4]] if port else 255
            vip = str(VipKey(prefix.network_address.packed, prefix.prefixlen, number, port))
            addresses = [str(ip_address(word)) for word in words[at:end]]
            if words[end : end + 1] == ["del"]:
                deleted.update({(vip, address): "flush" in words[end:] for address in addresses})
                continue
            for address in addresses:
                before = deleted.pop((vip, address), None)
                call = "lb_add_del_as_v2" if before is None else "lb_as_set_weight"
                yield self._entry(entry, call, vip, address, weight=int(words[end + 1]), flush=bool(before))
        for (vip, address), flush in deleted.items():
            yield self._entry(entry, "lb_add_del_as_v2", vip, address, flush=flush, delete=True)

    def _line(self, entry: Entry, values: dict[str, Any]) -> dict[str, Any]:
        prefix, port = values["pfx"], values["port"]
        key = VipKey(prefix.address, prefix.length, values["protocol"] if port else 255, port)
        return self._entry(
            entry,
            entry.message,
            str(key),
            address_text(values["as_address"]) if "as_address" in values else "",
            weight=values.get("weight", 0),
            flush=bool(values.get("is_flush", False)),
            delete=bool(values.get("is_del", False)),
            table=values.get("new_flows_table_length", 0),
            sticky=bool(values.get("src_ip_sticky", False)),
        )

    def _entry(
        self,
        entry: Entry,
        call: str,
        vip: str,
        address: str,
        *,
        weight: int = 0,
        flush: bool = False,
        delete: bool = False,
        table: int = 0,
        sticky: bool = False,
    ) -> dict[str, Any]:
        return {
            "t": time.monotonic(),
            "client": entry.client,
            "call": call,
            "vip": vip,
            "address": address,
            "weight": weight,
            "flush": flush,
            "delete": delete,
            "table": table,
            "sticky": sticky,
            "retval": entry.retval,
            "calls": self._calls,
        }


class Hooks(Control):
    """The stand-in's command language, and the trigger."""

    def __init__(self, server: StandIn, trigger: Trigger) -> None:
        super().__init__(server)
        self._trigger = trigger

    def execute(self, line: str) -> tuple[int, str]:
        """Run one command."""
        match line.split():
            case ["arm", call, nth, number, pid]:
                self._trigger.arm(call, int(nth), int(number), int(pid))
                return 0, ""
            case ["armed"]:
                return 0, f"{self._trigger.left}\n"
        return super().execute(line)


async def main(path: Path, control: Path, ledger: Path) -> None:
    """Serve until SIGTERM."""
    trigger = Trigger()
    with ledger.open("a", buffering=1) as file:
        server = StandIn(path, journal=Ledger(file, trigger))
        hooks = ControlSocket(control, Hooks(server, trigger))
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await hooks.start()
        await server.start()
        print("ready", flush=True)
        await ended.wait()
        await server.stop()
        await hooks.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    Path(sys.argv[2]).unlink(missing_ok=True)
    uvloop.run(main(*[Path(word) for word in sys.argv[1:]]))
