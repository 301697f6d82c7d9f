"""The native core of the probe engine: threads, packets and decisions, none of which needs the interpreter.

``maglev._probe`` is the engine as Python sees it; ``maglev._cores`` has the pure parts alone, for tests.
"""

# One module, made of the files below: they call each other for each packet, and the compiler can inline only what it
# sees at once. A file says in its head which thread runs it.

from health cimport (
    HEALTH_DOWN,
    HEALTH_UNKNOWN,
    HEALTH_UP,
    Health,
    health_entry,
    health_max,
    health_step,
    health_undecided,
)
from probe.http cimport *
from probe.numbers cimport *
from probe.openssl cimport *
from probe.packet cimport *
from probe.ports cimport *
from probe.ring cimport *
from probe.schedule cimport *
from probe.state cimport *
from probe.sys cimport *
from probe.tls cimport *
from probe.wheel cimport *

include "packet.pyx"
include "wheel.pyx"
include "http.pyx"
include "clock.pyx"
include "silence.pyx"
include "verdict.pyx"
include "origin.pyx"
include "filter.pyx"
include "neighbour.pyx"
include "departure.pyx"
include "evidence.pyx"
include "opener.pyx"
include "icmp.pyx"
include "tcp_syn.pyx"
include "raw.pyx"
include "stream.pyx"
include "search.pyx"
include "linger.pyx"
include "proving.pyx"
include "dates.pyx"
include "authorities.pyx"
include "tls.pyx"
include "handover.pyx"
include "commands.pyx"
include "loop.pyx"
include "life.pyx"

cdef int64_t bounds_ns[BOUNDS]
BOUND_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)
for _i, _bound in enumerate(BOUND_SECONDS):
    bounds_ns[_i] = round(_bound * SECOND)

tls_prepare()
