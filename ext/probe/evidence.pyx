# Is a failure the target's, or did the probe never leave this host? Asked on the engine thread, of probes that are
# about to fail: a probe that passes costs nothing here.
#
# A failed probe does not count while one of these holds; the target then keeps its state, and is "not probed: REASON".
#
#   reason      the proof
#   firewall    EPERM at the send; an ICMP error other than "host unreachable" from an address of our own
#   buffer      ENOBUFS or ENOMEM at the send; on IPv4, which does not report it, at a second one
#   route       our own routing refuses, or leads by another interface than when the target passed, and no other target
#               of this namespace, family and source passes meanwhile. As soon as one does, the refusal is a failed
#               probe: where routes to hosts are announced, a dead server is one without a route.
#               The way at the last pass is the one to compare with: passes ask for it, and it is asked by protocol. A
#               probe that leaves by another interface proves no change while the kernel names the same way as before
#   link        the interface that the target's probes left by is down, without carrier or gone; or it was, while the
#               probe was out. For 2.5 s after that, and after the first look at an interface, silence means nothing;
#               for 4 s after a change of carrier, nor does a next hop that does not answer
#   neighbours  no SND stamp, and the next hop has no neighbour entry; or EINVAL with a good route
#   queue       no SND stamp although the next hop answers: a queue of ours dropped the packet, or still holds it
#
# A next hop that does not answer neighbour discovery, with carrier, is a dead host on our link: a failed probe, and so
# is "host unreachable" from our own address, which the kernel sends after three seconds. Both only while other packets
# do leave by that interface: a queue that drops all packets drops ARP requests, too.
#
# Counters of the whole host (full tables, dropped packets) prove nothing of one target: with more servers on a link
# than the table holds they move all the time, and a dead server would stay up for ever.
#
# Without a proof either way a silent target has failed: no netlink, a driver that gives no SND stamps, no CAP_NET_RAW.


# A target has passed. The hot path: two cache lines that are there already, and no system call.
cdef inline void pass_note(State* e, Origin* origin, const Slot* slot, uint32_t index) noexcept nogil:
    cdef Passes* passes = &e.evidence.passes[origin.vantage]
    if passes.slot != index:
        passes.other = passes.slot
        passes.other_at = passes.at
        passes.slot = index
    passes.at = slot.sent


# When the last probe to another target of this vantage was sent that passed; 0: none yet.
cdef inline int64_t other_passed(const State* e, const Origin* origin, uint32_t index) noexcept nogil:
    cdef const Passes* passes = &e.evidence.passes[origin.vantage]
    return passes.at if passes.slot != index else passes.other_at


