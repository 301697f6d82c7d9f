"""The probe engine (``ext/probe/``): a native thread that probes, decides, and reports only transitions.

Life of an engine: make it, ``add_check`` and ``add_target`` (before or after ``start``), watch ``fileno()`` with the
event loop, call ``transitions()`` when it is readable, ``stop()`` at the end. No method waits for the network; all of
them are to be called from one thread.

A target id is an index, given again after ``remove_target``. Every command that makes older results meaningless (add,
remove, pause, resume, change_check) raises the target's generation; ``transitions()`` and ``results()`` give only what
carries the present one.

Times are integers in nanoseconds: ``*_delay`` and ``*_rtt`` are spans, ``at`` and ``since`` are wall clock.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from maglev.base.states import State
from maglev.config.model import HealthCheck

class EngineError(RuntimeError):
    """The engine cannot do what was asked: its thread could not start, or a table is full."""

class Transition(NamedTuple):
    """Probes changed the state of a target. ``code`` and the states are numbers of ``maglev.base.states``.

    ``silent``: each failed probe since the last one that passed was a time-out, or an error of a router.
    """

    target: int
    generation: int
    from_state: int
    to_state: int
    code: int
    detail: str
    at_ns: int
    counter: int
    silent: bool = False

class Result(NamedTuple):
    """How one probe of a traced target ended. ``rtt_ns`` is 0 where there was no reply."""

    target: int
    generation: int
    state: int
    counter: int
    passed: bool
    code: int
    detail: str
    at_ns: int
    rtt_ns: int

class TargetInfo(NamedTuple):
    """A target as it is. ``state`` is ``State.PAUSED`` while no probe is sent.

    ``last_at_ns`` 0: no result yet. ``blocked_since_ns`` 0: it can be probed; otherwise since when it could not be,
    and ``blocked_reason`` says why ("EPERM: no permission to open a raw socket (CAP_NET_RAW)").
    ``codes`` counts results by ``Code`` (index). ``rtt_sum_ns`` and ``rtt_count`` are of passes.
    """

    generation: int
    state: int
    counter: int
    last_code: int
    last_detail: str
    last_at_ns: int
    last_rtt_ns: int
    rtt_sum_ns: int
    rtt_count: int
    blocked_since_ns: int
    blocked_reason: str
    codes: tuple[int, ...]

class Histogram(NamedTuple):
    """Durations of probes. ``counts[i]`` are those up to ``bounds[i]`` seconds, not cumulative; one more is above."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum_seconds: float

CODES: Final[int]
"""How many codes the engine counts: ``Code.NONE`` .. ``Code.L7RSP``."""

SNAPSHOT_FORMAT: Final[str]
"""``struct`` format of one record of ``Engine.snapshot()``, in the order of ``SNAPSHOT_FIELDS``, then CODES counts."""

SNAPSHOT_FIELDS: Final[tuple[str, ...]]
"""``target generation state counter last_code flags last_at_ns last_rtt_ns rtt_sum_ns rtt_count detail_kind
detail_value blocked_since_ns blocked_kind blocked_errno`` and then ``codes`` (CODES times u32)."""

HTTP_FAULTS: Final[dict[int, str]]
"""Why a response is not one, by the number that the engine keeps."""

def missing_capabilities(check: HealthCheck) -> tuple[str, ...]:
    """Capabilities that ``check`` needs and this process lacks: CAP_NET_RAW (icmp, tcp syn), CAP_SYS_ADMIN (netns)."""

def render_detail(kind: int, value: int, name: str | None = None) -> str:
    """The text of a detail as ``snapshot()`` packs it. ``name``: whom a certificate that did not fit should be of."""

