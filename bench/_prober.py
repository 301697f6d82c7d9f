"""An engine in a separate process: ``python -m bench._prober KIND TARGETS INTERVAL_MS PORT``.

Every line on its standard input is answered by one line of JSON: the engine's counters, the lateness of its sends, and
its memory. Before that ``hold SECONDS`` keeps the interpreter's lock for so long, ``renew`` removes every target and
adds it again, as a reload does, and ``tls PORT CA_FILE NAME COUNT`` adds as many targets with an HTTPS check.
"""

from __future__ import annotations

import json
import re
import select
import sys
import time

from maglev._probe import Engine
from maglev.base.states import CheckType
from maglev.config.model import HealthCheck, HttpParams, IcmpParams, TcpMode, TcpParams, TlsParams

MS = 1_000_000
TLS_TARGETS = 4096
KINDS: dict[str, tuple[CheckType, IcmpParams | TcpParams | HttpParams]] = {
    "icmp": (CheckType.ICMP, IcmpParams()),
    "syn": (CheckType.TCP, TcpParams()),
    "connect": (CheckType.TCP, TcpParams(mode=TcpMode.CONNECT)),
    "http": (CheckType.HTTP, HttpParams()),
}


def hold(seconds: float) -> None:
    """Keep the interpreter's lock: an expression that backtracks lets it go only at the end of each match."""
    end = time.monotonic() + seconds
    length = 18
    while (left := end - time.monotonic()) > 0:
        began = time.monotonic()
        re.fullmatch(r"(a|aa)+b", "a" * length)
        # One further letter takes 1.6 times as long: as near to one single match as can be had.
        if time.monotonic() - began < left / 3:
            length += 1


def rss() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as text:
        return int(text.read().split()[1]) * 4096


def main(kind: str, targets: int, interval_ms: int, port: int) -> None:
    """Probe 127.1.0.0 and the next ``targets - 1`` addresses."""
    before = rss()
    engine = Engine(capacity=targets + TLS_TARGETS)
    interval = interval_ms * MS
    check_type, params = KINDS[kind]
    check = engine.add_check(
        HealthCheck(name=kind, type=check_type, params=params, port=port, interval=interval, timeout=interval)
    )
    engine.start()

    def add(a_check: int, count: int) -> list[int]:
        numbers = range(count)
        return [
            engine.add_target(a_check, (0x7F010000 + n).to_bytes(4, "big"), first_delay=n * interval // count)
            for n in numbers
        ]

    probed = add(check, targets)
    verdicts = {"up": 0, "down": 0}
    while True:
        ready, _, _ = select.select([engine, sys.stdin], [], [])
        for one in engine.transitions():
            verdicts["up" if one.to_state == 1 else "down"] += 1
        if sys.stdin not in ready:
            continue
        words = sys.stdin.readline().split()
        if not words:
            break
        if words[0] == "hold":
            hold(float(words[1]))
        elif words[0] == "renew":
            for target in probed:
                engine.remove_target(target)
            probed = add(check, targets)
        elif words[0] == "tls":
            https = HttpParams(host=words[3], tls=TlsParams(ca_file=words[2]))
            add(
                engine.add_check(
                    HealthCheck("https", CheckType.HTTPS, https, int(words[1]), interval, timeout=interval)
                ),
                int(words[4]),
            )
        lateness = engine.lateness()
        answer = {
            **engine.stats(),
            **verdicts,
            "rss": rss() - before,
            "bounds": lateness.bounds,
            "late": lateness.counts,
        }
        print(json.dumps(answer), flush=True)
    engine.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
