"""The output of ``maglevc`` for people, as lines. No I/O; everything that came over the wire is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from maglev.cli.jsonout import word
from maglev.cli.text import Style, Table, duration, escape, fields, moment, yes
from maglev.pb import maglev_pb2 as pb


def endpoint(address: str, protocol: int, port: int) -> str:
    """``192.0.2.80 tcp 80``, or the address alone for any protocol."""
    if protocol in (pb.PROTOCOL_ANY, pb.PROTOCOL_UNSPECIFIED):
        return address
    return f"{address} {word(pb.Protocol, protocol)} {port}"


# ----------------------------------------------------------------------------------------------------- frontends


def frontend_table(style: Style) -> Table:
    """The table of ``show frontends``."""
    return Table(style, ("FRONTEND", "VIP", "STATE", "POOL", "SERVING"), paint=("STATE",))


def frontend_rows(page: Iterable[pb.FrontendInfo]) -> list[tuple[str, ...]]:
    """Its rows."""
    return [
        (
            one.name,
            endpoint(one.address, one.protocol, one.port),
            word(pb.FrontendState, one.state),
            one.active_pool,
            f"{one.backends_usable}/{one.backends_wanted}",
        )
        for one in page
    ]


def frontend(style: Style, info: pb.FrontendInfo) -> Iterator[str]:
    """``show frontends NAME``. A pool member is one line: ``<name> weight <cfg> effective <eff> [flags]``."""
    yield style.paint(f"frontend {escape(info.name)}", "bold")
    if info.vpp_away_since_ns:
        yield style.paint(f"  {_AWAY.format(moment(info.vpp_away_since_ns))}", "error")
    yield from fields(
        style,
        (
            ("vip", endpoint(info.address, info.protocol, info.port)),
            ("description", info.description),
            ("state", word(pb.FrontendState, info.state)),
            ("active pool", info.active_pool),
            ("weight unit", str(info.unit)),
            ("source sticky", yes(info.src_ip_sticky)),
            ("flush on down", yes(info.flush_on_down)),
            ("on all down", word(pb.OnAllDown, info.on_all_down)),
            ("panic", _panic(info)),
            ("slow start", duration(info.slow_start_ns) if info.slow_start_ns else ""),
            ("table length", str(info.vpp_table_length or info.new_flows_table_length or "")),
            ("fingerprint", info.fingerprint),
        ),
    )
    for at, pool in enumerate(info.pools):
        active = " (active)" if at == info.active_pool_index else ""
        healthy = f", {_share(pool)} of the weight healthy" if info.panic_action and pool.whole_weight else ""
        yield f"  pool {escape(pool.name)}{active}{healthy}{_thresholds(style, pool)}"
        for one in pool.backends:
            yield "    " + member(style, one) + share(one, info.vpp_table_length)


def _panic(info: pb.FrontendInfo) -> str:
    """When a frontend is in panic, and what happens then; empty where it never is."""
    return f"below {info.panic_below * 100:g}%: {word(pb.PanicAction, info.panic_action)}" if info.panic_action else ""


def _share(pool: pb.PoolInfo) -> str:
    """The healthy part of a pool's weight."""
    return f"{100 * pool.healthy_weight / pool.whole_weight:.4g}%"


def _thresholds(style: Style, pool: pb.PoolInfo) -> str:
    """The counts that a pool needs and has; nothing where one backend makes it usable."""
    if pool.min_up <= 1 and pool.resume_up <= 1 and not pool.resume_after_ns:
        return ""
    text = f"{pool.up} up, min-up {pool.min_up}"
    if pool.resume_up != pool.min_up or pool.resume_after_ns:
        text += f", resume-up {pool.resume_up}"
    if pool.resume_after_ns:
        text += f" for {duration(pool.resume_after_ns)}"
    return ": " + (text if pool.usable else style.paint(text, "down"))


_AWAY = "VPP is away or left alone since {}: state and weights are what it will get (show version says why)"


def away(style: Style, info: pb.VPPConnection) -> Iterator[str]:
    """The line above lists whose weights VPP does not have; nothing while it follows the daemon, or there is none."""
    if not info.configured or (info.connected and not info.problem):
        return
    what = "VPP is left alone" if info.connected else "VPP is away"
    because = f" ({escape(info.problem)})" if info.problem else ""
    yield style.paint(
        f"{what} since {moment(info.since_ns)}{because}: states and weights are what it will get", "error"
    )


def member(style: Style, info: pb.PoolBackendInfo) -> str:
    """One pool member. The weight is the one in force; the form is a contract, see the user guide."""
    flags = "" if info.enabled else " " + style.paint("[disabled]", "disabled")
    flags += " " + style.paint("[drained]", "drained") if info.drained else ""
    flags += f" [slow start {info.slow_start_percent}%]" if info.slow_start_percent else ""
    name = style.paint(escape(info.name), word(pb.BackendState, info.state))
    return f"{name} weight {info.weight} effective {info.effective_weight}{flags}"