# Milliseconds that fit into a slot, never 0. They run over after 49 days: only differences mean something.
cdef inline uint32_t stamp_ms(int64_t now) noexcept nogil:
    return <uint32_t>(now // MS) | 1


# May one more target's way be asked for in this tick?
cdef bint may_ask(State* e) noexcept nogil:
    if e.evidence.asked_at != e.clock.tick_start:
        e.evidence.asked_at = e.clock.tick_start
        e.evidence.asks = 0
    return e.evidence.asks < ASKS


# Is an interface of the origin's table up, with carrier? True where that cannot be known. Asked once a tick.
cdef bint interface_up(State* e, Origin* origin, uint8_t place) noexcept nogil:
    cdef Interface* interface
    cdef Link link
    cdef bint gone
    if place == 0 or place > origin.interface_count:
        return True
    interface = &origin.interfaces[place - 1]
    if interface.looked_at == e.clock.tick_start:
        return interface.up
    if not link_ask(origin, interface.number, &link, &gone):
        return True
    if interface.looked_at and (link.up != interface.up or link.carrier_changes != interface.carrier_changes):
        interface.changed_at = e.clock.now
    if interface.first_at == 0:
        interface.first_at = e.clock.now
    interface.up = link.up
    interface.resolves = link.resolves
    interface.carrier_changes = link.carrier_changes
    interface.looked_at = e.clock.tick_start
    return interface.up


# May the neighbours on a link, on either end, still be unresolved? A lost carrier empties the neighbour tables of both
# ends, and packets are lost until both see it again, which takes up to a second. A kernel that asked for its
# neighbour in that time asks again a second later: until then nothing leaves for it. The time before the first look
# is not known.
cdef inline bint link_fresh(const State* e, const Interface* interface) noexcept nogil:
    cdef int64_t since = max(interface.first_at, interface.changed_at)
    return interface.resolves and e.clock.now - since < RESOLICITING * <int64_t>MS


# Note by which interface a target's probes leave, now that one has passed. Where the interface's stamps are not known
# to work, the target's next probe asks for some.
#
# The probe that has passed may have left before the route moved, and its answer come after that. So another interface
# than before is taken over only when the next probe has passed, too: `confirmed`. Until then silence does not count.
cdef void interface_learn(State* e, Origin* origin, uint32_t index, bint confirmed) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef uint8_t place
    cdef Interface* interface
    cdef Way way
    if not may_ask(e):
        return
    e.evidence.asks += 1
    origin.learned_at = e.clock.now
    slot_way(origin, slot, &way)
    if not way.asked or way.error:
        # With an error the route is lost since the probe left: its interface is still the one to compare with.
        if slot.interface == 0:
            slot.interface = INTERFACE_UNKNOWN
        return
    place = interface_place(origin, way.interface)
    if place == 0:
        slot.interface = INTERFACE_UNKNOWN
        return
    if 0 < slot.interface <= origin.interface_count and place != slot.interface:
        origin.moved_at = e.clock.now
        if not confirmed:
            slot.evidence |= EVIDENCE_MOVED
            return
    slot.interface = place
    interface = &origin.interfaces[slot.interface - 1]
    if interface.looked_at == 0:
        interface_up(e, origin, slot.interface)
    if interface.stamps == STAMPS_UNKNOWN and slot.type <= PROBE_SYN and e.clock.now - interface.tried_at > SECOND:
        interface.tried_at = e.clock.now
        slot.evidence |= EVIDENCE_DOUBT


# A stamped probe was answered, so it did leave: without an SND stamp the driver gives none.
cdef void stamps_learn(State* e, Origin* origin, Slot* slot) noexcept nogil:
    if not slot.evidence & EVIDENCE_LEFT:
        departures_read(e, origin, 0 if slot.type == PROBE_ICMP else 1)
    if slot.left_by and slot.evidence & EVIDENCE_QUEUED:
        origin.interfaces[slot.left_by - 1].stamps = STAMPS_WORK if slot.evidence & EVIDENCE_LEFT else STAMPS_MISSING


# A target has passed: what that says of its way.
cdef inline void evidence_passed(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef bint moved = slot.evidence & EVIDENCE_MOVED != 0
    pass_note(e, origin, slot, index)
    slot.refused = 0
    if slot.evidence & EVIDENCE_STAMPED:
        stamps_learn(e, origin, slot)
    slot.evidence = 0
    # The route may have moved since the last look. If it moves unseen and all targets of the vantage die, each of them
    # would stay up. So a few passes ask all the time, and after a move each one does.
    if (
        slot.interface == 0
        or moved
        or e.clock.now - origin.learned_at >= LEARNING
        or origin.moved_at and e.clock.now - origin.moved_at < MOVING * <int64_t>SECOND
        or ((slot.serial + index) & (SAMPLE - 1)) == 0
    ):
        interface_learn(e, origin, index, moved)


# Our own routing refuses a target, or sends its probes another way than when it passed. BLOCK_NONE: a failed probe.
cdef int route_kind(State* e, Origin* origin, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef uint32_t before = slot.refused
    slot.refused = stamp_ms(e.clock.now)
    if not interface_up(e, origin, slot.interface):
        return BLOCK_LINK
    # Another target's probe must have left since the last refusal: a pass from before says nothing of a route that was
    # lost for all of them just now. So the first refusal never counts; the next one follows within 100 ms.
    if before and <int32_t>(stamp_ms(other_passed(e, origin, index)) - before) > 0:
        return BLOCK_NONE
    return BLOCK_ROUTE


# Why the kernel refused to send; BLOCK_NONE: a failed probe. `error` came at once from sendmsg() or connect(), and
# is not what a server or a router answered.
cdef int refusal_kind(State* e, uint32_t index, int error) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef Way way
    if error == EPERM:
        return BLOCK_FIREWALL
    if error in (ENOBUFS, ENOMEM, EAGAIN):
        # IPv6 says so, too, where an interface without carrier drops the packet.
        return BLOCK_BUFFER if interface_up(e, origin, slot.interface) else BLOCK_LINK
    if error not in (ENETUNREACH, EHOSTUNREACH, EHOSTDOWN, ENETDOWN, EACCES, EINVAL):
        return BLOCK_SEND
    slot_way(origin, slot, &way)
    if way.asked and not way.error:
        # It is not the route: or no more. EINVAL is what a full neighbour table says (IPv6; IPv4 before Linux 6.6).
        if error == EINVAL:
            return BLOCK_NEIGHBOURS
        if error == ENETDOWN or not interface_up(e, origin, interface_place(origin, way.interface)):
            return BLOCK_LINK
        return BLOCK_SEND if error == EACCES else BLOCK_ROUTE
    if not way.asked and error in (EACCES, EINVAL):
        return BLOCK_SEND
    return route_kind(e, origin, index)


# The kernel refused to send. True: a failed probe. False: it does not count, and the probe is repeated later. The slot
# has landed before, and has no stream.
cdef bint refusal_stands(State* e, uint32_t index, int error) noexcept nogil:
    cdef int kind
    if not failure_stands(e, index):
        return False
    kind = refusal_kind(e, index, error)
    if kind == BLOCK_NONE:
        return True
    block(e, index, kind, error)
    return False


cdef enum:
    TOO_EARLY = -1                  # too little time has passed for silence to mean anything


# A probe has left by another interface than the one that was the target's route when it passed. Is that a change of our
# routing? Not while the kernel still names that one: rules by port, and several next hops, lead packets of one target
# by several interfaces.
cdef bint route_moved(Origin* origin, const Slot* slot, Way* way) noexcept nogil:
    if not way.asked:
        slot_way(origin, slot, way)
    return not way.asked or way.error or interface_place(origin, way.interface) != slot.interface


# Why a stamped packet got no answer; BLOCK_NONE: a failed probe.
cdef int silence_kind(State* e, Origin* origin, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Way way
    cdef uint8_t place
    cdef bint stamped = slot.evidence & EVIDENCE_STAMPED != 0
    cdef bint left = slot.evidence & EVIDENCE_LEFT != 0
    cdef int hop
    memset(&way, 0, sizeof(way))
    place = slot.left_by
    if not left or place == 0:
        slot_way(origin, slot, &way)
        if way.asked and way.error:
            return route_kind(e, origin, index)
        if way.asked:
            place = interface_place(origin, way.interface)
    if not interface_up(e, origin, place):
        return BLOCK_LINK
    if place and place <= origin.interface_count and origin.interfaces[place - 1].changed_at > slot.sent:
        return BLOCK_LINK
    if (
        place
        and 0 < slot.interface <= origin.interface_count
        and place != slot.interface
        and route_moved(origin, slot, &way)
    ):
        return route_kind(e, origin, index)
    if place and place <= origin.interface_count and link_fresh(e, &origin.interfaces[place - 1]):
        return TOO_EARLY
    if left or not way.asked:
        return BLOCK_NONE
    hop = hop_ask(origin, &way)
    if hop == HOP_SILENT:
        return egress_kind(e, origin, place, slot.sent)
    if hop == HOP_MISSING and not way.local and hop_needed(origin, &way):
        return BLOCK_NEIGHBOURS
    if not stamped or slot.evidence & EVIDENCE_QUEUED and (
        place == 0 or place > origin.interface_count or origin.interfaces[place - 1].stamps != STAMPS_WORK
    ):
        return BLOCK_NONE
    return BLOCK_QUEUE


cdef bint hop_needed(Origin* origin, const Way* way) noexcept nogil:
    cdef Link link
    cdef bint gone
    return link_ask(origin, way.interface, &link, &gone) and link.resolves


# A stamped packet (a raw probe, or the twin of a connection) got no answer in its time. True: a failed probe. False: it
# does not count, and the probe is repeated later. The slot has landed before, and has no stream. Callers ask `may_ask`
# first, and come back in the next tick where it says no.
cdef bint silence_stands(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Origin* origin = e.origins.table[slot.origin]
    cdef int kind
    cdef bint left
    if slot.state == HEALTH_DOWN:
        return True
    departures_read(e, origin, 0 if slot.type == PROBE_ICMP else 1)
    e.evidence.asks += 1
    kind = silence_kind(e, origin, index)
    # One that did not leave is not sent again: towards a dead host on our link it would wait in the send buffer.
    left = slot.evidence & EVIDENCE_LEFT and slot.type <= PROBE_SYN
    if kind == BLOCK_NONE and left and failure_decides(e, index) and dropped_by_driver(e, index):
        kind = BLOCK_BUFFER
    # These stamps are not of the target's next probe.
    slot.evidence = EVIDENCE_DOUBT
    if kind == BLOCK_NONE:
        return True
    if kind == TOO_EARLY:
        repeat(e, index, soon(e))
    else:
        block(e, index, kind, ENOBUFS if kind == BLOCK_BUFFER else 0)
    return False


# Would one more failure change a target's state?
cdef bint failure_decides(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef const Check* check = e.checks[slot.check]
    cdef Health health
    health.state = slot.state
    health.counter = slot.counter
    return health_step(health, check.rise, check.fall, False).state != slot.state


# A raw probe got no answer. One that was not stamped proves nothing: it counts while it changes no state, and is
# repeated with stamps where it would.
cdef bint timeout_stands(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    if slot.evidence & EVIDENCE_STAMPED or slot.state == HEALTH_DOWN:
        return silence_stands(e, index)
    if not failure_decides(e, index):
        return True
    slot.evidence |= EVIDENCE_DOUBT
    repeat(e, index, soon(e))
    return False


# Does the kernel's way to a target lead by another interface than when the target passed? Then a next hop that does not
# answer there says nothing of the target.
cdef inline bint leads_elsewhere(const Origin* origin, const Slot* slot, uint8_t place) noexcept nogil:
    return place and 0 < slot.interface <= origin.interface_count and place != slot.interface


# An ICMP error came back for a probe in flight, from `offender`. BLOCK_NONE: a failed probe.
cdef int error_kind(
    State* e, Origin* origin, const Slot* slot, const uint8_t* offender, const Packet* packet
) noexcept nogil:
    cdef Way way
    cdef uint32_t width = 16 if origin.v6 else 4
    cdef uint8_t place
    if slot.state == HEALTH_DOWN or memcmp(offender, slot.address, width) == 0:
        return BLOCK_NONE
    way_ask(origin, offender, 0, &way)
    if not way.asked or way.error or not way.local:
        return BLOCK_NONE
    if packet.error_type != (1 if origin.v6 else 3) or packet.error_code != (3 if origin.v6 else 1):
        return BLOCK_FIREWALL
    # The next hop gave no sign of life for three seconds. Without carrier that says nothing about it.
    slot_way(origin, slot, &way)
    if not way.asked or way.error:
        return BLOCK_NONE
    place = interface_place(origin, way.interface)
    if not interface_up(e, origin, place):
        return BLOCK_LINK
    if leads_elsewhere(origin, slot, place):
        return route_kind(e, origin, <uint32_t>(slot - e.slots))
    return egress_kind(e, origin, place, slot.sent)
