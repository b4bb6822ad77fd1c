# SPDX-License-Identifier: Apache-2.0
"""ttrpc: containerd's protocol between its daemon and its shims.

`frames` is the framing, `codec` turns messages (plain dicts) into protobuf bytes by the field tables
in `messages`, `server` serves inside the shim's event loop, `client` is the daemon's end.  There is
no protobuf library here on purpose: the shim is one process per container, and that library would
be most of its memory.
"""