def share(info: pb.PoolBackendInfo, length: int) -> str:
    """Its part of VPP's new-flow table, after the weights; nothing for a member without buckets or weight."""
    if not length or not info.HasField("buckets") or not (info.buckets or info.effective_weight):
        return ""
    return f" share {100 * info.buckets / length:.1f}%"


def flow(style: Style, info: pb.FlowInfo) -> Iterator[str]:
    """``flow``: the bucket of a flow, and its server now and before."""
    yield style.paint(f"frontend {escape(info.frontend)}", "bold")
    chosen = "addresses" if info.by_address else "addresses and ports"
    before = f"{_server(info, 'server_before')}, until {moment(info.changed_at_ns)}"
    yield from fields(
        style,
        (
            ("vip", info.vip),
            ("chosen by", chosen),
            ("hash", f"{info.hash:#010x}"),
            ("bucket", f"{info.bucket} of {info.table_length}"),
            ("server", _server(info, "server")),
            ("before", before if info.changed_at_ns else ""),
            ("read from VPP", moment(info.read_at_ns)),
        ),
    )
    yield "  a flow that is older than the last change stays with the server that it had, unless that was flushed"


def _server(info: pb.FlowInfo, which: Literal["server", "server_before"]) -> str:
    if not info.HasField(which):
        return "none: no server had a weight" if which == "server_before" else "none: no server has a weight"
    server: pb.FlowServer = getattr(info, which)
    return f"{server.backend} ({server.address})" if server.backend else server.address


def comparison(style: Style, info: pb.Comparison) -> Iterator[str]:
    """``compare``: each VIP that differs, with its table on each server."""
    table = Table(style, ("VIP", "SERVER", "FRONTEND", "FINGERPRINT", ""), paint=("",))
    rows = [
        (one.vip, on.server, on.frontend or "-", on.fingerprint or "-", _differs(on))
        for one in info.differences
        for on in one.tables
    ]
    if rows:
        yield from table.lines(rows)
    vips, servers = _counted(info.vips, "VIP"), _counted(len(info.servers), "server")
    if info.equal:
        yield f"{vips} on {servers}: all tables are equal"
    else:
        yield style.paint(f"{vips} on {servers}: {len(info.differences)} not equal", "error")


def _differs(info: pb.ServerTable) -> str:
    if info.fingerprint:
        return "differs" if info.differs else ""
    return "no such VIP" if not info.frontend else "not known: VPP is away, or has not shown it yet"


# ------------------------------------------------------------------------------------------------------ backends


def backend_table(style: Style) -> Table:
    """The table of ``show backends``."""
    return Table(
        style,
        ("BACKEND", "ADDRESS", "STATE", "CHECK", "LAST", "RTT", "FOR", "DETAIL"),
        paint=("STATE",),
        shorten=("DETAIL",),
    )


def backend_rows(page: Iterable[pb.BackendInfo], now_ns: int) -> list[tuple[str, ...]]:
    """Its rows; ``now_ns`` is the wall clock. Of a backend that is not probed the last result is history."""
    rows: list[tuple[str, ...]] = []
    for one in page:
        probed = one.state not in (pb.BACKEND_STATE_PAUSED, pb.BACKEND_STATE_DISABLED) and not one.unprobed_since_ns
        rows.append(
            (
                one.name,
                one.address,
                _state_words(one) + (" drained" if one.drained else ""),
                one.healthcheck or "static",
                ("unprobed" if one.unprobed_since_ns else word(pb.CheckCode, one.last_code) if probed else "") or "-",
                duration(one.last_rtt_ns) if probed and one.HasField("last_rtt_ns") else "-",
                duration(max(0, now_ns - one.state_since_ns)) if one.state_since_ns else "-",
                ", ".join(
                    [_because(each, now_ns) for each in one.overrides if each.kind != pb.OVERRIDE_KIND_WEIGHT]
                    or [one.unprobed_reason if one.unprobed_since_ns else one.last_detail if probed else ""]
                ),
            )
        )
    return rows


def _state_words(info: pb.BackendInfo) -> str:
    """``up``, or ``up, down held: brake``."""
    state = word(pb.BackendState, info.state)
    return f"{state}, down held: {info.held}" if info.held else state


def _because(info: pb.Override, now_ns: int) -> str:
    """``by <who>: <reason> (1h left)``."""
    left = f" ({duration(max(0, info.until_ns - now_ns))} left)" if info.until_ns else ""
    return f"by {info.by or '-'}" + (f": {info.reason}" if info.reason else "") + left


