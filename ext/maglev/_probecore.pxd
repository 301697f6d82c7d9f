# The seam between the engine's Python face (maglev._probe) and its native core: the calls from one into the other. Each
# goes through a pointer that is looked up at import, so there are few, and each does much. The path of a packet
# stays within the core, where the compiler inlines it.

from libc.stdint cimport uint32_t

from probe.packet cimport Key
from probe.state cimport Check, Command, State

# Allocate an engine, before any thread runs; NULL with errno set. `key`: of cookies and jitter.
cdef State* state_new(uint32_t capacity, uint32_t ring, const Key* key) noexcept nogil

# After `threads_stop`, or without any thread having been started.
cdef void state_free(State* e) noexcept nogil

# Start the opener and the TLS threads. -1 with errno set: some may run; `threads_stop` ends those.
cdef int threads_start(State* e, uint32_t tls_workers) noexcept nogil

# The life of the engine's thread; returns when `inbox.stopping` is set.
cdef void engine_loop(State* e) noexcept nogil

# After the engine's thread has ended: end the others, close all sockets.
cdef void threads_stop(State* e) noexcept nogil

# Hand a command over. -1 with errno set: too many wait.
cdef int command_push(State* e, const Command* command) noexcept nogil

# A check that the engine never got to see.
cdef void check_free(State* e, Check* check) noexcept nogil
