"""One connection to VPP's API socket: frames out in one write a batch, replies matched in the order of the requests.

VPP answers strictly in order, so the oldest request is the only one that can be answered next. That makes a wrong
context an error at once instead of the reply of another call, and makes one deadline enough: *some* answer must come
while one is owed. The end of the connection fails every pending call at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from maglev.base import logs
from maglev.base.errors import Unavailable
from maglev.vpp.wire.messages import (
    MESSAGES,
    REPLY_PAYLOAD,
    SOCKCLNT_CREATE_REPLY_ID,
    Decoder,
    Handshake,
    ProtocolError,
    WeightCall,
    pack_handshake,
    pack_set_weight,
    pack_weight_calls,
    reply_head,
    request,
    unpack_handshake_reply,
    unpack_retval,
)

log = logs.get(__name__)

WINDOW = 256
"""Most requests that are sent before their replies are in. VPP queues replies without bound; we do not let it."""

MOST_REPLY = 32 << 20
"""Longest message that is taken from VPP, bytes. ``show lb vips verbose`` takes about 80 bytes an AS."""

MOST_FIXED = 4096
"""Longest reply of a message without a part of variable size, bytes. No definition comes near it."""

MOST_DUMP = 32 << 20
"""Most bytes that the entries of one dump may take, ``ENTRY_COST`` included: 270,000 ASes of one VIP."""

ENTRY_COST = 64
"""Bytes of memory that an entry of a dump takes besides its body."""

PATIENCE = 12
"""Deadlines within which a request must be answered in full, however steadily bytes trickle in."""


class ConnectionLost(Unavailable):
    """The connection to VPP is gone; what was sent may or may not have been done."""


class Request(NamedTuple):
    """One message to send. A message that is packed from a template has ``weight`` instead of ``payload``."""

    name: str
    payload: bytes = b""
    weight: WeightCall | None = None


def set_weight(call: WeightCall) -> Request:
    """``lb_as_set_weight`` as a request."""
    return Request("lb_as_set_weight", b"", call)


class Reply(NamedTuple):
    """An answer: its return value and its payload (the return value included)."""

    retval: int
    payload: bytes


@dataclass(slots=True, eq=False)
class _Batch:
    """Requests that were sent together and are waited for together."""

    future: asyncio.Future[list[Reply]]
    replies: list[Reply]
    left: int


@dataclass(slots=True, eq=False)
class _Pending:
    """A request without its answer. A dump has ``details`` (whole bodies); a ping sent after it ends it."""

    context: int
    name: str
    reply_id: int
    batch: _Batch | None = None
    details: list[bytes] | None = None
    dump: asyncio.Future[list[bytes]] | None = None
    size: int = 0


class Connection(asyncio.Protocol):
    """The protocol object. ``sent`` and ``received`` count messages by (name, result).

    ``lost`` is done when the connection is gone; its result says why. ``last_heard_ns`` is the loop's time in
    nanoseconds when bytes last came.
    """

    def __init__(self, *, deadline: float, counters: Counter[tuple[str, str, str]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._counters = counters
        self._transport: asyncio.WriteTransport | None = None
        self._decoder = Decoder(MOST_REPLY)
        self._pending: deque[_Pending] = deque()
        self._context = 0
        self._handshake: asyncio.Future[Handshake] | None = None
        self._shaken: Handshake | None = None
        self._names: dict[int, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._progress = self._answered = self._loop.time()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.ignored = 0
        self.last_heard = self._loop.time()

    # ------------------------------------------------------------------------------------------ asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came: cut them into messages and hand each to the request that it answers."""
        self._progress = self.last_heard = self._loop.time()
        try:
            for body in self._decoder.feed(data):
                self._take(body)
        except ProtocolError as error:
            self._counters["?", "received", "malformed"] += 1
            self.abort(f"VPP sent nonsense: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._fail(f"connection lost: {error}" if error is not None else "VPP closed the connection")

    # -------------------------------------------------------------------------------------------------- the requests

    async def handshake(self, name: str) -> Handshake:
        """Introduce ourselves and learn the message table. Raises ConnectionLost."""
        self._check()
        self._handshake = self._loop.create_future()
        self._counters["sockclnt_create", "sent", "ok"] += 1
        self._write(pack_handshake(name, self._next_context()))
        self._watch()
        return await self._handshake

    def supports(self, name: str) -> bool:
        """Whether this VPP has the message with exactly our definition."""
        return self._shaken is not None and self._shaken.id_of(name) is not None

    async def send(self, requests: Sequence[Request]) -> list[Reply]:
        """Send requests in one write, at most ``WINDOW`` of them, and wait for all replies, in order.

        A reply with an error is a reply: only a lost connection raises (ConnectionLost).
        """
        if not requests:
            return []
        assert len(requests) <= WINDOW
        self._check()
        self._watch()
        batch = _Batch(self._loop.create_future(), [], len(requests))
        frames: list[bytes] = []
        position = 0
        while position < len(requests):
            if requests[position].weight is None:
                frames.append(self._pack(requests[position], batch))
                position += 1
                continue
            run: list[WeightCall] = []
            while position < len(requests) and (call := requests[position].weight) is not None:
                run.append(call)
                position += 1
            frames.append(self._pack_weights(run, batch))
        self._write(b"".join(frames))
        return await batch.future

    async def dump(self, name: str, payload: bytes) -> list[bytes]:
        """Send a dump and then a ping; return the bodies of the details. Raises ConnectionLost."""
        self._check()
        self._watch()
        message = MESSAGES[name]
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        pending = _Pending(self._next_context(), name, self._id(message.reply), details=[], dump=future)
        ping = _Pending(self._next_context(), "control_ping", self._id("control_ping_reply"))
        frames = self._frame(pending, payload) + self._frame(ping, b"")
        self._pending += (pending, ping)
        self._write(frames)
        return await future

    def goodbye(self) -> bool:
        """Write ``sockclnt_delete``, without waiting: a client that only closes leaves VPP spinning.

        False when the connection is not far enough, or too broken, for that.
        """
        if self._shaken is None or self._transport is None or self._transport.is_closing():
            return False
        message_id = self._shaken.id_of("sockclnt_delete")
        if message_id is None:
            return False
        index = self._shaken.client_index
        self._counters["sockclnt_delete", "sent", "ok"] += 1
        self._write(request(message_id, index, self._next_context(), index.to_bytes(4, "big")))
        return True

    def abort(self, why: str) -> None:
        """End the connection now, for the given reason. Says goodbye if that still can be said."""
        if self._transport is not None and not self._transport.is_closing():
            self.goodbye()
            if self._transport.get_write_buffer_size() == 0:
                self._transport.close()
            else:
                self._transport.abort()
        self._fail(why)

    # ------------------------------------------------------------------------------------------------------- within

    def _check(self) -> None:
        if self.lost.done():
            raise ConnectionLost(self.lost.result())

    def _next_context(self) -> int:
        # Never 0, which VPP puts into what answers nothing.
        self._context = self._context % 0xFFFFFFFF + 1
        return self._context

    def _id(self, name: str) -> int:
        number = self._shaken.id_of(name) if self._shaken is not None else None
        if number is None:
            raise Unavailable(f"this VPP has no message {MESSAGES[name].name_crc}")
        return number

    def _frame(self, pending: _Pending, payload: bytes) -> bytes:
        assert self._shaken is not None
        self._count_sent(pending, payload)
        return request(self._id(pending.name), self._shaken.client_index, pending.context, payload)

    def _pack(self, one: Request, batch: _Batch) -> bytes:
        pending = _Pending(self._next_context(), one.name, self._id(MESSAGES[one.name].reply), batch)
        data = self._frame(pending, one.payload)
        self._pending.append(pending)
        return data

    def _pack_weights(self, calls: list[WeightCall], batch: _Batch) -> bytes:
        assert self._shaken is not None
        name = "lb_as_set_weight"
        reply_id = self._id(MESSAGES[name].reply)
        if self._context + len(calls) > 0xFFFFFFFF:
            self._context = 0
        data = pack_weight_calls(self._id(name), self._shaken.client_index, self._context + 1, calls)
        for call in calls:
            pending = _Pending(self._next_context(), name, reply_id, batch)
            self._pending.append(pending)
            if log.enabled(logging.DEBUG):
                words = MESSAGES[name].words(pack_set_weight(call.vip, call.address, call.weight, flush=call.flush))
                log.debug("vpp-sent", f"-> {name} {words}", msg=name, context=pending.context)
        self._counters[name, "sent", "ok"] += len(calls)
        return data

    def _count_sent(self, pending: _Pending, payload: bytes) -> None:
        self._counters[pending.name, "sent", "ok"] += 1
        if log.enabled(logging.DEBUG):
            words = MESSAGES[pending.name].words(payload)
            log.debug("vpp-sent", f"-> {pending.name} {words}".rstrip(), msg=pending.name, context=pending.context)

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _take(self, body: bytes) -> None:
        if self._shaken is None:
            self._take_handshake(body)
            return
        message_id, context = reply_head(body)
        pending = self._pending
        head = pending[0] if pending else None
        if head is not None and head.dump is not None and context != head.context:
            # The dump is complete: this must be the reply to the ping that was sent after it.
            head = pending[1]
            if context == head.context and message_id == head.reply_id:
                self._finish_dump(pending.popleft())
        if head is None or context != head.context or message_id != head.reply_id:
            self._stranger(message_id, context, head)
            return
        if head.details is not None:
            self._take_details(head, head.details, body)
            return
        if len(body) > MOST_FIXED and not MESSAGES[MESSAGES[head.name].reply].has_tail:
            # Replies of a batch are kept until the last one is in: a bound for each one bounds them all.
            raise ProtocolError(f"{MESSAGES[head.name].reply} has {len(body)} bytes")
        payload = body[REPLY_PAYLOAD:]
        retval = unpack_retval(payload)
        pending.popleft()  # not before it is understood: what is taken off without an answer would wait for ever
        self._answered = self._progress
        self._counters[MESSAGES[head.name].reply, "received", "ok" if retval == 0 else str(retval)] += 1
        if log.enabled(logging.DEBUG):
            name = MESSAGES[head.name].reply
            log.debug("vpp-received", f"<- {name} retval {retval}", msg=name, context=context, retval=retval)
        if head.batch is not None:
            self._answer(head.batch, Reply(retval, payload))

    @staticmethod
    def _take_details(head: _Pending, details: list[bytes], body: bytes) -> None:
        """An entry of a dump. VPP announces no number of them, so the bound is on their bytes."""
        head.size += len(body) + ENTRY_COST
        if head.size > MOST_DUMP:
            raise ProtocolError(f"{head.name} brings more than {MOST_DUMP} bytes")
        details.append(body)

    def _answer(self, batch: _Batch, answer: Reply) -> None:
        batch.replies.append(answer)
        batch.left -= 1
        if batch.left == 0 and not batch.future.done():
            batch.future.set_result(batch.replies)

    def _finish_dump(self, head: _Pending) -> None:
        assert head.dump is not None
        assert head.details is not None
        name = MESSAGES[head.name].reply
        self._counters[name, "received", "ok"] += len(head.details)
        log.debug("vpp-received", f"<- {len(head.details)} {name}", msg=name, context=head.context)
        if not head.dump.done():
            head.dump.set_result(head.details)

    def _take_handshake(self, body: bytes) -> None:
        if self._handshake is None or self._handshake.done():
            raise ProtocolError("a message before the connection was introduced")
        answer = unpack_handshake_reply(body)
        self._counters["sockclnt_create_reply", "received", "ok" if answer.response >= 0 else str(answer.response)] += 1
        if answer.response < 0:
            self.abort(f"VPP refused the connection ({answer.response})")
            return
        self._shaken = answer
        self._names = {number: name for name, number in answer.ids.items()}
        self._names[SOCKCLNT_CREATE_REPLY_ID] = MESSAGES["sockclnt_create_reply"].name_crc
        self._handshake.set_result(answer)

    def _stranger(self, message_id: int, context: int, head: _Pending | None) -> None:
        """A message that answers nothing we wait for: an event is left aside, anything else is an error."""
        name = self._names.get(message_id)
        if name is None:
            raise ProtocolError(f"message id {message_id} is not in the table")
        plain = name.rpartition("_")[0]
        if plain == "sockclnt_delete_reply":
            return
        if plain.endswith(("_reply", "_details")):
            waiting = f"{head.name} (context {head.context})" if head is not None else "nothing"
            raise ProtocolError(f"{plain} with context {context} while {waiting} is waited for")
        self.ignored += 1
        self._counters[plain, "received", "ignored"] += 1
        log.debug("vpp-ignored", f"<- {plain}, which was not asked for", msg=plain)

    def _watch(self) -> None:
        """Something is about to be owed. Arm the one deadline: while anything is, some answer must come."""
        if not self._pending:
            # The timer may still run for an older call, and that time must not count against this one.
            self._progress = self._answered = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._deadline, self._expired)

    def _expired(self) -> None:
        self._timer = None
        owed = self._pending[0].name if self._pending else ""
        if self._shaken is None and self._handshake is not None:
            owed = "sockclnt_create"
        if not owed or self.lost.done():
            return
        now = self._loop.time()
        # Bytes are a sign of life, but not an answer: a peer that trickles, or sends other messages, is dropped too.
        whole = self._deadline * PATIENCE
        left = min(self._progress + self._deadline, self._answered + whole) - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._expired)
            return
        self._counters[owed, "sent", "timeout"] += 1
        slow = self._progress + self._deadline > now
        self.abort(f"no {'whole ' if slow else ''}answer to {owed} within {whole if slow else self._deadline:g} s")

    def _fail(self, why: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(why)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        error = ConnectionLost(why)
        futures: list[asyncio.Future[Handshake] | asyncio.Future[list[Reply]] | asyncio.Future[list[bytes]]] = []
        if self._handshake is not None:
            futures.append(self._handshake)
        for pending in self._pending:
            if pending.batch is not None:
                futures.append(pending.batch.future)
            if pending.dump is not None:
                futures.append(pending.dump)
        self._pending.clear()
        for future in futures:
            if not future.done():
                future.set_exception(error)
                # The waiting caller sees it. Without a caller, because of a cancellation, the loop must not complain.
                future.exception()