def backend(style: Style, info: pb.BackendInfo, now_ns: int) -> Iterator[str]:
    """``show backends NAME``: what it is, its last result, what operators set, its history."""
    state = word(pb.BackendState, info.state)
    checked = bool(info.healthcheck)
    unprobed = ""
    if info.unprobed_since_ns:
        unprobed = f"since {moment(info.unprobed_since_ns)}: {info.unprobed_reason.removeprefix('not probed: ')}"
    last = word(pb.CheckCode, info.last_code)
    if last and info.last_detail:
        last += f" ({info.last_detail})"
    yield style.paint(f"backend {escape(info.name)}", "bold")
    yield from fields(
        style,
        (
            ("address", info.address),
            ("state", state),
            (
                "since",
                f"{moment(info.state_since_ns)} ({_ago(now_ns, info.state_since_ns)})" if info.state_since_ns else "",
            ),
            ("enabled", yes(info.enabled)),
            ("drained", yes(info.drained)),
            ("health check", info.healthcheck or "none (static)"),
            (
                "counter",
                f"{info.counter} of {info.rise + info.fall - 1} (rise {info.rise}, fall {info.fall})"
                if checked
                else "",
            ),
            ("last result", last),
            ("last rtt", duration(info.last_rtt_ns) if info.HasField("last_rtt_ns") else ""),
            ("last age", duration(info.last_result_age_ns) if info.HasField("last_result_age_ns") else ""),
            ("probes", f"{info.probes_passed} passed, {info.probes_failed} failed" if checked else ""),
            ("not probed", unprobed),
            ("held", _state_words(info) if info.held else ""),
            ("presumed", "good, as VPP sent it traffic at the start" if info.presumed else ""),
            ("frontends", ", ".join(info.frontends)),
        ),
    )
    for one in info.overrides:
        yield f"  override      {escape(_override_words(one))}"
    if info.transitions:
        yield "  history"
    for change in info.transitions:
        yield "    " + transition(style, change)


def transition(style: Style, info: pb.Transition) -> str:
    """``<time>  <from> -> <to>  <code> (<detail>) by <who>: <reason>``."""
    to = word(pb.BackendState, info.to_state)
    return f"{moment(info.at_ns)}  {word(pb.BackendState, info.from_state)} -> {style.paint(to, to)}{_why(info)}"


def _why(info: pb.Transition | pb.BackendEvent, duration_ns: int = 0) -> str:
    """``  <code> (<detail>) by <who> for <how long>: <reason>``, as far as there is anything to say."""
    code = word(pb.CheckCode, info.code)
    said = f"  {code}" if code else ""
    said += f" ({escape(info.detail)})" if info.detail else ""
    return said + _who(info.by, info.reason, duration_ns)


def _who(by: str, reason: str, duration_ns: int = 0) -> str:
    said = (f" by {escape(by)}" if by else "") + (f" for {duration(duration_ns)}" if duration_ns else "")
    return said + (f": {escape(reason)}" if reason else "")


def _cause(text: str) -> str:
    return f": {escape(text)}" if text else ""


def out_of_service(style: Style, infos: Sequence[pb.BackendInfo], more: int, now_ns: int) -> Iterator[str]:
    """Behind ``show frontends NAME``: which of its backends get nothing, since when, and why, and how many ``more``."""
    if infos:
        yield "  out of service"
    for one in infos:
        state = word(pb.BackendState, one.state)
        line = f"    {escape(one.name)} {style.paint(state, state)}"
        line += f" for {duration(max(0, now_ns - one.state_since_ns))}" if one.state_since_ns else ""
        line += ", " + style.paint("drained", "drained") if one.drained else ""
        settings = [each for each in one.overrides if each.kind != pb.OVERRIDE_KIND_WEIGHT]
        if settings:
            line += "".join(f" {escape(_because(each, now_ns))}" for each in settings)
        elif one.transitions and one.transitions[-1].to_state == one.state:
            line += _why(one.transitions[-1])
        yield line
    if more > 0:
        yield f"    ... and {more} more"


def _ago(now_ns: int, at_ns: int) -> str:
    return f"{duration(max(0, now_ns - at_ns))} ago"


def _override_words(info: pb.Override) -> str:
    words = word(pb.OverrideKind, info.kind)
    if info.kind == pb.OVERRIDE_KIND_WEIGHT:
        words += f" {info.weight} (file: {info.file_weight}) in {info.frontend} pool {info.pool}"
    words += f" by {info.by}" if info.by else ""
    words += f" since {moment(info.since_ns)}" if info.since_ns else ""
    words += f" until {moment(info.until_ns)}" if info.until_ns else ""
    return words + (f": {info.reason}" if info.reason else "")


def reply(
    changes: Iterable[pb.ValueChange],
    effects: Iterable[pb.FrontendEffect],
    omitted: int,
    now_ns: int,
    *,
    tried: bool = False,
) -> Iterator[str]:
    """The changes that a request made to a setting that was there already, and its effects. ``now_ns``: wall clock.

    ``tried``: it has changed nothing, and says what it would change.
    """
    now, then = ("would be", "is") if tried else ("is now", "was")
    for one in changes:
        # State, drain and weight are in the line before.
        if one.what in ("reason", "until", "by"):
            after, before = _value(one.what, one.after, now_ns), _value(one.what, one.before, now_ns)
            yield f"  {one.what} {now} {after}, {then} {before}"
    for effect in effects:
        yield f"  {escape(effect.text)}"
    if omitted:
        yield f"  and {omitted} more frontends"


