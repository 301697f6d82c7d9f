"""Where probes leave from changes under them: namespaces that go or are made anew, and an opener that has to wait."""

from __future__ import annotations

from maglev.states import State
from tests.helpers.engine import MS, check, packed, probing
from tests.helpers.netns import (
    SILENT,
    ip,
    pair,
)

MINUTE = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 60_000 * MS)
QUICK = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 200 * MS)


def test_a_namespace_that_goes_away_in_the_middle_of_a_batch_is_no_verdict() -> None:
    with pair() as nets, probing() as p:
        slow = p.engine.add_check(check("syn", 80, netns=nets.client, fall=1, **MINUTE))
        first = p.engine.add_target(slow, packed(SILENT))
        p.wait(lambda: p.engine.stats()["sent_syn"] == 1)
        ip("-n", nets.client, "link", "del", "veth0")
        # There is no way to this one, but the namespace is there: it was just looked for.
        lost = p.engine.add_target(slow, packed(SILENT))
        p.becomes(lost, State.DOWN)
        ip("netns", "del", nets.client)
        many = [p.engine.add_target(slow, packed(f"198.51.100.{n}"), state=State.UP) for n in range(10, 40)]
        for target in many:
            assert "ENOENT" in p.blocked(target)
            assert not p.of(target)
        assert not p.of(first)
