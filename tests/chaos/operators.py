"""Operators take servers out and put them back over the API, and note as facts what may be, and surely is, set."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass

import grpc

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from tests.chaos.facts import Facts
from tests.chaos.plan import Member, Plan, Vip

CALL_SECONDS = 10.0
MOST = 12
"""Settings at a time, so that every frontend keeps servers."""

LATE = 0.5
"""Seconds by which a setting may outlive its duration."""

VERBS = {"drain": "undrain", "disable": "enable", "pause": "resume"}


@dataclass(slots=True)
class Setting:
    """One thing that an operator has set. ``ends``: when its duration is over at the earliest; 0: it has none."""

    verb: str
    backend: str
    address: str
    vip: str = ""
    frontend: str = ""
    pool: str = ""
    weight: int = 0
    file_weight: int = 0
    duration: float = 0.0
    ends: float = 0.0


class Operators:
    """All settings. ``unsure``: the daemon may have others than these; ``reconcile`` ends that."""

    def __init__(self, facts: Facts, chance: random.Random) -> None:
        self._facts = facts
        self._chance = chance
        self.settings: dict[str, Setting] = {}
        self.unsure = False
        self.counts: Counter[str] = Counter()

    # ---- questions

    def usable(self, member: Member) -> bool:
        """Whether no operator has taken the backend out."""
        setting = self.settings.get(member.backend)
        return setting is None or setting.verb == "weight"

    def kept(self, member: Member) -> bool:
        """Whether ``on-all-down: keep`` is for it: paused backends keep their weight."""
        setting = self.settings.get(member.backend)
        return setting is None or setting.verb in ("weight", "pause")

    def weight(self, vip: Vip, member: Member) -> int:
        """The weight in force."""
        setting = self.settings.get(member.backend)
        if setting is not None and setting.verb == "weight" and setting.vip == vip.key:
            return setting.weight
        return member.weight

    # ---- settings

    async def act(self, stub: pb_grpc.MaglevAsyncStub, plan: Plan) -> None:
        """One operator does one thing."""
        self.expire()
        if self.settings and (len(self.settings) >= MOST or self._chance.random() < 0.45):
            await self.undo(stub, self._chance.choice(sorted(self.settings)))
            return
        vip = plan.vips[self._chance.choice(sorted(plan.vips))]
        number, member = self._chance.choice(vip.members())
        if member.backend in self.settings:
            return
        verb = self._chance.choice([*VERBS, "weight", "weight"])
        duration = self._chance.uniform(1.0, 3.0) if self._chance.random() < 0.4 else 0.0
        setting = Setting(verb, member.backend, member.address, duration=duration)
        if verb == "weight":
            setting.vip, setting.frontend, setting.pool = vip.key, vip.frontend, vip.pool_names[number]
            setting.file_weight = member.weight
            setting.weight = self._chance.choice([w for w in (0, 10, 40, 50, 80) if w != member.weight])
        await self._set(stub, setting, vip)

    async def _set(self, stub: pb_grpc.MaglevAsyncStub, setting: Setting, vip: Vip) -> None:
        before = time.monotonic()
        self._begin(setting, before)
        try:
            if setting.verb == "weight":
                await stub.SetFrontendPoolBackendWeight(
                    pb.SetWeightRequest(
                        frontend=setting.frontend, pool=setting.pool, backend=setting.backend, weight=setting.weight,
                        duration_ns=round(setting.duration * 1e9), reason="chaos",
                    ),
                    timeout=CALL_SECONDS,
                )  # fmt: skip
            else:
                call = {"drain": stub.DrainBackend, "disable": stub.DisableBackend, "pause": stub.PauseBackend}
                await call[setting.verb](
                    pb.ChangeBackendRequest(
                        name=setting.backend, duration_ns=round(setting.duration * 1e9), reason="chaos"
                    ),
                    timeout=CALL_SECONDS,
                )
        except grpc.aio.AioRpcError as error:
            self._failed(error)
            # It may be set, or not; it is among the settings so that it is undone.
        else:
            if setting.verb != "weight":
                self._facts.taken[setting.backend].begin(time.monotonic())
            self.counts[setting.verb + (" for a while" if setting.duration else "")] += 1
        if setting.duration:
            setting.ends = before + setting.duration
        self.settings[setting.backend] = setting

    def _begin(self, setting: Setting, t: float) -> None:
        if setting.verb == "weight":
            self._facts.weights[setting.vip, setting.address][setting.weight].begin(t)
        else:
            self._facts.out[setting.backend].begin(t)
        if setting.verb == "disable":
            self._facts.flushed[setting.backend].begin(t)

    def _failed(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise error
        self.unsure = True
        self.counts["calls without an answer"] += 1

    async def undo(self, stub: pb_grpc.MaglevAsyncStub, name: str) -> None:
        """Take a setting back."""
        setting = self.settings[name]
        self._facts.taken[name].end(time.monotonic())
        try:
            await self._undo(stub, setting.verb, name, setting.frontend, setting.pool)
        except grpc.aio.AioRpcError as error:
            self._failed(error)
            return
        self._forget(name, time.monotonic())
        self.counts[VERBS.get(setting.verb, "weight default")] += 1

    async def _undo(self, stub: pb_grpc.MaglevAsyncStub, verb: str, name: str, frontend: str, pool: str) -> None:
        if verb == "weight":
            request = pb.SetWeightRequest(frontend=frontend, pool=pool, backend=name)
            await stub.SetFrontendPoolBackendWeight(request, timeout=CALL_SECONDS)
            return
        call = {"drain": stub.UndrainBackend, "disable": stub.EnableBackend, "pause": stub.ResumeBackend}
        await call[verb](pb.ChangeBackendRequest(name=name, reason="chaos"), timeout=CALL_SECONDS)

    def _forget(self, name: str, t: float) -> None:
        setting = self.settings.pop(name, None)
        if setting is None:
            return  # it ended by itself while a call about it was under way
        self._facts.taken[name].end(min(t, setting.ends or t))
        if setting.verb == "weight":
            self._facts.weights[setting.vip, setting.address][setting.weight].end(t)
        else:
            self._facts.out[name].end(t)
            self._facts.flushed[name].end(t)

    def expire(self) -> None:
        """Forget what has ended by itself."""
        now = time.monotonic()
        for name, setting in list(self.settings.items()):
            if setting.ends and now > setting.ends:
                self._facts.taken[name].end(setting.ends)
                if now > setting.ends + LATE:
                    self._forget(name, now)
                    self.counts["ended by themselves"] += 1

    def restarted(self, spawned: float, *, skewed: bool) -> None:
        """The daemon was started. ``skewed``: its clock was wrong before, so it cannot know when a duration ends."""
        if skewed:
            for name, setting in self.settings.items():
                if setting.ends:
                    self._facts.taken[name].end(spawned)
                    self.unsure = True

    def accepted(self, old: Plan, new: Plan, t: float) -> None:
        """Settings end where the file's own value for that very item has changed, or where the item is gone."""
        for name, setting in list(self.settings.items()):
            gone = new.backends.get(name) != old.backends.get(name, new.backends.get(name))
            if setting.verb == "weight":
                place = None if (vip := new.vips.get(setting.vip)) is None else vip.find(setting.address)
                gone = gone or place is None or place[1].weight != setting.file_weight
            if gone:
                self._forget(name, t)

    async def reconcile(self, stub: pb_grpc.MaglevAsyncStub, spawned: float, plan: Plan) -> None:
        """Take everything back that the daemon has, as after a state file that may be an older one."""
        answer = await stub.ListOverrides(pb.ListOverridesRequest(page_size=1000), timeout=CALL_SECONDS)
        keys = {vip.frontend: vip.key for vip in plan.vips.values()}
        for one in answer.overrides:
            verb = pb.OverrideKind.Name(one.kind).removeprefix("OVERRIDE_KIND_").lower()
            self._facts.taken[one.backend].end(time.monotonic())
            await self._undo(stub, verb, one.backend, one.frontend, one.pool)
            now = time.monotonic()
            if verb == "weight":
                self._facts.weights[keys.get(one.frontend, ""), one.address][one.weight].add(spawned, now)
            else:
                self._facts.out[one.backend].add(spawned, now)
            if verb == "disable":
                self._facts.flushed[one.backend].add(spawned, now)
        for name in list(self.settings):
            self._forget(name, time.monotonic())
        self.unsure = False
