"""gRPC server reflection, as v1 and as v1alpha.

grpcio-reflection serves v1alpha only, which newer clients try after v1, or not at all. The messages of both are equal
on the wire and differ in the name of their package, so one servicer answers for both. Like v1alpha's own file, the file
of v1 is not among the descriptors: a client of reflection has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_reflection.v1alpha import _async, reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = reflection.SERVICE_NAME


def add_reflection(services: Sequence[str], server: grpc.aio.Server) -> None:
    """Let ``server`` describe the services of these full names, and list both versions of reflection with them."""
    names = (*services, V1, V1ALPHA)
    reflection.enable_server_reflection(names, server)
    servicer = _async.ReflectionServicer(service_names=names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=ServerReflectionRequest.FromString,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1, {"ServerReflectionInfo": handler}),))
