"""The weight rule: active pool, effective weight, units, frontend state, over C arrays.

``maglev.judgement.weights`` is the face that the rest of the program imports. Weights are plain integers 0..100; an
effective weight is divided by a *unit* before VPP gets it. Nothing here knows VPP, time or sockets.
"""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memset

from maglev.base.states import FrontendState, State

# Numbers of maglev.base.states.State; checked against it below, so that the two cannot drift apart.
cdef enum:
    UNKNOWN = 0
    UP = 1
    DOWN = 2
    PAUSED = 3
    DISABLED = 4
    REMOVED = 5

# Numbers of maglev.base.states.FrontendState.
cdef enum:
    FRONTEND_UNKNOWN = 0
    FRONTEND_UP = 1
    FRONTEND_DOWN = 2
    FRONTEND_PANIC = 3

# The action of a frontend in panic; the words are those of maglev.config.model.PanicAction.
cdef enum:
    PANIC_ALL = 0
    PANIC_KEEP = 1
    PANIC_DRAIN = 2

cdef dict PANIC_ACTIONS = {"all": PANIC_ALL, "keep": PANIC_KEEP, "drain": PANIC_DRAIN}

cdef enum:
    PARTS = 100_000  # a share is an integer of so many parts: 50 % is 50,000

# Members without a verdict, in presumed_weights.
cdef enum:
    AWAITED = 1
    NOT_AWAITED = 2

cdef enum:
    NO_POOL = -1
    WEIGHT_MAX = 100  # the highest weight an operator can write; VPP itself would take a whole byte
    AUTO_UNIT = 10    # the largest unit that `auto` chooses: ten steps between nothing and everything

cdef tuple STATES = tuple(State)
cdef tuple FRONTEND_STATES = tuple(FrontendState)

if [int(state) for state in State] != [UNKNOWN, UP, DOWN, PAUSED, DISABLED, REMOVED]:
    raise ImportError("ext/weights.pyx and maglev.base.states.State disagree about the numbers of the states")
if [int(state) for state in FrontendState] != [
    FRONTEND_UNKNOWN, FRONTEND_UP, FRONTEND_DOWN, FRONTEND_PANIC
]:
    raise ImportError("ext/weights.pyx and maglev.base.states.FrontendState disagree about the numbers of the states")


cdef struct Member:
    int32_t backend    # index into the table's backends
    int32_t pool       # index of the pool within its frontend; members of one pool are neighbours
    uint8_t configured  # weight in the file
    uint8_t weight     # weight in force: the operator's run-time weight, else `configured`
    uint8_t state      # State of the backend
    uint8_t drained
    uint8_t effective  # what the rule makes of it
    uint8_t programmed  # `effective` in units: what VPP gets
    uint8_t keep       # VPP's present weight stays
    uint8_t presumed   # without a verdict, while VPP serves it
    uint8_t share      # the part of its weight that it has while it starts slowly, in percent; 0: all of it


cdef struct Pool:
    int min_up          # a number of members, or percent of `base`
    int resume_up
    uint8_t min_percent
    uint8_t resume_percent
    uint8_t waits       # resume-after is set: `held` says when its time is over
    # Counted by `count_pools`:
    int up              # eligible members
    int base            # members with a weight that no operator took out, and that have a verdict
    int open            # members without a verdict that could become eligible
    int presumed        # of these, members that VPP serves
    int64_t healthy     # weight of the members that are up, or have no verdict
    int64_t whole       # weight of the members that no operator took out


cdef struct Rule:
    # The configuration of one frontend, and its memory.
    int unit
    bint keep_on_all_down
    Pool* pools         # NULL where one eligible member makes any pool usable, and no panic is configured
    int pool_count
    int held            # the pool that served last, where that matters; else NO_POOL
    int64_t below       # the share of healthy weight, in PARTS, below which the frontend is in panic; 0: never
    int panic_action
    bint panicking      # it is in panic until further notice


cdef struct Outcome:
    int active_pool
    int state          # FrontendState
    bint usable
    bint undecided     # not usable, but a member without a verdict could make it so


cdef inline int clamp(long weight) noexcept nogil:
    if weight < 0:
        return 0
    return WEIGHT_MAX if weight > WEIGHT_MAX else <int> weight


cdef inline bint eligible(int state, bint drained, int weight) noexcept nogil:
    # Whether a backend could take new flows if its pool were the active one.
    return state == UP and not drained and weight > 0


cdef inline int table_of_truth(int state, bint drained, bint in_active_pool, int weight) noexcept nogil:
    # The truth table itself; its text is the docstring of effective_weight().
    return weight if in_active_pool and eligible(state, drained, weight) else 0


cdef inline bint flushes(int to_state, bint flush_on_down) noexcept nogil:
    # The last column of the truth table.
    if to_state == DOWN:
        return flush_on_down
    return to_state == DISABLED or to_state == REMOVED


cdef inline bint keeps(int state, bint drained, int weight) noexcept nogil:
    # on-all-down: keep is about health. Members that an operator took out (disabled, drained, weight 0) still go to 0.
    return weight > 0 and not drained and state != DISABLED and state != REMOVED


cdef inline int in_units(int effective, int unit) noexcept nogil:
    # To the nearest multiple, halves upwards; never 0 for a weight above 0, which would take the backend out.
    cdef int programmed
    if effective <= 0:
        return 0
    programmed = (2 * effective + unit) // (2 * unit)
    return programmed if programmed > 0 else 1