def preview(style: Style, info: pb.Preview) -> Iterator[str]:
    """The effects that a change would have: on frontends and their weights, and in VPP."""
    for one in info.frontends:
        before, after = word(pb.FrontendState, one.state_before), word(pb.FrontendState, one.state_after)
        line = style.paint(f"  frontend {escape(one.frontend)}", "bold")
        line += f": {before} -> {after}" if before != after else f": {after}"
        if one.pool_before != one.pool_after:
            line += f", pool {escape(one.pool_before) or 'none'} -> {escape(one.pool_after) or 'none'}"
        yield line
        table = Table(style, ("BACKEND", "POOL", "WEIGHT", "AFTER"), right=("WEIGHT", "AFTER"), indent=4)
        yield from table.lines(
            [
                (
                    each.backend,
                    each.pool,
                    str(each.effective_before),
                    "as in VPP" if each.keeps else str(each.effective_after),
                )
                for each in one.members
            ]
        )
    if info.frontends_omitted:
        yield f"  ... and {info.frontends_omitted} more frontends"
    if not info.frontends:
        yield "  no weight changes in any frontend"
    if info.HasField("plan"):
        yield "in VPP:"
        yield from plan(style, info.plan)
    else:
        yield f"in VPP: not known: {escape(info.no_plan)}"
    yield "nothing was changed"


def _value(what: str, text: str, now_ns: int) -> str:
    if what != "until":
        return escape(text) or "none"
    if not text:
        return "without end"
    return f"{moment(int(text))} ({duration(max(0, int(text) - now_ns))} left)"


def override_table(style: Style) -> Table:
    """The table of ``show overrides``."""
    return Table(style, ("BACKEND", "OVERRIDE", "WHERE", "BY", "FOR", "LEFT", "REASON"), shorten=("REASON",))


def override_rows(page: Iterable[pb.Override], now_ns: int) -> list[tuple[str, ...]]:
    """Its rows."""
    rows: list[tuple[str, ...]] = []
    for one in page:
        what = word(pb.OverrideKind, one.kind)
        where = ""
        if one.kind == pb.OVERRIDE_KIND_WEIGHT:
            what += f" {one.weight}, file {one.file_weight}"
            where = f"{one.frontend}/{one.pool}"
        rows.append(
            (
                one.backend,
                what,
                where or "-",
                one.by or "-",
                duration(max(0, now_ns - one.since_ns)) if one.since_ns else "-",
                duration(max(0, one.until_ns - now_ns)) if one.until_ns else "-",
                one.reason,
            )
        )
    return rows


# ------------------------------------------------------------------------------------------------- health checks


def flows(style: Style, info: pb.BackendFlows) -> Iterator[str]:
    """``show backends NAME flows``: the sum, and each frontend."""
    name, drained = escape(info.backend), ", drained" if info.drained else ""
    if info.empty:
        words = "no flow left: VPP sends it nothing"
    elif info.flows:
        words = f"{info.flows} flows at most: an ended flow counts until another takes its entry"
    else:
        words = "no flow now, but a weight in VPP: it gets new ones"
    yield f"{moment(info.read_at_ns)} backend {style.paint(name, 'bold')} ({escape(info.address)}{drained}): {words}"
    table = Table(style, ("FRONTEND", "VIP", "WEIGHT", "FLOWS"), right=("WEIGHT", "FLOWS"), indent=2)
    yield from table.lines(
        (one.frontend, one.vip, str(one.vpp_weight), str(one.flows) if one.HasField("flows") else "not in VPP")
        for one in info.frontends
    )
    yield f"  reading this stopped VPP for about {duration(info.stall_ns)}"


def healthcheck_table(style: Style) -> Table:
    """The table of ``show healthchecks``."""
    return Table(
        style,
        ("HEALTHCHECK", "TYPE", "PORT", "INTERVAL", "TIMEOUT", "RISE", "FALL", "BACKENDS"),
        right=("PORT", "RISE", "FALL", "BACKENDS"),
    )


def healthcheck_rows(page: Iterable[pb.HealthCheckInfo]) -> list[tuple[str, ...]]:
    """Its rows."""
    return [
        (
            one.name,
            word(pb.CheckType, one.type),
            str(one.port) if one.port else "-",
            duration(one.interval_ns),
            duration(one.timeout_ns),
            str(one.rise),
            str(one.fall),
            str(one.backends),
        )
        for one in page
    ]


