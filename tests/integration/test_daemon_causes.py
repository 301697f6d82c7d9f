"""Decision records: from servers on real sockets to the reading that shows their weights in the stand-in for VPP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from tests.helpers.daemon import DEADLINE, Watcher
from tests.helpers.twenty import MOST, REST, SERVERS, Twenty, twenty


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Twenty]:
    async with twenty(tmp_path) as one:
        yield one


async def causes(stub: pb_grpc.MaglevAsyncStub, **request: object) -> list[pb.Cause]:
    """The causes, oldest first."""
    answer = await stub.ListCauses(pb.ListCausesRequest(**request))  # type: ignore[arg-type]
    return list(answer.causes)[::-1]


async def cause(stub: pb_grpc.MaglevAsyncStub, wanted: Callable[[pb.Cause], bool]) -> pb.Cause:
    """Wait for a cause."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if found := [one for one in await causes(stub) if wanted(one)]:
                return found[-1]
            await asyncio.sleep(0.02)  # the API has no event for this


def read_back(kind: pb.CauseKind.ValueType, changes: int) -> Callable[[pb.Cause], bool]:
    """Whether a cause has made so many changes, and the last of them was read back."""
    return lambda one: one.kind == kind and one.changes == changes and one.confirmed_ns >= one.accepted_ns > 0


async def test_a_mass_failure_is_one_cause_with_its_way_to_vpp(lab: Twenty) -> None:
    async with lab.daemon("off") as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(**dict.fromkeys(SERVERS, "up"))
        await lab.serve(SERVERS)
        await lab.refuse(MOST)
        await watcher.states(**dict.fromkeys(MOST, "down"))
        await lab.serve(REST)
        found = await cause(stub, read_back(pb.CAUSE_KIND_VERDICT, len(MOST)))
        assert (found.backends, found.frontends, list(found.frontend_names)) == (len(MOST), 1, ["www"])
        assert found.text.startswith("12 backends (s")
        assert found.text.endswith("and 9 more) went down (L4CON)")
        assert found.at_ns <= found.planned_ns <= found.accepted_ns <= found.confirmed_ns

        events = (await stub.ListEvents(pb.ListEventsRequest(backends=MOST))).events
        down = [one for one in events if one.event.backend.to_state == pb.BACKEND_STATE_DOWN]
        assert {one.cause for one in down} == {found.id}
        assert [one.id for one in await causes(stub, backends=["s01"])][-1] == found.id

        why = await stub.Explain(pb.ExplainRequest(backend="s01"))
        assert why.subject == "backend s01"
        assert why.sentences[0].startswith("It has been down for ")
        assert "In frontend www, pool p: weight 0 of 100, as it is down." in why.sentences
        assert [one.id for one in why.causes] == [found.id]
        why = await stub.Explain(pb.ExplainRequest(frontend="www"))
        assert why.sentences[0] == "It is up, and pool p serves it."
        assert "Backend s07: weight 0 of 100, as it is down." in why.sentences
        assert [one.id for one in why.causes] == [found.id]


async def test_an_operator_s_command_and_a_reload_are_causes_of_their_own(lab: Twenty) -> None:
    async with lab.daemon("off") as daemon, daemon.api() as stub:
        await Watcher(stub).states(**dict.fromkeys(SERVERS, "up"))
        await lab.serve(SERVERS)
        for name in ("s01", "s02"):
            await stub.DrainBackend(pb.ChangeBackendRequest(name=name, reason="disk swap"))
        await lab.serve(set(SERVERS) - {"s01", "s02"})
        found = await cause(stub, read_back(pb.CAUSE_KIND_OPERATOR, 2))
        assert found.text.endswith("drained 2 backends (s01, s02): disk swap")
        assert (found.reason, bool(found.by)) == ("disk swap", True)
        why = await stub.Explain(pb.ExplainRequest(backend="s01"))
        assert "In frontend www, pool p: weight 0 of 100, as it is drained." in why.sentences
        assert any("drained it" in sentence and sentence.endswith(": disk swap.") for sentence in why.sentences)

        daemon.config.write_text(daemon.config.read_text().replace("s03: ,", "s03: {weight: 7},"))
        answer = await stub.ReloadConfig(pb.ReloadConfigRequest())
        assert answer.ok, answer
        found = await cause(stub, lambda one: one.kind == pb.CAUSE_KIND_RELOAD and one.changes > 0)
        assert found.text.startswith("configuration loaded by ")


async def test_what_cannot_be_explained_is_refused(lab: Twenty) -> None:
    async with lab.daemon("off") as daemon, daemon.api() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Explain(pb.ExplainRequest())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Explain(pb.ExplainRequest(backend="nobody"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListCauses(pb.ListCausesRequest(frontends=["nobody"]))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