cdef inline int ramped(int weight, int share, int unit) noexcept nogil:
    # A part of a weight, upwards to a whole unit; never more than the weight.
    cdef int part
    if share == 0 or share >= 100:
        return weight
    part = (weight * share + 99) // 100
    part = (part + unit - 1) // unit * unit
    return part if part < weight else weight


cdef inline int gcd(int a, int b) noexcept nogil:
    cdef int rest
    while b:
        rest = a % b
        a = b
        b = rest
    return a


cdef inline int needed(int value, bint percent, int base) noexcept nogil:
    # A threshold as a number of members, upwards; never 0, since a pool without a member up serves no flow.
    cdef int number = (value * base + 99) // 100 if percent else value
    return number if number > 0 else 1


cdef inline int to_serve(const Pool* pool, bint serves) noexcept nogil:
    # The members that a pool needs to be usable. Of a share, members without a verdict count unless it serves: the
    # first one that is up after a start of the daemon is not all of a pool, and members that a reload adds end no turn.
    return needed(pool.min_up, pool.min_percent, pool.base if serves else pool.base + pool.open)


cdef inline bint reaches_min(const Pool* pool, bint serves) noexcept nogil:
    return pool.up >= to_serve(pool, serves)


cdef inline int to_resume(const Pool* pool) noexcept nogil:
    # The members that a pool that does not serve needs to take over again.
    return max(to_serve(pool, False), needed(pool.resume_up, pool.resume_percent, pool.base + pool.open))


cdef inline bint reaches_resume(const Pool* pool) noexcept nogil:
    return pool.up >= to_resume(pool)


cdef void count_pools(const Member* members, Py_ssize_t count, Pool* pools, int pool_count) noexcept nogil:
    cdef Py_ssize_t i
    cdef Pool* pool
    for i in range(pool_count):
        pools[i].up = pools[i].base = pools[i].open = pools[i].presumed = 0
        pools[i].healthy = pools[i].whole = 0
    for i in range(count):
        if members[i].drained or members[i].weight == 0:
            continue
        pool = &pools[members[i].pool]
        if members[i].state == UP:
            pool.up += 1
            pool.base += 1
            pool.healthy += members[i].weight
        elif members[i].state == DOWN:
            pool.base += 1
        elif members[i].state == UNKNOWN:
            pool.open += 1
            pool.presumed += members[i].presumed
            pool.healthy += members[i].weight
        else:
            continue  # An operator took it out.
        pool.whole += members[i].weight


cdef int choose_pool(const Pool* pools, int pool_count, int held) noexcept nogil:
    # The rule of the active pool (maglev.judgement.pools has it in words); -1 where no pool has an eligible member.
    cdef int pool
    cdef bint goes_on = 0 <= held < pool_count and reaches_min(&pools[held], True)
    for pool in range(pool_count):
        if not reaches_min(&pools[pool], held < 0 or pool == held):
            continue
        if goes_on and pool < held and (pools[pool].waits or not reaches_resume(&pools[pool])):
            continue
        return pool
    for pool in range(pool_count):
        if pools[pool].up:
            return pool
    return -1


cdef inline bint too_few(const Pool* pool, int64_t below) noexcept nogil:
    # A pool without a member that counts is neither: no member is missing, and it cannot help either.
    return pool.healthy * PARTS < below * pool.whole


cdef bint panics(const Rule* rule, int pool) noexcept nogil:
    # The condition of panic (maglev.judgement.panic has it in words) for the pool that serves.
    cdef int later
    if rule.below == 0 or not too_few(&rule.pools[pool], rule.below):
        return False
    for later in range(pool + 1, rule.pool_count):
        if rule.pools[later].whole and not too_few(&rule.pools[later], rule.below):
            return False
    return True


cdef bint may_panic(const Rule* rule, const Member* members, const uint8_t* without, Py_ssize_t count) noexcept nogil:
    # Whether there could be a reason for panic if all members whose verdict is awaited turned out to be down. Any pool
    # may serve then, so the last one decides: it can help all others, and none can help it. Members without a verdict
    # that is awaited are healthy, as ever.
    cdef int pool
    cdef Py_ssize_t i
    cdef int64_t proven = 0
    if rule.below == 0 or rule.panic_action == PANIC_DRAIN:
        return False
    for pool in range(rule.pool_count - 1, -1, -1):
        if rule.pools[pool].whole:
            break
    else:
        return False
    for i in range(count):
        if members[i].pool == pool and (
            eligible(members[i].state, members[i].drained, members[i].weight) or without[i] == NOT_AWAITED
        ):
            proven += members[i].weight
    return proven * PARTS < rule.below * rule.pools[pool].whole


cdef inline int panic_pool(const Rule* rule, int chosen) noexcept nogil:
    # The pool that panic is about: the one that serves, else the first that has members at all.
    cdef int pool
    if chosen >= 0:
        return chosen
    for pool in range(rule.pool_count):
        if rule.pools[pool].whole:
            return pool
    return 0


cdef void in_panic(Member* member, int action, bint in_active_pool) noexcept nogil:
    # Weights of panic, on top of the truth table. Nothing here is for members that an operator took out.
    if member.drained or member.weight == 0 or member.effective:
        return
    if action == PANIC_ALL:
        if member.state == DOWN and in_active_pool:
            member.effective = member.weight
    elif action == PANIC_KEEP and (member.state == DOWN or member.state == UP or member.state == UNKNOWN):
        member.keep = True