def healthcheck(style: Style, info: pb.HealthCheckInfo) -> Iterator[str]:
    """``show healthchecks NAME``."""
    yield style.paint(f"healthcheck {escape(info.name)}", "bold")
    pairs = [
        ("type", word(pb.CheckType, info.type)),
        ("port", str(info.port) if info.port else ""),
        ("interval", duration(info.interval_ns)),
        ("fast interval", duration(info.fast_interval_ns)),
        ("down interval", duration(info.down_interval_ns)),
        ("timeout", duration(info.timeout_ns)),
        ("rise", str(info.rise)),
        ("fall", str(info.fall)),
        ("ipv4 source", info.probe_ipv4_src),
        ("ipv6 source", info.probe_ipv6_src),
        ("netns", info.netns),
        ("backends", str(info.backends)),
    ]
    yield from fields(style, [*pairs, *_check_params(info)])


def _check_params(info: pb.HealthCheckInfo) -> list[tuple[str, str]]:
    """The parameters of a check in the words of its kind; none where only a newer program knows the kind or a word."""
    # This is the only command that needs the kinds. Importing them takes 25 ms, which every other command would pay.
    from maglev.kinds import wire
    from maglev.kinds.registry import KINDS

    kind = KINDS.get(word(pb.CheckType, info.type))
    if kind is None or info.WhichOneof("params") != kind.message:
        return []
    try:
        params = wire.read(getattr(info, kind.message), kind.params)
    except ValueError:
        return []
    return list(kind.shown(params))


# -------------------------------------------------------------------------------------------------------- events


def _clock(at_ns: int) -> str:
    """The time of day, to the millisecond; who watches knows the day."""
    return moment(at_ns).partition(" ")[2] or "-"


def event(style: Style, told: pb.Event, when: Callable[[int], str] = _clock) -> str:
    """One event as a line: when, what it is about, what became of it, and why."""
    kind = told.WhichOneof("event")
    if kind is None:
        return "an event that this version does not know"
    return f"{when(getattr(told, kind).at_ns)}  {_EVENTS[kind](style, getattr(told, kind))}"


def past_event(style: Style, told: pb.PastEvent) -> str:
    """One line of ``show events``: with the day, as the events may be of several."""
    return event(style, told.event, lambda at_ns: moment(at_ns) or "-")


def cause(style: Style, info: pb.Cause) -> Iterator[str]:
    """A cause of ``show events`` and ``why``: what happened, and below it how far its effects have come."""
    yield f"{moment(info.at_ns) or '-'}  {escape(info.text)}"
    yield from _effects(style, info)


def _effects(style: Style, info: pb.Cause) -> Iterator[str]:
    lasted = info.last_ns - info.at_ns
    parts = [f"within {duration(lasted)}"] if lasted > 0 else []
    if info.frontends:
        parts.append(f"{_counted(info.frontends, 'frontend')} ({_listed(info.frontend_names, info.frontends)})")
    if info.frontends_down:
        parts.append(style.paint(f"{info.frontends_down} without a server", "down"))
    if info.pools_left:
        parts.append(f"{info.pools_left} served by another pool")
    if info.changes:
        words = f"{_counted(info.changes, 'change')} in VPP after {duration(max(info.accepted_ns - info.at_ns, 0))}"
        if info.confirmed_ns >= info.accepted_ns:
            words += f", read back after {duration(max(info.confirmed_ns - info.at_ns, 0))}"
        parts.append(words)
    if parts:
        yield "    " + "; ".join(parts)


def _counted(many: int, what: str) -> str:
    return f"{many} {what}{'s' * (many != 1)}"


def _listed(names: Sequence[str], many: int) -> str:
    return ", ".join(map(escape, names)) + (f" and {many - len(names)} more" if many > len(names) else "")


def explanation(style: Style, info: pb.Explanation) -> Iterator[str]:
    """``why``: sentences, and the causes."""
    yield escape(info.subject)
    yield from (f"  {escape(sentence)}" for sentence in info.sentences)
    for one in info.causes:
        yield ""
        yield from cause(style, one)


MOST_FOLDED = 3
"""Events of one cause that ``show events`` prints below it."""


def past_events(
    style: Style, events: Sequence[pb.PastEvent], causes: Mapping[int, pb.Cause], most: int | None
) -> Iterator[str]:
    """``show events``: the events of one cause below it, oldest first; at most so many causes, the newest ones."""
    groups: dict[int, list[pb.PastEvent]] = {}
    for one in events:
        groups.setdefault(one.cause or -one.id, []).append(one)
    for number in list(groups)[-most if most is not None else 0 :]:
        members, found = groups[number], causes.get(number)
        if len(members) == 1:
            yield past_event(style, members[0])
            yield from () if found is None else _effects(style, found)
            continue
        if found is not None:
            yield from cause(style, found)
        for one in members[:MOST_FOLDED]:
            yield f"    {past_event(style, one)}"
        if len(members) > MOST_FOLDED:
            yield f"    and {_counted(len(members) - MOST_FOLDED, 'more event')}"


