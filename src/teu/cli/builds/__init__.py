# SPDX-License-Identifier: Apache-2.0
"""`build` and `builder` by BuildKit's own protocol, which dockerd, teud and teu-buildkitd speak. Loaded by
those commands.

    modern, classic  `build` with BuildKit and without
    request          the command line as a request to the builder; contexts, outputs, repository: parts of it
    wire, messages   the way to the builder: gRPC over a connection that the engine hands over, messages as tables
    session          what the builder asks of us meanwhile: sending and receiving (folders, files), store (blobs),
                     keys (credentials, secrets, ssh agents)
    solve            a build from its begin to its end, or a question to its frontend
    progress         what is known of a build's steps; plain and screen show it; failure tells where it broke
    result           what a build came to
    manage, history  du, prune, ls, inspect; builds that were

Not grpcio, nor protobuf: their import takes longer than all that `teu` does in a build whose steps are cached.
"""
