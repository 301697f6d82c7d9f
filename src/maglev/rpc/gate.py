"""The gate before every call: the caller's role, room for the call, its status, counts and the log of changes.

An interceptor of gRPC wraps handlers, it does not see calls. So the gate wraps every handler in another coroutine,
which runs on the event loop like the call itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from maglev.base import errors, logs
from maglev.base.pace import in_slices
from maglev.base.suggest import closest, did_you_mean
from maglev.pb import maglev_pb2 as pb
from maglev.rpc.access import OPERATOR_CALLS, SERVICE, Caller, address_of, is_local
from maglev.rpc.callers import Callers
from maglev.rpc.status import TooMany, TooSlow, origin, status_of, words
from maglev.schema.durations import format_duration

log = logs.get(__name__)

# Generic in the type stubs only, hence the quotes.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

MAX_CALLS = 512
"""Calls of each listener that may be open. The gate refuses and counts those beyond."""

FAREWELL_SECONDS = 0.2
"""How long the gate tries to send a dropped reader its status. The status queues after the messages that it has not
read, so it usually arrives when it reads on."""


MAX_ASKED = 255
"""Characters of a request's value in the log: names have 63, a reason has 255."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call: its method (``/maglev.Maglev/PauseBackend``), who makes it from where, and the request."""

    method: str
    caller: Caller
    peer: str
    request: Any

    @property
    def name(self) -> str:
        """The method's own name."""
        return self.method.rpartition("/")[2]


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before every call of ours: checks the role, turns errors into a status, counts, logs changes.

    ``calls`` counts ended calls by method ("PauseBackend") and status ("OK", "NOT_FOUND"), ``slow`` counts readers that
    were dropped because they did not read, ``crowded`` counts calls that were refused because of ``MAX_CALLS``.
    """

    def __init__(self, callers: Callers, patience_seconds: float) -> None:
        self._callers = callers
        self._patience = patience_seconds
        self.slow = 0
        self.crowded = 0
        # Open calls by listener: True for the Unix socket, False for TCP.
        self._open: dict[bool, int] = {True: 0, False: 0}
        self.calls: dict[tuple[str, str], int] = {}
        self._suggesting = False
        # Set when the server ends. Streams of other services (health, reflection) do not end by themselves.
        self.closing = asyncio.Event()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap our own handlers; streams of the health service and of reflection only get an end."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            # Counted as one: the caller chooses the name, so counts by name would grow without limit.
            self._count("unknown", grpc.StatusCode.UNIMPLEMENTED)
            return handler
        if not method.startswith(f"/{SERVICE}/"):
            return self._foreign(handler)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                request_deserializer=_lenient(handler.request_deserializer),
                # WatchEvents yields messages that are encoded already.
                response_serializer=bytes,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            request_deserializer=_lenient(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    # ------------------------------------------------------------------------------------------------ other services

    def _foreign(self, handler: Handler) -> Handler:
        """A handler of another service, whose streams end with ``UNAVAILABLE`` when the server does."""
        make: Any
        inner: Any
        if handler.request_streaming and handler.response_streaming:
            inner, make = handler.stream_stream, grpc.stream_stream_rpc_method_handler
        elif handler.response_streaming:
            inner, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
        else:
            return handler

        async def call(request: Any, context: Context) -> Any:
            try:
                with self._room(context.peer()):
                    return await self._until_closing(_drive(inner, request, context), context)
            except TooMany as error:
                return await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))

        wrapped: Handler = make(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    async def _until_closing(self, call: Awaitable[None], context: Context) -> Any:
        work = asyncio.ensure_future(call)
        end = asyncio.ensure_future(self.closing.wait())
        try:
            await asyncio.wait((work, end), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return await work
        finally:
            end.cancel()
            work.cancel()
        await asyncio.wait((work,))
        return await context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is on its way out")

    # --------------------------------------------------------------------------------------------------- our service

    def _unary(self, method: str, inner: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async def run() -> Any:
                _refuse_garbage(request)
                return await inner(request, context)

            return await self._guarded(method, context, request, run)

        return call

    def _stream(self, method: str, inner: Any) -> Any:
        async def call(request: Any, context: Context) -> None:
            async def run() -> None:
                _refuse_garbage(request)
                messages: AsyncIterator[bytes] = inner(request, context)
                # aclosing ends the subscription when the caller goes away. Without it, the subscription would fill up
                # until the garbage collector finds the generator.
                async with aclosing(messages) as stream:  # type: ignore[type-var]
                    async for message in stream:
                        await self._write(context, message)

            await self._guarded(method, context, request, run)

        return call

    async def _write(self, context: Context, message: bytes) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await context.write(message)
        except TimeoutError:
            self.slow += 1
            name = self._callers.of(context).name
            log.warning("api-reader-dropped", f"{name} does not read what it watches", by=name)
            raise TooSlow(f"nothing was read for {self._patience:.0f} s") from None

    @contextlib.contextmanager
    def _room(self, peer: str) -> Iterator[None]:
        """Take up the room of one call. Raises ``TooMany`` when the listener has ``MAX_CALLS`` open."""
        local = is_local(peer)
        if self._open[local] >= MAX_CALLS:
            self.crowded += 1
            raise TooMany(f"{MAX_CALLS} calls are open, which is the limit")
        self._open[local] += 1
        try:
            yield
        finally:
            self._open[local] -= 1

    async def _guarded(self, method: str, context: Context, request: Any, run: Callable[[], Awaitable[Any]]) -> Any:
        """Run a call: every way in which it can end is counted, logged if it is a change, and has a status."""
        peer = context.peer()
        call = _Call(method, self._callers.of(context), peer, request)
        if not call.caller.may(method):
            self._ended(call, grpc.StatusCode.PERMISSION_DENIED)
            why = f"{call.name} is for operators, and {call.caller.name} is {call.caller.role.value}"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        try:
            with self._room(peer):
                answer = await run()
        except errors.MaglevError as error:
            await self._refuse(call, context, error)
        except asyncio.CancelledError:
            self._count(call.name, grpc.StatusCode.CANCELLED)
            raise
        except grpc.aio.InternalError:
            # The connection broke in the middle of a message: no caller is left to answer.
            self._count(call.name, grpc.StatusCode.CANCELLED)
            raise asyncio.CancelledError from None
        except Exception as error:
            self._count(call.name, grpc.StatusCode.INTERNAL)
            log.exception("api-failure", f"{call.name} failed", error, call=call.name, by=call.caller.name)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, see the daemon's log")
        else:
            # A file with errors is an answer to the caller, but no change.
            refused = isinstance(answer, pb.ReloadConfigResponse) and not answer.ok
            self._ended(call, grpc.StatusCode.OK, "the file has errors, nothing was changed" if refused else "")
            return answer

    async def _refuse(self, call: _Call, context: Context, error: errors.MaglevError) -> None:
        """End a call with the status of ``error``."""
        code, text = status_of(error), words(error)
        if isinstance(error, errors.UnknownName):
            text += await self._suggestion(error)
        self._ended(call, code, text)
        if not isinstance(error, TooSlow):
            await context.abort(code, text, origin(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await context.abort(code, text)

    async def _suggestion(self, error: errors.UnknownName) -> str:
        """``; did you mean ...?`` for an unknown name. One at a time: the calls of a flood go without."""
        if self._suggesting:
            return ""
        self._suggesting = True
        try:
            return did_you_mean(await in_slices(closest(error.name, error.among)))
        finally:
            self._suggesting = False

    def _ended(self, call: _Call, code: grpc.StatusCode, problem: str = "") -> None:
        """Count a call, and log it if it is one that changes something."""
        self._count(call.name, code)
        if call.method in OPERATOR_CALLS:
            asked = _asked(call.request)
            added = "".join(f" {key}={_one(value)}" for key, value in asked.items())
            # A dry run has changed nothing. One that was refused is logged as any other refusal.
            tried = code is grpc.StatusCode.OK and getattr(call.request, "dry_run", False)
            log.log(
                logging.DEBUG if tried else logging.INFO,
                "api-change",
                f"{call.caller.name} called {call.name}{added}",
                call=call.name,
                by=call.caller.name,
                address=address_of(call.peer),
                status=code.name,
                problem=problem,
                **asked,
            )

    def _count(self, name: str, code: grpc.StatusCode) -> None:
        key = (name, code.name)
        self.calls[key] = self.calls.get(key, 0) + 1


async def _drive(inner: Any, request: Any, context: Context) -> None:
    """Run a streaming handler of another service, which is a coroutine or an async generator."""
    stream: Any = inner(request, context)
    if inspect.isawaitable(stream):
        await stream
        return
    async with aclosing(stream) as messages:
        async for message in messages:
            await context.write(message)


def _one(value: str) -> str:
    """A value in a message: in quotes if it has spaces, so that no reason looks like another field of the record."""
    return repr(value) if " " in value else value


def _asked(request: Any) -> dict[str, str]:
    """What a request for a change asks for, as fields of its log record; a default stays away."""
    asked: dict[str, str] = {}
    for field, value in request.ListFields() if request is not None else ():
        if field.name == "duration_ns":
            asked["duration"] = format_duration(value)
        else:
            # Requests that name a single backend call it ``name``.
            text = str(value)
            key = "backend" if field.name == "name" else field.name
            asked[key] = text if len(text) <= MAX_ASKED else text[:MAX_ASKED] + "..."
    return asked


def _lenient(deserializer: Any) -> Any:
    """A deserializer that gives None for garbage: gRPC itself would log a traceback for each such request."""

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return None

    return deserialize


def _refuse_garbage(request: Any) -> None:
    if request is None:
        raise errors.BadValue("the request is no message of this API")