cdef bint choose(const Member* members, Py_ssize_t count, const Rule* rule, Outcome* outcome) noexcept nogil:
    # The pool that serves, by the counts of the pools; returns whether the frontend is in panic.
    cdef bint panic = False
    cdef int chosen
    count_pools(members, count, rule.pools, rule.pool_count)
    chosen = choose_pool(rule.pools, rule.pool_count, rule.held)
    if rule.below:
        outcome.active_pool = panic_pool(rule, chosen)
        panic = rule.pools[outcome.active_pool].whole > 0 and (
            rule.panicking or panics(rule, outcome.active_pool)
        )
    if chosen >= 0:
        outcome.active_pool = chosen
        outcome.usable = True
    elif not panic:
        outcome.active_pool = 0
    return panic


cdef Outcome evaluate(Member* members, Py_ssize_t count, const Rule* rule) noexcept nogil:
    # One frontend. Reads pool, weight, state, drained and share of each member; writes effective, programmed and keep.
    cdef Outcome outcome
    cdef Py_ssize_t i
    cdef bint panic = False
    cdef bint kept = False
    cdef bint all_unknown = count > 0
    outcome.active_pool = 0
    outcome.usable = False
    outcome.undecided = False
    if rule.pools != NULL:
        panic = choose(members, count, rule, &outcome)
    for i in range(count):
        # Members are in the order of their pools, so the first eligible one is in the active pool.
        if rule.pools == NULL and not outcome.usable and (
            eligible(members[i].state, members[i].drained, members[i].weight)
        ):
            outcome.active_pool = members[i].pool
            outcome.usable = True
        if members[i].state != UNKNOWN:
            all_unknown = False
        elif not members[i].drained and members[i].weight > 0:
            outcome.undecided = True
    for i in range(count):
        members[i].effective = table_of_truth(
            members[i].state, members[i].drained, members[i].pool == outcome.active_pool, members[i].weight
        )
        members[i].keep = False
        if panic:
            in_panic(&members[i], rule.panic_action, members[i].pool == outcome.active_pool)
            kept = kept or members[i].keep
            outcome.usable = outcome.usable or members[i].effective > 0
        else:
            members[i].effective = ramped(members[i].effective, members[i].share, rule.unit)
        members[i].programmed = in_units(members[i].effective, rule.unit)
    if rule.keep_on_all_down and not outcome.usable and not kept:
        for i in range(count):
            members[i].keep = keeps(members[i].state, members[i].drained, members[i].weight)
    if panic and (outcome.usable or kept):
        outcome.state = FRONTEND_PANIC
        outcome.undecided = False
    elif outcome.usable:
        outcome.state = FRONTEND_UP
        outcome.undecided = False
    elif all_unknown:
        outcome.state = FRONTEND_UNKNOWN
    else:
        outcome.state = FRONTEND_DOWN
    return outcome


def effective_weight(int state, bint drained, bint in_active_pool, long weight):
    """The effective weight of a backend in a pool of a frontend: the one place of the weight rule.

    ====================  =====================  ================  ============================
    state                 in the active pool     in another pool   flush owed by the transition
    ====================  =====================  ================  ============================
    up                    weight, within 0..100  0 (standby)       no
    up, drained           0                      0                 never
    unknown               0                      0                 never
    down                  0                      0                 if ``flush-on-down``
    paused                0                      0                 never
    disabled              0 (the AS stays)       0                 always
    removed               AS deleted             AS deleted        always
    ====================  =====================  ================  ============================

    The active pool is the first usable one, by default the first with a backend that is up, not drained, and has a
    weight above 0; pool 0 when there is none. ``maglev.judgement.pools`` has the rule of ``min-up`` and ``resume-up``.
    In panic, which is off by default, members that are down can have weights too: ``maglev.judgement.panic``.
    ``weight`` is the configured weight, or the operator's run-time weight where there is one.
    The last column is ``flush_owed``. That a removed backend's AS is deleted, where others stay at 0, is the
    caller's part: its weight is 0 too.
    """
    return table_of_truth(state, drained, in_active_pool, clamp(weight))


def flush_owed(int to_state, *, bint flush_on_down):
    """Whether a transition to ``to_state`` owes a flush: the last column of the table of ``effective_weight``.

    A flush is owed by the transition, whatever the weight was before: a backend that failover has drained already
    may still hold flows.
    """
    return flushes(to_state, flush_on_down)


def ramped_weight(long weight, long share, long unit):
    """The part of a weight that a backend has while it starts slowly: ``share`` percent, upwards to a whole unit.

    Raises ValueError for a unit outside 1..100.
    """
    if unit < 1 or unit > WEIGHT_MAX:
        raise ValueError(f"a weight unit is 1 to {WEIGHT_MAX}, not {unit}")
    return ramped(clamp(weight), <int> min(max(share, 0), 100), <int> unit)


def programmed_weight(long effective, long unit):
    """``effective`` in units: the nearest number of units, halves upwards, at least 1 for a weight above 0.

    Raises ValueError for a unit outside 1..100.
    """
    if unit < 1 or unit > WEIGHT_MAX:
        raise ValueError(f"a weight unit is 1 to {WEIGHT_MAX}, not {unit}")
    return in_units(clamp(effective), <int> unit)


cdef int unit_of(object frontend) except -1:
    cdef object wanted = frontend.weight_unit
    cdef int unit = AUTO_UNIT
    if wanted is not None:
        unit = wanted
        if unit < 1 or unit > WEIGHT_MAX:
            raise ValueError(f"a weight unit is 1 to {WEIGHT_MAX}, not {unit}")
        return unit
    for pool in frontend.pools:
        for member in pool.members:
            unit = gcd(unit, clamp(member.weight))
    return unit


