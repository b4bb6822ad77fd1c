# SPDX-License-Identifier: Apache-2.0
"""The wires of this daemon: gRPC, the events of shims, metrics over HTTP, and the knock at other daemons' sockets."""
