"""The guard before every method: authorizes the call, and makes what a service raises the status peers match."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from procs.manager.authorization import Authorizer, Caller
from procs.manager.gateway.records import Records, lookup
from procs.manager.status import Status
from swarm.dial import OURS
from swarm.errors import SwarmvisorError

log = logging.getLogger(__name__)


class Call:
    """The context a service gets: grpcio's own, and the authorized `caller`."""

    __slots__ = ("_context", "caller")

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], caller: Caller) -> None:
        self._context = context
        self.caller = caller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Guard(grpc.aio.ServerInterceptor):
    """Stands before every method of the server, known or not; the only way to a service."""

    def __init__(self, records: Records, authorizer: Authorizer) -> None:
        self._records = records
        self._authorizer = authorizer
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        """Ended calls by (method, status code name)."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        guarded = self._guarded.get(method)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # grpcio answers UNIMPLEMENTED; nothing of ours runs
            guarded = self._guarded[method] = self._guard(method, handler)
        return guarded

    def _admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Call:
        record = lookup(self._records, context.peer())
        metadata = context.invocation_metadata() or ()
        return Call(context, self._authorizer.authorize(method, record, metadata))

    def _guard(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        kept = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrap = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else (grpc.unary_stream_rpc_method_handler)
            )
            return wrap(self._stream(method, behaviour), **kept)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        wrap_unary = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else (grpc.unary_unary_rpc_method_handler)
        )
        return wrap_unary(self._unary(method, behaviour), **kept)

    def _unary(self, method: str, behaviour: Any) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                answer = await behaviour(request, self._admit(method, context))
            except Exception as error:  # noqa: BLE001  (the edge: everything becomes a status, and is logged there)
                await self._refuse(method, context, error)
            except asyncio.CancelledError:
                self.calls[method, "CANCELLED"] += 1
                raise
            self.calls[method, "OK"] += 1
            return answer

        return guarded

    def _stream(self, method: str, behaviour: Any) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                await context.send_initial_metadata(((OURS, "1"),))
                async with aclosing(behaviour(request, self._admit(method, context))) as answers:
                    async for answer in answers:
                        yield answer
            except Exception as error:  # noqa: BLE001  (as above)
                await self._refuse(method, context, error)
            except asyncio.CancelledError:
                self.calls[method, "CANCELLED"] += 1
                raise
            self.calls[method, "OK"] += 1

        return guarded

    async def _refuse(self, method: str, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
        """End the call with the status that `error` stands for."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, Status):
            code, text = error.code, error.message
        elif isinstance(error, SwarmvisorError):
            # A plain error of Go leaves an RPC as Unknown with its text (reference manager §0.1).
            code, text = grpc.StatusCode.UNKNOWN, error.describe()
            log.info("%s: %s", method, text)
        else:
            code, text = grpc.StatusCode.UNKNOWN, "internal error"
            log.error("%s failed", method, exc_info=error)
        self.calls[method, code.name] += 1
        await context.abort(code, text)
        raise AssertionError("abort returned")  # unreachable: abort raises
