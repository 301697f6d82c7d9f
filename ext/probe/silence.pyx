# Who is silent, and how many are at once. When many servers stop to answer at the same moment, the fault is more often
# between them and this host than in all of them, and Python may hold their verdicts (maglev.judgement.brake). For that
# the engine keeps, of each target, whether its failed probes since its last pass were all silence, and of each vantage
# (network namespace, family, source address) how many targets are up and how many of those fail by silence at this
# moment: before `fall` is reached, since afterwards it is too late. On the engine thread.
#
# A target counts as up while its state is up, while it is presumed good, while its verdict is held, and for RECENT
# after it went down by silence. Otherwise servers that go down in one tick would be forgotten before Python reads of
# the first.
#
# A probe that passes after one that passed costs one comparison of a byte that shares its cache line with `due`.


# Is this failure silence? Time-outs of every kind are, and errors that routers send for a host that they do not reach.
# "Port unreachable" and "protocol unreachable" come from the host itself, as do a refusal, a reset and a wrong answer.
cdef inline bint is_silence(int code, int kind, uint32_t value) noexcept nogil:
    if code == CODE_L3TOUT or code == CODE_L4TOUT or code == CODE_L6TOUT or code == CODE_L7TOUT:
        return True
    if kind == DETAIL_ICMP4:
        return value != (3 << 8 | 2) and value != (3 << 8 | 3)
    if kind == DETAIL_ICMP6:
        return value != (1 << 8 | 4) and value != (4 << 8 | 1)
    if kind == DETAIL_ERRNO:
        return value == EHOSTUNREACH or value == ENETUNREACH or value == EHOSTDOWN or value == ETIMEDOUT
    return False


# Count a slot as what it is now. Called wherever its state, its run or its being probed has changed.
cdef void tally(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Silence* silence
    cdef uint8_t now = TALLY_NONE
    if slot.flags & SLOT_ACTIVE and not slot.flags & SLOT_PAUSED and (
        slot.run & RUN_HELD
        or slot.state == HEALTH_UP
        or (slot.state == HEALTH_UNKNOWN and slot.counter >= e.checks[slot.check].rise)
        or (
            slot.tally != TALLY_NONE
            and slot.run & RUN_SILENT
            and e.clock.now + e.clock.wall - e.records[index].change_at < RECENT * <int64_t>SECOND
        )
    ):
        now = TALLY_SILENT if slot.run & RUN_SILENT else TALLY_UP
    if now == slot.tally:
        return
    silence = &e.silence[e.origins.table[slot.origin].vantage]
    if slot.tally != TALLY_NONE:
        silence.up -= 1
    if slot.tally == TALLY_SILENT:
        silence.silent -= 1
    if now != TALLY_NONE:
        silence.up += 1
    if now == TALLY_SILENT:
        silence.silent += 1
    slot.tally = now


# Before a slot changes its origin, or is forgotten.
cdef void tally_leave(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef uint8_t flags = slot.flags
    slot.flags &= ~SLOT_ACTIVE
    tally(e, index)
    slot.flags = flags


# A probe of a run has ended, or the first one of a new run. True: an answer has ended a hold, and "down" is reported.
cdef bint run_note(Slot* slot, bint passed, bint silence) noexcept nogil:
    cdef bint held
    if passed:
        slot.run &= RUN_HELD
        slot.failures = 0
        if slot.state == HEALTH_UP:
            slot.run = 0
        return False
    if slot.failures < 255:
        slot.failures += 1
    if not silence:
        held = slot.run & RUN_HELD and slot.state == HEALTH_DOWN
        slot.run = RUN_ANSWERED
        if held:
            slot.reported = HEALTH_UP
        return held
    if not slot.run & RUN_ANSWERED:
        slot.run |= RUN_SILENT
    return False


# Python holds the verdict that the engine has reported: probe at fast-interval, and count failures from here on.
cdef void hold(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    if slot.state != HEALTH_DOWN or slot.flags & SLOT_PAUSED:
        return      # it has passed meanwhile, which is reported
    slot.run |= RUN_HELD
    slot.failures = 0
    tally(e, index)
    if slot.phase == PHASE_IDLE:
        plan_probe(e, index, e.clock.now + draw_below(&e.clock.random, e.checks[slot.check].fast))


# The hold ends. With `fall` failures in a row since it began, "down" is reported once more; otherwise the target is in
# `state` again, the one that it had, and those failures count.
cdef void release(State* e, uint32_t index, int state) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Record* record = &e.records[index]
    cdef const Check* check = e.checks[slot.check]
    if not slot.run & RUN_HELD:
        return
    slot.run &= ~RUN_HELD
    if slot.state == HEALTH_DOWN:
        if slot.failures < check.fall:
            slot.state = <uint8_t>state
            slot.counter = <uint8_t>(health_max(check.rise, check.fall) - slot.failures)
        slot.reported = <uint8_t>state
        record_begin(record)
        record.state = slot.state
        record.counter = slot.counter
        record.change_at = e.clock.now + e.clock.wall
        record_end(record)
        if slot.state == HEALTH_DOWN:
            report(e, index)
    tally(e, index)