cdef bint read_pools(tuple configured, Pool* pools) except -1:
    # The thresholds of a frontend's pools; returns whether any pool needs to be counted.
    cdef bint counted = False
    cdef Py_ssize_t i = 0
    for pool in configured:
        least, again = pool.min_up, pool.resume_up
        pools[i].min_up = least.value
        pools[i].min_percent = least.percent
        pools[i].resume_up = again.value
        pools[i].resume_percent = again.percent
        pools[i].waits = pool.resume_after > 0
        if pools[i].waits or pools[i].min_up != 1 or pools[i].min_percent or pools[i].resume_up != 1 or (
            pools[i].resume_percent
        ):
            counted = True
        i += 1
    return counted


cdef int read_rule(object frontend, Rule* rule) except -1:
    # The configuration of a frontend, without its pools and without any memory.
    rule.unit = unit_of(frontend)
    rule.keep_on_all_down = is_keep(frontend)
    rule.pools = NULL
    rule.pool_count = <int> len(frontend.pools)
    rule.held = NO_POOL
    rule.below = rule.panic_action = rule.panicking = 0
    if frontend.panic is not None:
        rule.below = round(frontend.panic.below * PARTS)
        rule.panic_action = PANIC_ACTIONS[frontend.panic.action.value]
    return 0


cdef class FrontendRule:
    # The rule of one frontend, with its pools, for as long as a call lasts.
    cdef Rule rule
    cdef Pool* pools

    def __cinit__(self, object frontend, bint counted=False):
        self.pools = <Pool*> PyMem_Calloc(len(frontend.pools) or 1, sizeof(Pool))
        if self.pools == NULL:
            raise MemoryError
        read_rule(frontend, &self.rule)
        if read_pools(frontend.pools, self.pools) or self.rule.below or counted:
            self.rule.pools = self.pools

    def __dealloc__(self):
        PyMem_Free(self.pools)

    cdef int remember(self, object memory) except -1:
        if self.rule.pools != NULL:
            self.rule.held = memory.pool
            self.rule.panicking = memory.panic
        return 0


def weight_unit(frontend):
    """The weight unit of a frontend: what its ``weight-unit`` says.

    ``auto`` (None) is the greatest common divisor of the file's non-zero weights and 10. It depends on the file
    alone, never on health or run-time weights: a unit that followed those would move other backends' flows.
    """
    return unit_of(frontend)


@cython.final
@cython.freelist(256)
cdef class MemberWeight:
    """The weights of one member of a pool. Immutable; compares and hashes by value.

    ``configured`` is the file's weight, ``weight`` the one in force (the operator's run-time weight, else the
    file's), ``effective`` what the rule makes of it (0..100), ``programmed`` the same in units. ``keep``: the weight
    that VPP has stays (``on-all-down: keep`` and nothing usable, or panic), and ``programmed`` is to be ignored.
    ``share``: the part of the weight, in percent, that the member has while it starts slowly; else 100.
    """

    cdef readonly str pool
    cdef readonly int pool_index
    cdef readonly str backend
    cdef readonly int configured
    cdef readonly int weight
    cdef readonly int effective
    cdef readonly int programmed
    cdef readonly bint keep
    cdef readonly object state
    cdef readonly bint drained
    cdef readonly bint enabled
    cdef readonly int share

    def __init__(
        self, str pool, int pool_index, str backend, int configured, int weight, int effective, int programmed,
        object state, bint drained=False, bint enabled=True, bint keep=False, int share=100,
    ):
        self.pool = pool
        self.pool_index = pool_index
        self.backend = backend
        self.configured = configured
        self.weight = weight
        self.effective = effective
        self.programmed = programmed
        self.keep = keep
        self.state = STATES[state]
        self.drained = drained
        self.enabled = enabled
        self.share = share

    cdef tuple key(self):
        return (
            self.pool, self.pool_index, self.backend, self.configured, self.weight, self.effective, self.programmed,
            self.state, self.drained, self.enabled, self.keep, self.share,
        )

    def __eq__(self, other):
        if not isinstance(other, MemberWeight):
            return NotImplemented
        return self.key() == (<MemberWeight> other).key()

    def __hash__(self):
        return hash(self.key())

    def __reduce__(self):
        return MemberWeight, self.key()

    def __repr__(self):
        return (
            f"MemberWeight(pool={self.pool!r}, pool_index={self.pool_index}, backend={self.backend!r}, "
            f"configured={self.configured}, weight={self.weight}, effective={self.effective}, "
            f"programmed={self.programmed}, state={self.state!r}, drained={self.drained}, "
            f"enabled={self.enabled}, keep={self.keep}, share={self.share})"
        )


@cython.final
cdef class FrontendWeights:
    """The weights of a frontend's members, in the order of the file. Immutable; compares and hashes by value.

    ``usable``: some member has an effective weight above 0. ``state`` is up then, or panic.
    """

    cdef readonly int active_pool
    cdef readonly int unit
    cdef readonly object state
    cdef readonly bint usable
    cdef readonly tuple members

    def __init__(self, int active_pool, int unit, object state, bint usable, tuple members):
        self.active_pool = active_pool
        self.unit = unit
        self.state = FRONTEND_STATES[state]
        self.usable = usable
        self.members = members

    cdef tuple key(self):
        return self.active_pool, self.unit, self.state, self.usable, self.members

    def __eq__(self, other):
        if not isinstance(other, FrontendWeights):
            return NotImplemented
        return self.key() == (<FrontendWeights> other).key()

    def __hash__(self):
        return hash(self.key())

    def __reduce__(self):
        return FrontendWeights, self.key()

    def __repr__(self):
        return (
            f"FrontendWeights(active_pool={self.active_pool}, unit={self.unit}, state={self.state!r}, "
            f"usable={self.usable}, members={self.members!r})"
        )


