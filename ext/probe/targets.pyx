# Targets, as Python's thread keeps them: what was commanded, whether or not the engine has come to it. A result of an
# older generation than the one here is dropped wherever it is found.

# Everything of a target but its address is what the last command made of it, or the last transition that Python read.
cdef struct Target:
    uint32_t generation
    uint32_t epoch              # counts the adds of this number: whose counts a Record holds
    uint32_t check
    uint32_t origin
    uint32_t next_unused        # of the free list, while not active
    uint8_t state               # HEALTH_*
    uint8_t counter
    bint active
    bint paused
    bint presumed               # unknown, and presumed good
    bint v6
    uint8_t address[16]         # what a certificate should have been for, if its check names nothing


cdef class Native:
    """The engine's memory, and the way in for commands."""
    cdef State* e
    cdef bint stopped

    def __cinit__(self, uint32_t capacity, uint32_t ring, bytes secret):
        cdef Key key
        memcpy(&key, <const char*>secret, sizeof(key))
        self.e = state_new(capacity, ring, &key)
        if self.e is NULL:
            if errno == ENOMEM:
                raise MemoryError
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        # Threads hold a reference to the engine, and the engine to this: here they have ended, or never were.
        if self.e is not NULL:
            state_free(self.e)

    cdef int push(self, const Command* command) except -1:
        if self.stopped:
            raise EngineError("the engine was stopped")
        if command_push(self.e, command) < 0:
            raise EngineError("too many commands wait for the engine")
        return 0