def no_events(total: int, forgotten: int) -> str:
    """The line of ``show events`` where it has nothing to show."""
    if not total:
        return "nothing has happened since the start of maglevd"
    older = f", and has forgotten {forgotten} older ones" if forgotten else ""
    return f"no such event: maglevd remembers {total}{older}"


def _backend_event(style: Style, told: pb.BackendEvent) -> str:
    to = word(pb.BackendState, told.to_state)
    line = f"backend {escape(told.name)}  "
    if told.from_state == told.to_state:
        line += f"is {style.paint(to, to)}"
    else:
        line += f"{word(pb.BackendState, told.from_state)} -> {style.paint(to, to)}"
    line += ", " + style.paint("drained", "drained") if told.drained else ""
    return line + _why(told, told.duration_ns)


def _frontend_event(style: Style, told: pb.FrontendEvent) -> str:
    to = word(pb.FrontendState, told.to_state)
    line = f"frontend {escape(told.name)}  "
    if told.from_state == told.to_state:
        return line + f"is {style.paint(to, to)}"
    return line + f"{word(pb.FrontendState, told.from_state)} -> {style.paint(to, to)}" + _cause(told.cause)


def _pool_event(style: Style, told: pb.PoolEvent) -> str:
    pool = f"pool {escape(told.to_pool)}"
    pool = style.paint(f"{pool}, a fallback", "warning") if told.fallback else pool
    return f"frontend {escape(told.frontend)}  is served by {pool}" + _cause(told.cause)


def _weight_event(style: Style, told: pb.WeightEvent) -> str:
    line = f"frontend {escape(told.frontend)}  pool {escape(told.pool)}"
    line += f" backend {escape(told.backend)} weight {told.old_weight} -> {told.new_weight}"
    line += " (the file's)" if told.to_default else ""
    line += ", flushed" if told.flush else ""
    return line + _who(told.by, told.reason, told.duration_ns)


def _drain_event(style: Style, told: pb.DrainEvent) -> str:
    words = style.paint("drained", "drained") if told.drained else "no longer drained"
    return f"backend {escape(told.name)}  {words}" + _who(told.by, told.reason, told.duration_ns)


def _config_event(style: Style, told: pb.ConfigEvent) -> str:
    return "a configuration took effect" + _who(told.by, "")


def _log_event(style: Style, told: pb.LogEvent) -> str:
    level = word(pb.LogLevel, told.level)
    return f"{style.paint(level, level)}  {escape(told.message)}"


_EVENTS: Mapping[str, Callable[[Style, Any], str]] = {
    "backend": _backend_event,
    "frontend": _frontend_event,
    "pool": _pool_event,
    "weight": _weight_event,
    "drain": _drain_event,
    "config": _config_event,
    "log": _log_event,
}


