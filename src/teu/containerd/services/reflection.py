# SPDX-License-Identifier: Apache-2.0
"""gRPC server reflection, v1 and v1alpha: generic clients such as grpcurl learn the API from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import descriptor_pool

from teu.api.grpc.reflection.v1 import reflection_pb2 as reflection_v1
from teu.api.grpc.reflection.v1alpha import reflection_pb2 as reflection_v1alpha
from teu.containerd.server.rpc import Call, Server
from teu.containerd.state import Context

_NOT_FOUND, _UNIMPLEMENTED = 5, 12


def _with_dependencies(file: Any) -> list[bytes]:
    files, waiting = {}, [file]
    while waiting:
        one = waiting.pop()
        if one.name not in files:
            files[one.name] = one.serialized_pb
            waiting.extend(one.dependencies)
    return list(files.values())


class Reflection:
    """grpc.reflection.ServerReflection, in the messages of one of its versions."""

    def __init__(self, server: Server, messages: Any) -> None:
        self._server = server
        self._messages = messages

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        """An answer for each question, until the client ends the stream. What is not known is an error within the
        answer."""
        async for request in requests:
            yield self._answer(request)

    def _answer(self, request: Any) -> Any:
        response = self._messages.ServerReflectionResponse(valid_host=request.host, original_request=request)
        pool = descriptor_pool.Default()
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for name in sorted(self._server.services):
                    response.list_services_response.service.add(name=name)
            elif kind == "file_by_filename":
                file = pool.FindFileByName(request.file_by_filename)
                response.file_descriptor_response.file_descriptor_proto.extend(_with_dependencies(file))
            elif kind == "file_containing_symbol":
                file = pool.FindFileContainingSymbol(request.file_containing_symbol)
                response.file_descriptor_response.file_descriptor_proto.extend(_with_dependencies(file))
            elif kind == "file_containing_extension":
                asked = request.file_containing_extension
                message = pool.FindMessageTypeByName(asked.containing_type)
                file = pool.FindExtensionByNumber(message, asked.extension_number).file
                response.file_descriptor_response.file_descriptor_proto.extend(_with_dependencies(file))
            elif kind == "all_extension_numbers_of_type":
                message = pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
                found = response.all_extension_numbers_response
                found.base_type_name = message.full_name
                found.extension_number.extend(sorted(one.number for one in pool.FindAllExtensions(message)))
            else:
                response.error_response.error_code = _UNIMPLEMENTED
                response.error_response.error_message = "no request"
        except KeyError as error:
            response.error_response.error_code = _NOT_FOUND
            response.error_response.error_message = f"not found: {error.args[0]}"
        return response


def register(server: Server, context: Context) -> None:
    for messages in (reflection_v1, reflection_v1alpha):
        server.add(messages.DESCRIPTOR.services_by_name["ServerReflection"], Reflection(server, messages))
