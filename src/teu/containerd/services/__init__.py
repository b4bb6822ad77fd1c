# SPDX-License-Identifier: Apache-2.0
"""containerd's gRPC services, one module per service: decode, call, answer. `server.rpc` maps the errors.

Each module has `register(server, context)`, which adds its services to the server. `daemon` names the modules.
"""