class Told:
    """Events for a terminal. Of the present state, which comes first and may be 50,000 backends, only what is not up
    is told one by one; the rest is counted."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._complete = False
        self._backends: Counter[str] = Counter()
        self._frontends: Counter[str] = Counter()

    def event(self, told: pb.Event) -> str:
        """The line of an event; empty where it is only counted."""
        if not self._complete:
            match told.WhichOneof("event"):
                case "backend" if told.backend.from_state == told.backend.to_state:
                    self._backends[word(pb.BackendState, told.backend.to_state)] += 1
                    if told.backend.to_state == pb.BACKEND_STATE_UP and not told.backend.drained:
                        return ""
                case "frontend" if told.frontend.from_state == told.frontend.to_state:
                    self._frontends[word(pb.FrontendState, told.frontend.to_state)] += 1
                    if told.frontend.to_state == pb.FRONTEND_STATE_UP:
                        return ""
        return event(self._style, told)

    def summary(self) -> str:
        """The present state in numbers: ``backends 3 up, 1 down; frontends 2 up; ``. Now comes news."""
        self._complete = True
        return "".join(
            f"{what} {', '.join(f'{many} {state}' for state, many in counts.most_common())}; "
            for what, counts in (("backends", self._backends), ("frontends", self._frontends))
            if counts
        )


# -------------------------------------------------------------------------------------------------------- server


def version(style: Style, client: str, info: pb.ServerInfo, server: str) -> Iterator[str]:
    """``show version``."""
    states = ", ".join(f"{one.backends} {word(pb.BackendState, one.state)}" for one in info.backend_states)
    phase = word(pb.WarmupPhase, info.warmup)
    if info.warmup_remaining_ns:
        phase += f", {duration(info.warmup_remaining_ns)} left"
    yield f"maglevc {escape(client)}"
    yield f"maglevd {escape(info.version)} at {escape(server)}"
    yield from fields(
        style,
        (
            ("host", f"{info.hostname}, pid {info.pid}"),
            ("uptime", duration(info.uptime_ns)),
            ("configuration", info.config_file),
            (
                "loaded",
                f"{moment(info.config_loaded_at_ns)} by {info.config_loaded_by}" if info.config_loaded_at_ns else "",
            ),
            ("reload refused", info.config_error),
            ("frontends", str(info.frontends)),
            ("backends", f"{info.backends}" + (f" ({states})" if states else "")),
            ("healthchecks", str(info.healthchecks)),
            ("vpp", _connection(info.vpp)),
            ("warm-up", phase if info.vpp.configured else ""),
            *((f"{one.name} down", f"{one.address}: {one.problem}") for one in info.listeners if not one.up),
            ("brake", _brakes(info)),
            ("waiting", _waiting(info.waiting_vips)),
            ("watchers", f"{info.watchers}, {info.events_lost} events lost"),
            ("you are", f"{info.caller}, {word(pb.Role, info.role)}"),
        ),
    )


def _brakes(info: pb.ServerInfo) -> str:
    """The backends that brakes hold; empty while no brake is active."""
    if not info.brakes:
        return ""
    backends = "1 backend" if info.held_backends == 1 else f"{info.held_backends} backends"
    left = max(brake.remaining_ns for brake in info.brakes)
    return f"{backends} held up though silent, {duration(left)} left (brake release ends that)"


def _waiting(vips: int) -> str:
    if not vips:
        return ""
    many = "1 VIP waits" if vips == 1 else f"{vips} VIPs wait"
    return f"{many} for an operator before deletion (show vpp lb state, sync vpp lb state prune)"


def _connection(info: pb.VPPConnection) -> str:
    if not info.configured:
        return "none"
    words = f"{'connected' if info.connected else 'away'}, {info.socket}"
    words += f", since {moment(info.since_ns)}" if info.since_ns else ""
    return words + (f": {info.problem}" if info.problem else "")


# ----------------------------------------------------------------------------------------------------------- VPP


def vpp_info(style: Style, info: pb.VPPInfo, now_ns: int) -> Iterator[str]:
    """``show vpp info``."""
    synced = "not yet"
    if info.last_full_sync_at_ns:
        synced = f"{_ago(now_ns, info.last_full_sync_at_ns)}, {info.last_full_sync_changes} changes"
    yield style.paint(f"VPP {escape(info.version)}", "bold")
    yield from fields(
        style,
        (
            ("built", info.build_date),
            ("in", info.build_directory),
            ("pid", str(info.pid)),
            ("workers", str(info.workers)),
            ("uptime", duration(info.uptime_ns)),
            ("connected", duration(info.connected_ns)),
            ("socket", info.socket),
            ("weights", "supported" if info.lb_supported else "not supported: VPP is left alone"),
            ("problem", info.problem),
            ("last full sync", synced),
            ("calls refused", str(info.calls_failed)),
            (
                "estimated cost",
                f"{info.cost_ns_per_bucket:.1f} ns a bucket, {info.cost_ns_per_weight:.1f} ns a weight",
            ),
        ),
    )


def lb_conf(style: Style, conf: pb.VPPLBConf) -> Iterator[str]:
    """The global configuration, beside the wanted where that differs."""
    yield style.paint("global", "bold")
    yield from fields(
        style,
        (
            ("ipv4 source", _beside(conf.ipv4_src_address, conf.wanted_ipv4_src_address)),
            ("ipv6 source", _beside(conf.ipv6_src_address, conf.wanted_ipv6_src_address)),
            (
                "sticky buckets",
                _beside(
                    str(conf.sticky_buckets_per_core),
                    str(conf.wanted_sticky_buckets_per_core) if conf.wanted_sticky_buckets_per_core else "",
                ),
            ),
            (
                "flow timeout",
                _beside(
                    duration(conf.flow_timeout_ns),
                    duration(conf.wanted_flow_timeout_ns) if conf.wanted_flow_timeout_ns else "",
                ),
            ),
        ),
    )


def _beside(found: str, wanted: str) -> str:
    return f"{found or 'none'} (wanted: {wanted})" if wanted and wanted != found else found


def vip(style: Style, info: pb.VPPVip) -> Iterator[str]:
    """One VIP of ``show vpp lb state`` with its application servers."""
    name = escape(endpoint(info.prefix, info.protocol, info.port))
    owner = f"frontend {escape(info.frontend)}" if info.frontend else "not configured"
    yield style.paint(f"vip {name}", "bold") + f" ({owner})"
    if not info.present:
        state = "missing"
    elif info.in_sync:
        state = "in sync"
    elif info.waiting:
        state = "waits for an operator"
    else:
        state = "to be synced" if info.wanted else "left alone"
    facts = [
        state,
        word(pb.Encap, info.encap),
        f"table {info.new_flows_table_length}",
        f"unit {info.unit}" if info.wanted else "",
        "source sticky" if info.src_ip_sticky else "",
        "held by the warm-up" if info.held else "",
        f"{info.lingering} lingering" if info.lingering else "",
    ]
    yield "  " + ", ".join(fact for fact in facts if fact)
    for note in info.notes:
        yield f"  note: {escape(note)}"
    if info.ases:
        table = Table(
            style,
            ("BACKEND", "ADDRESS", "STATE", "CFG", "EFF", "PROG", "VPP", "BUCKETS"),
            paint=("STATE",),
            right=("CFG", "EFF", "PROG", "VPP"),
            indent=2,
        )
        yield from table.lines(_as_row(one) for one in info.ases)


def _as_row(info: pb.VPPAs) -> tuple[str, ...]:
    state = word(pb.BackendState, info.state)
    # Of a configured backend, not live means that VPP has no AS yet: a missing VIP, or one that the warm-up holds.
    buckets = str(info.buckets) if info.live or not info.backend else "-"
    if info.buckets != info.predicted_buckets:
        buckets += f" (wanted: {info.predicted_buckets})"
    return (
        info.backend or "-",
        info.address,
        (state or "-") + (" drained" if info.drained else ""),
        str(info.configured_weight) if info.backend else "-",
        str(info.effective_weight) if info.backend else "-",
        str(info.programmed_weight) if info.backend else "-",
        str(info.vpp_weight) if info.HasField("vpp_weight") else "-",
        buckets + ("" if info.live or info.backend else " deleted") + (" flush owed" if info.flush_owed else ""),
    )


def counter_table(style: Style) -> Table:
    """The table of ``show vpp lb counters``."""
    counts = ("EXISTING", "FIRST", "UNTRACKED", "NO-SERVER", "PACKETS", "BYTES")
    return Table(style, ("VIP", *counts), right=counts)


def counter_rows(page: Iterable[pb.VPPVipCounters]) -> list[tuple[str, ...]]:
    """Its rows."""
    return [
        (
            one.frontend or endpoint(one.prefix, one.protocol, one.port),
            *(
                str(count)
                for count in (
                    one.existing_session,
                    one.first_session,
                    one.untracked,
                    one.no_server,
                    one.route_packets,
                    one.route_bytes,
                )
            ),
        )
        for one in page
    ]


def plan(style: Style, info: pb.Plan) -> Iterator[str]:
    """A plan: its calls, their effects on each VIP, and their cost."""
    for step in info.steps:
        cost = f"  ({duration(step.stall_ns)})" if step.stall_ns else ""
        yield f"  {escape(step.text)}{cost}"
    if info.steps_omitted:
        yield f"  ... and {info.steps_omitted} more"
    for one in info.vips:
        yield style.paint(f"  vip {escape(one.vip)}", "bold") + (
            f" (frontend {escape(one.frontend)})" if one.frontend else ""
        )
        # A VIP that comes or goes has no other flows.
        lasts = any(each.buckets_before for each in one.ases) and any(each.buckets_after for each in one.ases)
        if lasts or one.moved_share:
            yield f"    {one.moved_share * 100:.1f} % of the other flows' buckets move"
        table = Table(style, ("BACKEND", "ADDRESS", "BUCKETS", "AFTER"), right=("BUCKETS", "AFTER"), indent=4)
        rows = [
            (each.backend or "-", each.address, str(each.buckets_before), str(each.buckets_after)) for each in one.ases
        ]
        yield from table.lines(rows)
    for note in info.notes:
        yield f"  note: {escape(note)}"
    many = len(info.steps) + info.steps_omitted
    if not many:
        yield "no calls: there is nothing to do now"
        return
    yield f"{many} {'call' if many == 1 else 'calls'}, workers stalled for {duration(info.stall_ns)} in all"


# ------------------------------------------------------------------------------------------------- configuration


def problems(style: Style, check: Any) -> Iterator[str]:
    """Errors and warnings as ``file:line:col: path: message [class]``; of ``CheckConfig`` or ``ReloadConfig``."""
    for kind, colour, found in (
        ("parse error", "error", check.parse_errors),
        ("semantic error", "error", check.semantic_errors),
        ("warning", "warning", check.warnings),
    ):
        for one in found:
            place = escape(check.file)
            if one.line:
                place += f":{one.line}" + (f":{one.column}" if one.column else "")
            path = f"{escape(one.path)}: " if one.path else ""
            yield f"{place}: {path}{escape(one.message)} [{style.paint(kind, colour)}]"


def changes(style: Style, diff: pb.DiffConfigResponse) -> Iterator[str]:
    """The changes that a reload would make."""
    for one in diff.changes:
        path = escape(one.path)
        match one.kind:
            case pb.CHANGE_KIND_ADDED:
                yield f"+ {path}" + (f": {escape(one.new)}" if one.new else "")
            case pb.CHANGE_KIND_REMOVED:
                yield f"- {path}" + (f": {escape(one.old)}" if one.old else "")
            case _:
                yield f"~ {path}: {escape(one.old)} -> {escape(one.new)}"
    if diff.changes_omitted:
        yield f"... and {diff.changes_omitted} more"
    if not diff.changes:
        yield "nothing changes"
    if diff.needs_force:
        yield style.paint("this reload deletes most VIPs and needs force", "warning")