class Engine:
    """``capacity``: targets, at most 2**20. ``key``: 16 bytes for cookies and jitter; random where None.

    ``user_agent`` is sent with HTTP checks: ``vpp-maglev/<version> (+https://...)``.
    ``ring``, a power of two: how many transitions can wait to be read; further ones are reported when there is room,
    as one from the state last reported to the present one.
    ``clock_anchor``: another run's ``clock_anchor``, if the machine was not booted since; 0: none. ``clock_grace``:
    seconds from the start in which the dates of certificates are no verdict on targets that are up or presumed good,
    while there is no anchor and the kernel calls its clock unsynchronised. Raises ValueError for a bad value,
    MemoryError.
    """

    def __init__(
        self,
        *,
        capacity: int = 131072,
        key: bytes | None = None,
        user_agent: str = "vpp-maglev",
        ring: int = 65536,
        clock_anchor: int = 0,
        clock_grace: float = 600.0,
    ) -> None: ...
    @property
    def capacity(self) -> int: ...
    @property
    def running(self) -> bool: ...
    def pulse(self) -> int:
        """How many rounds the thread has made. Asks for one more: of a healthy thread the next answer is higher."""

    def fileno(self) -> int:
        """An eventfd that is readable while transitions or results wait. Reading them all makes it unreadable again."""

    @property
    def clock_anchor(self) -> int:
        """How far the wall clock is ahead of CLOCK_BOOTTIME by the certificates that were verified, 0: not known.

        Nanoseconds; the lowest two bits are flags. A later engine takes it as it is, until the machine is booted again.
        """

    def start(self) -> None:
        """Start the native thread, once. Raises the descriptor limit to its hard limit. EngineError the second time."""

    def stop(self) -> None:
        """End the thread and wait for it (milliseconds); idempotent. Sockets are closed, states stay readable."""

    def add_check(self, check: HealthCheck) -> int:
        """Take a check's parameters (and compile its regular expression); returns its id.

        ``check.netns`` is used as it is: the configuration's default must have been filled in. ValueError for what
        the engine cannot do (a bad regular expression, values out of range). A ``ca_file`` is not read here but by
        the first probe, so that this never waits for it; while it cannot be read the targets cannot be probed.
        """

    def reread_authorities(self) -> None:
        """Have the authorities of all TLS checks looked at again; files that changed are read, sessions forgotten.

        A file that can no longer be read stays in force as it was. Takes effect with each target's next probe.
        """

    def remove_check(self, check_id: int) -> None:
        """Forget a check as soon as no target uses it. KeyError if unknown."""

    def add_target(
        self,
        check_id: int,
        address: bytes,
        *,
        state: State = State.UNKNOWN,
        counter: int | None = None,
        first_delay: int = 0,
    ) -> int:
        """Probe ``address`` (4 or 16 bytes) from ``first_delay`` ns from now on; returns the target id.

        ``state`` is UNKNOWN, UP or DOWN; ``counter`` None is that state's entry value. EngineError when ``capacity``
        is reached, KeyError for an unknown check, ValueError for the rest.
        """

    def remove_target(self, target: int) -> None:
        """Stop probing and forget the target; its id may be given again. KeyError if unknown (as everywhere below)."""

    def pause_target(self, target: int) -> None:
        """Send no more probes; the reply to the one in flight is dropped. Idempotent. The counts stay."""

    def resume_target(
        self, target: int, *, state: State = State.UNKNOWN, counter: int | None = None, first_delay: int = 0
    ) -> None:
        """Probe again, in this state. Also of a running target: it starts from the beginning."""

    def change_check(self, target: int, check_id: int) -> None:
        """Go on with another check in the present state: up with the new maximum, down with 0, unknown with rise-1.

        A target presumed good stays so. The next probe is due as it was, or after the new interval where that is
        sooner. The counts stay. Of a paused target: takes effect with ``resume_target``.
        """

    def presume(self, target: int, good: bool) -> None:
        """While the target is unknown: presume it good (``fall`` failures in a row bring it down) or take that back."""

    def hold(self, target: int, state: State) -> None:
        """Take no notice of the transition to down that ``transitions()`` has just given: it is held.

        The target counts as being in ``state``, UP or UNKNOWN (and then as presumed good), and is probed at
        fast-interval. Nothing happens if it has passed meanwhile. ValueError for another state.
        """

    def release(self, target: int) -> None:
        """End a hold. A target that has failed ``fall`` times in a row since it began is reported as down again.

        Any other is in its state from before the hold, with those failures counted. Idempotent.
        """

    def silence(self, target: int) -> tuple[int, int, int]:
        """The number of the target's vantage (namespace, family, source), how many targets of it are up, and how
        many of those fail by silence at this moment. Held ones and those presumed good count as up.
        """

    def failing(self, target: int) -> bool:
        """Whether the last probe of the target did not pass."""

    def trace(self, target: int, on: bool) -> None:
        """Report every result of the target through ``results()``. Ends with ``remove_target``."""

    def transitions(self, most: int = 4096) -> list[Transition]:
        """Take up to ``most`` waiting transitions, oldest first. Never loses the state a target ends in."""

    def results(self, most: int = 4096) -> list[Result]:
        """Take up to ``most`` results of traced targets. Bounded: what did not fit is counted in ``stats()``."""

    def generation(self, target: int) -> int:
        """The generation that a transition of this target must carry."""

    def target_info(self, target: int) -> TargetInfo: ...
    def snapshot(self) -> bytes:
        """All targets as packed records (``SNAPSHOT_FORMAT``), by target id: for metrics, without an object a field."""

    def stats(self) -> dict[str, int]:
        """Counters of the whole engine since it was made; names are stable.

        ``targets``, ``in_flight``, ``waiting_fd``, ``tls_session_bytes``, ``rx_buffer`` (bytes of the receive buffer
        that overflowed last) and ``clock_step_ns`` (by how much the wall clock was set last, signed) are gauges. The
        rest count: probes
        ``sent_icmp``, ``sent_syn``, ``sent_connect``, ``sent_http``; results ``passed``, ``failed``; our own trouble
        ``late_sends`` (over 5 ms), ``late_fd``, ``late_tls``, ``late_port`` (waited for a descriptor, for one of the
        handshakes under way to end, for a source port that was not used for a minute), ``enobufs``, ``local_errors``,
        ``repeated``, ``rx_drops``, ``stalls`` (of over 10 ms), ``clock_steps`` (the wall clock was set),
        ``dates_doubted`` (certificates that were not judged, as the clock may be wrong), ``dates_unsure`` (that were
        refused while the kernel called its clock unsynchronised); probes that did not leave this host, by reason:
        ``unprobed_buffer``, ``unprobed_route``, ``unprobed_link``, ``unprobed_firewall``, ``unprobed_neighbours``,
        ``unprobed_queue``; packets that were not believed ``foreign``, ``forged``, ``duplicate``, ``late_replies``,
        ``malformed``; ``icmp_errors`` taken as verdicts; handshakes ``tls_full``, ``tls_resumed``; ``transitions``,
        ``transitions_deferred``,
        ``results_dropped``; ``wakeups``, ``ticks``.
        """

    def histograms(self) -> dict[tuple[str, str], Histogram]:
        """Durations by (``icmp|tcp|http|https``, ``pass|fail``)."""

    def lateness(self) -> Histogram:
        """How late probes were sent against the time they were due; those that share a tick leave up to 2 ms early."""

UNPROBED: Mapping[int, tuple[str, str]]
"""Why a probe did not leave this host, by ``blocked_kind``: the name in counters and logs, and words for people."""

def render_blocked(
    kind: int, error: int, netns: str | None = None, ca_file: str | None = None, v6: bool = False
) -> str:
    """Why a target cannot be probed, as ``snapshot()`` packs it: errno's name, what failed, what helps."""
