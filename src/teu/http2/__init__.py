# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 and gRPC's framing, for connections that grpcio cannot be given: those of BuildKit's sessions, from both ends.

hpack        headers, compressed
connection   frames, streams, windows; no I/O
    calls        gRPC's calls over it, messages as bytes
"""