cdef inline FrontendWeights make_frontend(Outcome outcome, int unit, tuple members):
    cdef FrontendWeights result = FrontendWeights.__new__(FrontendWeights)
    result.active_pool = outcome.active_pool
    result.unit = unit
    result.state = FRONTEND_STATES[outcome.state]
    result.usable = outcome.usable
    result.members = members
    return result


cdef inline MemberWeight make_member(const Member* member, str pool, str backend):
    cdef MemberWeight result = MemberWeight.__new__(MemberWeight)
    result.pool = pool
    result.pool_index = member.pool
    result.backend = backend
    result.configured = member.configured
    result.weight = member.weight
    result.effective = member.effective
    result.programmed = member.programmed
    result.keep = member.keep
    result.state = STATES[member.state]
    result.drained = member.drained
    result.enabled = member.state != DISABLED
    result.share = member.share if member.share else 100
    return result


cdef inline int state_number(object state) except -1:
    cdef int number = state
    if number < UNKNOWN or number > REMOVED:
        raise ValueError(f"there is no backend state {number}")
    return number


cdef inline bint is_keep(object frontend):
    # OnAllDown.KEEP; compared by value so that this module need not import the configuration model.
    return frontend.on_all_down.value == "keep"


def frontend_weights(frontend, source):
    """The weights of all members of ``frontend``, from what ``source`` (a ``StateSource``) says of its backends.

    Raises what ``source.target_state`` raises for a name that it does not know.
    """
    cdef Member* members
    cdef Py_ssize_t count = 0
    cdef Py_ssize_t i = 0
    cdef int pool_index = 0
    cdef Outcome outcome
    cdef list result
    cdef FrontendRule known = FrontendRule(frontend)
    cdef object shares = None
    cdef str frontend_name = frontend.name
    cdef object target_state = source.target_state
    cdef object weight_override = source.weight_override
    cdef tuple pools = frontend.pools
    for pool in pools:
        count += len(pool.members)
    if known.rule.pools != NULL or frontend.slow_start:
        memory = source.memory(frontend)
        known.remember(memory)
        shares = memory.shares
    members = <Member*> PyMem_Calloc(count or 1, sizeof(Member))
    if members == NULL:
        raise MemoryError
    try:
        for pool in pools:
            pool_name = pool.name
            for member in <tuple> pool.members:
                name = member.backend
                view = target_state(frontend_name, name)
                override = weight_override(frontend_name, pool_name, name)
                members[i].pool = pool_index
                members[i].configured = clamp(member.weight)
                members[i].weight = members[i].configured if override is None else clamp(override)
                members[i].state = state_number(view.state)
                members[i].drained = view.drained
                if shares:
                    members[i].share = shares.get(name, 0)
                i += 1
            pool_index += 1
        outcome = evaluate(members, count, &known.rule)
        result = []
        i = 0
        for pool in pools:
            pool_name = pool.name
            for member in <tuple> pool.members:
                result.append(make_member(&members[i], pool_name, member.backend))
                i += 1
    finally:
        PyMem_Free(members)
    return make_frontend(outcome, known.rule.unit, tuple(result))


def presumed_weights(frontend, memory, FrontendWeights health, unresolved, serving, awaited):
    """The weights for VPP: those by ``health``, changed by the presumption about backends without a verdict.

    ``maglev.judgement.snapshot`` has the rule in words. Returns ``health`` itself where nothing is presumed.
    """
    cdef Py_ssize_t count = len(health.members)
    cdef Py_ssize_t i
    cdef bint ignorant = False
    cdef bint waits = False
    cdef Outcome outcome
    cdef MemberWeight member
    cdef list result = []
    cdef FrontendRule known = FrontendRule(frontend)
    cdef Member* members = <Member*> PyMem_Calloc(count or 1, sizeof(Member))
    cdef uint8_t* without = <uint8_t*> PyMem_Calloc(count or 1, 1)
    try:
        if members == NULL or without == NULL:
            raise MemoryError
        for i in range(count):
            member = <MemberWeight> health.members[i]
            members[i].pool = member.pool_index
            members[i].configured = member.configured
            members[i].weight = member.weight
            members[i].state = member.state
            members[i].drained = member.drained
            members[i].share = 0 if member.share == 100 else member.share
            if (
                members[i].state == UNKNOWN and not member.drained and member.weight > 0
                and member.backend in unresolved
            ):
                without[i] = AWAITED if member.backend in awaited else NOT_AWAITED
                waits = waits or without[i] == AWAITED
                ignorant = True
                if member.backend in serving and (health.usable or not known.rule.keep_on_all_down):
                    members[i].state = UP
        if not ignorant:
            return health
        known.remember(memory)
        outcome = evaluate(members, count, &known.rule)
        for i in range(count):
            if without[i]:
                members[i].state = UNKNOWN
                members[i].keep = True
            elif (<MemberWeight> health.members[i]).effective and not members[i].effective:
                members[i].keep = True
        if waits and may_panic(&known.rule, members, without, count):
            for i in range(count):
                in_panic(&members[i], PANIC_KEEP, False)
        for i in range(count):
            member = <MemberWeight> health.members[i]
            result.append(make_member(&members[i], member.pool, member.backend))
    finally:
        PyMem_Free(members)
        PyMem_Free(without)
    return make_frontend(outcome, health.unit, tuple(result))