cdef class Targets:
    """All targets by number. Every command that makes older results meaningless raises the target's generation.

    A command is pushed first and noted afterwards: what could not be pushed has changed nothing here.
    """
    cdef Native native
    cdef Checks checks
    cdef Origins origins
    cdef Target* table
    cdef uint32_t top           # one more than the highest number ever used
    cdef uint32_t unused        # free list by Target.next_unused

    def __cinit__(self, Native native, Checks checks, Origins origins):
        self.native = native
        self.checks = checks
        self.origins = origins
        self.unused = NIL
        self.table = <Target*>calloc(native.e.settings.capacity, sizeof(Target))
        if self.table is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.table)

    cdef Target* known(self, object number) except NULL:
        """KeyError: no such target."""
        if not 0 <= number < self.native.e.settings.capacity or not self.table[<uint32_t>number].active:
            raise KeyError(number)
        return &self.table[<uint32_t>number]

    cdef object check(self, const Target* target):
        """The configuration of a target's check."""
        cdef CheckEntry entry = self.checks.table[target.check]
        return entry.check

    cdef int begin(self, Command* command, object state, object counter, object delay, object check) except -1:
        """Fill in what a target starts with. ValueError: out of range."""
        if state not in (HEALTH_UNKNOWN, HEALTH_UP, HEALTH_DOWN):
            raise ValueError(f"a target is unknown, up or down, not {state}")
        if counter is None:
            counter = health_entry(state, check.rise, check.fall)
        low = check.rise if state == HEALTH_UP else 0
        high = check.rise - 1 if state == HEALTH_DOWN else health_max(check.rise, check.fall)
        if not low <= counter <= high:
            raise ValueError(f"counter {counter} is not in {low}..{high}")
        if not 0 <= delay <= _DAY:
            raise ValueError(f"first_delay {delay} is not in 0..1 day")
        command.state = state
        command.counter = counter
        command.delay = delay
        return 0

    cdef void began(self, Target* target, const Command* command, object check):
        target.generation = command.generation
        target.state = command.state
        target.counter = command.counter
        target.presumed = command.state == HEALTH_UNKNOWN and command.counter >= check.rise
        target.paused = False

    cdef uint32_t take_number(self) noexcept:
        cdef uint32_t number = self.unused
        if number != NIL:
            self.unused = self.table[number].next_unused
        else:
            number = self.top
            self.top += 1
        return number

    cdef void give_number(self, uint32_t number) noexcept:
        self.table[number].next_unused = self.unused
        self.unused = number

    cdef int add(self, object check_id, bytes address, object state, object counter, object delay) except -1:
        cdef Command command
        cdef CheckEntry entry = self.checks.entry(check_id)
        cdef uint32_t capacity = self.native.e.settings.capacity
        cdef Target* target
        if len(address) not in (4, 16):
            raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
        memset(&command, 0, sizeof(command))
        self.begin(&command, state, counter, delay, entry.check)
        if self.unused == NIL and self.top == capacity:
            raise EngineError(f"more than {capacity} targets")
        command.op = OP_ADD
        command.v6 = len(address) == 16
        command.origin = self.origins.take(entry, command.v6)
        command.slot = self.take_number()
        target = &self.table[command.slot]
        # Raised even if the command cannot be pushed: a number that was given once means nothing else later.
        target.generation += 1
        target.epoch += 1
        command.generation = target.generation
        command.epoch = target.epoch
        command.check = entry.number
        command.type = entry.kind
        memcpy(command.address, <const char*>address, len(address))
        try:
            self.native.push(&command)
        except BaseException:
            self.give_number(command.slot)
            self.origins.release(command.origin)
            raise
        entry.targets += 1
        target.active = True
        target.check = entry.number
        target.origin = command.origin
        target.v6 = command.v6
        memcpy(target.address, command.address, sizeof(target.address))
        self.began(target, &command, entry.check)
        return command.slot

    cdef int remove(self, object number) except -1:
        cdef Target* target = self.known(number)
        cdef Command command
        self.start(&command, OP_REMOVE, number, True)
        self.native.push(&command)
        target.generation = command.generation
        target.active = False
        self.give_number(number)
        self.checks.release(target.check)
        self.origins.release(target.origin)
        return 0

    cdef void start(self, Command* command, int op, uint32_t number, bint raised) noexcept:
        """A command for a target; ``raised``: it carries the next generation."""
        memset(command, 0, sizeof(Command))
        command.op = <uint8_t>op
        command.slot = number
        command.generation = self.table[number].generation + raised

    cdef int pause(self, object number) except -1:
        cdef Target* target = self.known(number)
        cdef Command command
        if target.paused:
            return 0
        self.start(&command, OP_PAUSE, number, True)
        self.native.push(&command)
        target.generation = command.generation
        target.paused = True
        return 0

    cdef int resume(self, object number, object state, object counter, object delay) except -1:
        cdef Target* target = self.known(number)
        cdef Command command
        check = self.check(target)
        self.start(&command, OP_RESUME, number, True)
        self.begin(&command, state, counter, delay, check)
        self.native.push(&command)
        self.began(target, &command, check)
        return 0

    cdef int change(self, object number, object check_id) except -1:
        cdef Target* target = self.known(number)
        cdef CheckEntry entry = self.checks.entry(check_id)
        cdef Command command
        check = entry.check
        self.start(&command, OP_CHANGE, number, True)
        command.check = entry.number
        command.type = entry.kind
        command.state = target.state
        if target.presumed:
            command.counter = health_max(check.rise, check.fall)
        else:
            command.counter = health_entry(command.state, check.rise, check.fall)
        command.origin = self.origins.take(entry, target.v6)
        try:
            self.native.push(&command)
        except BaseException:
            self.origins.release(command.origin)
            raise
        target.generation = command.generation
        target.counter = command.counter
        entry.targets += 1
        self.checks.release(target.check)
        self.origins.release(target.origin)
        target.check = entry.number
        target.origin = command.origin
        return 0

    cdef int presume(self, object number, bint good) except -1:
        cdef Target* target = self.known(number)
        cdef Command command
        self.start(&command, OP_PRESUME, number, False)
        command.good = good
        self.native.push(&command)
        if target.state == HEALTH_UNKNOWN:
            target.presumed = good
        return 0

    cdef int hold(self, object number, int state) except -1:
        """The verdict "down", which Python has taken, is held: for Python the target stays in ``state``."""
        cdef Target* target = self.known(number)
        cdef Command command
        check = self.check(target)
        self.start(&command, OP_HOLD, number, False)
        self.native.push(&command)
        target.state = <uint8_t>state
        target.counter = <uint8_t>health_max(check.rise, check.fall)
        target.presumed = state == HEALTH_UNKNOWN
        return 0

    cdef int release(self, object number) except -1:
        """The hold ends; the engine reports again if the target is still down."""
        cdef Target* target = self.known(number)
        cdef Command command
        self.start(&command, OP_RELEASE, number, False)
        command.state = target.state
        return self.native.push(&command)

    cdef int trace(self, object number, bint on) except -1:
        cdef Command command
        self.known(number)
        self.start(&command, OP_TRACE, number, False)
        command.traced = on
        return self.native.push(&command)

    cdef object silence(self, object number):
        cdef OriginEntry entry = self.origins.by_number[self.known(number).origin]
        cdef const Silence* silence = &self.native.e.silence[entry.vantage]
        return entry.vantage, silence.up, silence.silent

    cdef bint failing(self, object number) except -1:
        cdef Record record
        self.known(number)
        self.read(<uint32_t>number, &record)
        return record.state == HEALTH_DOWN or not (
            record.last_code == CODE_NONE
            or record.last_code == CODE_L3OK
            or record.last_code == CODE_L4OK
            or record.last_code == CODE_L6OK
            or record.last_code == CODE_L7OK
        )

    cdef bint current(self, const Event* event) noexcept nogil:
        """Is an event of the target that has this number now, and of its present generation?"""
        cdef const Target* target = &self.table[event.slot]
        return target.active and target.generation == event.generation

    cdef void turned(self, const Event* event) noexcept nogil:
        """Python knows of a transition."""
        cdef Target* target = &self.table[event.slot]
        target.state = event.to_state
        target.counter = event.counter
        target.presumed = False

    cdef void read(self, uint32_t number, Record* out) noexcept nogil:
        """A consistent copy of what the engine knows; what it has not come to yet is as it was commanded."""
        cdef const Target* target = &self.table[number]
        record_copy(&self.native.e.records[number], out)
        if out.epoch != target.epoch:
            memset(out, 0, sizeof(Record))
        if out.epoch == 0 or out.generation != target.generation:
            out.state = target.state
            out.counter = target.counter
        out.generation = target.generation
        if target.paused:
            out.state = PAUSED_STATE

    cdef object detail(self, uint32_t number, int kind, uint32_t value):
        """The text of a detail, with the name that a certificate should have had."""
        cdef const Target* target = &self.table[number]
        if kind != DETAIL_TLS_VERIFY:
            return render_detail(kind, value)
        params = self.check(target).params
        name = _server_name(params) if getattr(params, "tls", None) is not None else None
        if name is None:
            name = str(ipaddress.ip_address((<const char*>target.address)[:16 if target.v6 else 4]))
        return render_detail(kind, value, name)
