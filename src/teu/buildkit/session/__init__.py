# SPDX-License-Identifier: Apache-2.0
"""Sessions: the client of a build as the server of its files, secrets, credentials, agents, and of a place for results.

    manager      which sessions there are; waits for one that is to come; ends them
    rpc          gRPC calls over the connection, which is teu.http2's
    fsutil       the protocol of folders; filesync, auth, secrets, ssh, upload, content, exporter: what they serve

Why not grpcio: it cannot be given a connection, only an address. A socket pair behind a private listener works and was
measured: one packet of a folder costs 95 microseconds of this process (50 without the bridge), and an unchanged
context of 10,000 files is 10,000 packets. Here it is read from the stream as it comes, many packets at a time.
"""