def pool_counts(frontend, FrontendWeights weights):
    """For each pool: members up, how many ``min-up`` and ``resume-up`` take, its healthy and its whole weight."""
    cdef FrontendRule known = FrontendRule(frontend, True)
    cdef Member* members = <Member*> PyMem_Calloc(len(weights.members) or 1, sizeof(Member))
    cdef MemberWeight member
    cdef Pool* pool
    cdef Py_ssize_t i
    cdef list result = []
    if members == NULL:
        raise MemoryError
    for i in range(len(weights.members)):
        member = <MemberWeight> weights.members[i]
        members[i].pool = member.pool_index
        members[i].weight = member.weight
        members[i].state = member.state
        members[i].drained = member.drained
    count_pools(members, len(weights.members), known.pools, known.rule.pool_count)
    PyMem_Free(members)
    for i in range(known.rule.pool_count):
        pool = &known.pools[i]
        result.append((
            pool.up,
            to_serve(pool, i == weights.active_pool),
            to_resume(pool),
            pool.healthy,
            pool.whole,
        ))
    return result


cdef struct FrontendRow:
    Py_ssize_t first   # index of its first member
    Py_ssize_t count
    Py_ssize_t first_pool
    bint counted       # its pools have to be counted
    Rule rule          # its `pools` is set where it is used: the array of all pools moves as it grows
    int active_pool
    int state
    bint undecided


cdef struct Backend:
    uint8_t state
    uint8_t drained
    uint8_t presumed   # has had no verdict yet, and VPP serves it


