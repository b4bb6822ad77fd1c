# SPDX-License-Identifier: Apache-2.0
"""containerd's gRPC services, one module per service: decode, call, answer. `server.rpc` maps the errors."""