@cython.final
cdef class WeightTable:
    """The states and weights of a whole configuration, in arrays: 20 bytes a member.

    ``add`` takes the frontends one by one, ``add_members`` and ``set_backends`` take members and backends in portions,
    so that a large table can be filled in slices. ``set_backend`` and ``set_weight`` keep it up to date. ``compute``
    works out every frontend in one pass without making a Python object, ``state`` and ``frontend`` a single one. A
    table belongs to one configuration: a reload fills a new one. All backends start as unknown. Only the event loop's
    thread may use it.
    """

    cdef Member* members
    cdef FrontendRow* rows
    cdef Backend* backends
    cdef Pool* pools
    cdef Py_ssize_t pool_count
    cdef Py_ssize_t pool_space
    cdef Py_ssize_t member_count
    cdef Py_ssize_t member_space
    cdef Py_ssize_t row_space
    cdef Py_ssize_t backend_space
    cdef dict backend_index        # name -> index in `backends`
    cdef list users                # by backend: names of the frontends that use it, a tuple in the order of the file
    cdef dict frontend_index       # name -> index in `rows`
    cdef list frontends            # by row: the frontends as configured
    cdef tuple alone               # the name of the frontend that was added last

    def __cinit__(self):
        self.members = NULL
        self.rows = NULL
        self.backends = NULL
        self.pools = NULL
        self.pool_count = self.pool_space = 0
        self.member_count = self.member_space = self.row_space = self.backend_space = 0
        self.backend_index = {}
        self.users = []
        self.frontend_index = {}
        self.frontends = []

    def __dealloc__(self):
        PyMem_Free(self.members)
        PyMem_Free(self.rows)
        PyMem_Free(self.backends)
        PyMem_Free(self.pools)

    def __len__(self):
        """Number of members over all frontends."""
        return self.member_count

    def __contains__(self, frontend):
        """Whether this very frontend is in the table: one of the same name may be of another configuration."""
        row = self.frontend_index.get(frontend.name)
        return row is not None and self.frontends[row] is frontend

    def add(self, frontend):
        """Add a frontend, so far without members. Raises ValueError for a name that is there already."""
        cdef Py_ssize_t row = len(self.frontends)
        cdef int count
        if frontend.name in self.frontend_index:
            raise ValueError(f"frontend {frontend.name} is in the table already")
        self.rows = <FrontendRow*> grown(self.rows, &self.row_space, row + 1, sizeof(FrontendRow))
        memset(&self.rows[row], 0, sizeof(FrontendRow))
        self.rows[row].first = self.member_count
        read_rule(frontend, &self.rows[row].rule)
        count = self.rows[row].rule.pool_count
        self.rows[row].first_pool = self.pool_count
        self.pools = <Pool*> grown(self.pools, &self.pool_space, self.pool_count + count, sizeof(Pool))
        memset(&self.pools[self.pool_count], 0, count * sizeof(Pool))
        self.rows[row].counted = (
            read_pools(frontend.pools, &self.pools[self.pool_count]) or self.rows[row].rule.below > 0
        )
        self.pool_count += count
        self.frontend_index[frontend.name] = row
        self.frontends.append(frontend)
        # Most backends are used by one frontend: those of this one share a tuple.
        self.alone = (frontend.name,)

    def add_members(self, int pool_index, tuple members):
        """Add members to the frontend that was added last, with the weights of the file.

        ``members`` are the next ones in the order of the file, from the pool with this index: a pool of thousands can
        be added in portions.
        """
        cdef FrontendRow* row
        cdef Py_ssize_t place = self.member_count
        cdef Member* member
        if not self.frontends:
            raise IndexError("no frontend was added yet")
        row = &self.rows[len(self.frontends) - 1]
        self.members = <Member*> grown(self.members, &self.member_space, place + len(members), sizeof(Member))
        for each in members:
            member = &self.members[place]
            memset(member, 0, sizeof(Member))
            member.backend = <int32_t> self.index_of(each.backend, self.alone)
            member.pool = pool_index
            member.configured = member.weight = clamp(each.weight)
            place += 1
        row.count += place - self.member_count
        self.member_count = place

    cdef Py_ssize_t index_of(self, str name, tuple user) except -1:
        # The index of a backend, which gets one at its first use.
        cdef object known = self.backend_index.get(name)
        cdef Py_ssize_t index
        cdef tuple others
        if known is not None:
            index = known
            others = self.users[index]
            if others[len(others) - 1] != user[0]:
                self.users[index] = others + user
            return index
        index = len(self.backend_index)
        self.backends = <Backend*> grown(self.backends, &self.backend_space, index + 1, sizeof(Backend))
        self.backends[index].state = UNKNOWN
        self.backends[index].drained = False
        self.backends[index].presumed = False
        self.backend_index[name] = index
        self.users.append(user)
        return index

    cdef tuple put(self, str name, object state, bint drained):
        cdef object known = self.backend_index.get(name)
        cdef Py_ssize_t index
        if known is None:
            return ()
        index = known
        self.backends[index].state = state_number(state)
        self.backends[index].drained = drained
        if self.backends[index].state != UNKNOWN:
            self.backends[index].presumed = False
        return self.users[index]

    def set_backend(self, str name, state, bint drained=False):
        """Set the state of a backend in every frontend that uses it, and return the names of these frontends.

        A backend that no frontend uses has no place here.
        """
        return self.put(name, state, drained)

    def set_backends(self, backends):
        """Set the states of many backends: objects with ``name``, ``state``, ``drained`` and ``presumed``."""
        for backend in backends:
            self.put(backend.name, backend.state, backend.drained)
            if backend.presumed:
                self.presume(backend.name)

    def presume(self, str name):
        """A backend without a verdict is presumed up by ``look`` until its first verdict: VPP serves it."""
        cdef object known = self.backend_index.get(name)
        if known is not None and self.backends[<Py_ssize_t> known].state == UNKNOWN:
            self.backends[<Py_ssize_t> known].presumed = True

    def presume_only(self, names):
        """The same of these backends, and of no others."""
        cdef Py_ssize_t i
        for i in range(len(self.backend_index)):
            self.backends[i].presumed = False
        for name in names:
            self.presume(name)

    def users_of(self, str backend):
        """Names of the frontends that use a backend, in the order in which they were added."""
        cdef object index = self.backend_index.get(backend)
        return () if index is None else self.users[index]

    def set_weight(self, str frontend, str pool, str backend, weight):
        """Set a member's run-time weight (0..100, clamped); None goes back to the file's. Raises KeyError."""
        cdef FrontendRow* row = &self.rows[<Py_ssize_t> self.frontend_index[frontend]]
        cdef Py_ssize_t index = self.backend_index[backend]
        cdef Py_ssize_t i
        names = [each.name for each in self.frontends[self.frontend_index[frontend]].pools]
        for i in range(row.first, row.first + row.count):
            if self.members[i].backend == index and names[self.members[i].pool] == pool:
                self.members[i].weight = self.members[i].configured if weight is None else clamp(weight)
                return
        raise KeyError(f"{frontend}/{pool}/{backend}")

    def shed(self, int most):
        """Forget up to ``most`` backends, and return whether any are left: to free 50,000 at once takes a millisecond.

        The table cannot be used any more. Its arrays and its frontends go with the object.
        """
        self.users = []
        for _ in range(min(most, len(self.backend_index))):
            self.backend_index.popitem()
        return len(self.backend_index) > 0

    def repeat(self, WeightTable other):
        """Take states, weights and memory of the frontends of this table over from another table that has them too.

        Raises KeyError where it has not: a reload has brought others of the same name.
        """
        cdef FrontendRow* mine
        cdef FrontendRow* its
        cdef Py_ssize_t i
        for name, row in self.frontend_index.items():
            if self.frontends[row] not in other:
                raise KeyError(name)
            mine = &self.rows[<Py_ssize_t> row]
            its = &other.rows[<Py_ssize_t> other.frontend_index[name]]
            mine.rule.held = its.rule.held
            mine.rule.panicking = its.rule.panicking
            for i in range(mine.count):
                self.members[mine.first + i].weight = other.members[its.first + i].weight
                self.members[mine.first + i].share = other.members[its.first + i].share
        for name, index in self.backend_index.items():
            self.backends[<Py_ssize_t> index] = other.backends[<Py_ssize_t> other.backend_index[name]]

    cdef void take_states(self, const FrontendRow* line) noexcept nogil:
        cdef Member* members = &self.members[line.first]
        cdef Py_ssize_t i
        for i in range(line.count):
            members[i].state = self.backends[members[i].backend].state
            members[i].drained = self.backends[members[i].backend].drained
            members[i].presumed = self.backends[members[i].backend].presumed

    cdef Outcome work_out(self, Py_ssize_t row) noexcept nogil:
        cdef FrontendRow* line = &self.rows[row]
        cdef Outcome outcome
        self.take_states(line)
        line.rule.pools = &self.pools[line.first_pool] if line.counted else NULL
        outcome = evaluate(&self.members[line.first], line.count, &line.rule)
        line.active_pool = outcome.active_pool
        line.state = outcome.state
        line.undecided = outcome.undecided
        return outcome

    def hold(self, str name, int pool):
        """The pool of this index served a frontend last; -1: none is known. Raises KeyError."""
        self.rows[<Py_ssize_t> self.frontend_index[name]].rule.held = pool

    def set_shares(self, str name, shares):
        """Set the parts of their weights, in percent, that these backends of a frontend have. 100: all of it.

        Raises KeyError.
        """
        cdef FrontendRow* row = &self.rows[<Py_ssize_t> self.frontend_index[name]]
        cdef Py_ssize_t i
        cdef int part
        cdef dict parts = {self.backend_index[one]: each for one, each in shares.items() if one in self.backend_index}
        for i in range(row.first, row.first + row.count):
            share = parts.get(self.members[i].backend)
            if share is not None:
                part = share
                self.members[i].share = <uint8_t> (0 if part >= 100 else part)

    def serves_without(self, str name, backends):
        """Whether a backend of a frontend other than these has a weight. Raises KeyError."""
        cdef Py_ssize_t row = self.frontend_index[name]
        cdef Py_ssize_t i
        cdef set others = {self.backend_index[one] for one in backends if one in self.backend_index}
        self.work_out(row)
        for i in range(self.rows[row].first, self.rows[row].first + self.rows[row].count):
            if self.members[i].effective and self.members[i].backend not in others:
                return True
        return False

    def panic(self, str name, bint on):
        """A frontend is in panic until further notice, or no longer. Raises KeyError."""
        self.rows[<Py_ssize_t> self.frontend_index[name]].rule.panicking = on

    def panics(self, str name):
        """Whether the present states of a frontend are a reason for panic. Raises KeyError."""
        cdef FrontendRow* line = &self.rows[<Py_ssize_t> self.frontend_index[name]]
        cdef Rule* rule = &line.rule
        cdef int chosen
        if rule.below == 0:
            return False
        self.take_states(line)
        rule.pools = &self.pools[line.first_pool]
        count_pools(&self.members[line.first], line.count, rule.pools, rule.pool_count)
        chosen = choose_pool(rule.pools, rule.pool_count, rule.held)
        return bool(panics(rule, panic_pool(rule, chosen)))

    def look(self, str name):
        """The present state of a frontend, as far as ``maglev.judgement.pools`` needs it. Raises KeyError.

        Returns the pool that should serve now (-1: no server is up), whether a server of an earlier pool has no verdict
        yet, and the pools before the one that served last that have as many up as they need to take over. Servers
        without a verdict that VPP serves count as up: a pool is not left because too little is known.
        """
        cdef FrontendRow* line = &self.rows[<Py_ssize_t> self.frontend_index[name]]
        cdef Pool* pools = &self.pools[line.first_pool]
        cdef int chosen, pool
        cdef bint open_before = False
        cdef list ready = []
        self.take_states(line)
        count_pools(&self.members[line.first], line.count, pools, line.rule.pool_count)
        for pool in range(line.rule.pool_count):
            pools[pool].up += pools[pool].presumed
            pools[pool].base += pools[pool].presumed
            pools[pool].open -= pools[pool].presumed
        chosen = choose_pool(pools, line.rule.pool_count, line.rule.held)
        for pool in range(line.rule.pool_count):
            if pool < chosen and pools[pool].open:
                open_before = True
            if pool < line.rule.held and reaches_resume(&pools[pool]):
                ready.append(pool)
        return chosen, open_before, tuple(ready)

    def compute(self):
        """Work out every frontend. Returns the number of frontends that are up."""
        cdef Py_ssize_t row
        cdef Py_ssize_t count = len(self.frontends)
        cdef Py_ssize_t up = 0
        with nogil:
            for row in range(count):
                up += self.work_out(row).usable
        return up

    def computed_state(self, str name):
        """The state of a frontend as it was last worked out. Raises KeyError."""
        return FRONTEND_STATES[self.rows[<Py_ssize_t> self.frontend_index[name]].state]

    def computed_pool(self, str name):
        """The index of a frontend's active pool as it was last worked out. Raises KeyError."""
        return self.rows[<Py_ssize_t> self.frontend_index[name]].active_pool

    def configured(self, str name):
        """A frontend as it was added. Raises KeyError."""
        return self.frontends[self.frontend_index[name]]

    def outlook(self, names):
        """Work out these frontends; the index of the active pool of each that is usable, -1 for others.

        Raises KeyError.
        """
        cdef list result = []
        cdef Outcome outcome
        for name in names:
            outcome = self.work_out(self.frontend_index[name])
            result.append(outcome.active_pool if outcome.usable else -1)
        return result

    def undecided(self, str name):
        """Whether a frontend is not usable, as it was last worked out, while a member has no verdict that could change
        that: one that is not drained and has a weight. Raises KeyError.
        """
        return bool(self.rows[<Py_ssize_t> self.frontend_index[name]].undecided)

    def state(self, str name):
        """Work out one frontend, and return its state. Raises KeyError."""
        return FRONTEND_STATES[self.work_out(self.frontend_index[name]).state]

    def frontend(self, str name):
        """Work out one frontend, and return its FrontendWeights. Raises KeyError."""
        cdef Py_ssize_t row = self.frontend_index[name]
        cdef Outcome outcome = self.work_out(row)
        cdef Member* member = &self.members[self.rows[row].first]
        cdef list members = []
        for pool in self.frontends[row].pools:
            pool_name = pool.name
            for each in <tuple> pool.members:
                members.append(make_member(member, pool_name, each.backend))
                member += 1
        return make_frontend(outcome, self.rows[row].rule.unit, tuple(members))


cdef void* grown(void* array, Py_ssize_t* space, Py_ssize_t wanted, size_t item) except? NULL:
    # Room for `wanted` items, at least doubled: a table is filled item by item.
    cdef void* larger
    cdef Py_ssize_t count
    if wanted <= space[0]:
        return array
    count = max(wanted, 2 * space[0], 64)
    larger = PyMem_Realloc(array, count * item)
    if larger == NULL:
        raise MemoryError
    space[0] = count
    return larger
