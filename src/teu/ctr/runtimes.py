# SPDX-License-Identifier: Apache-2.0
"""`plugins inspect-runtime`: what a runtime says of itself."""

from __future__ import annotations

import json

from google.protobuf.any_pb2 import Any as AnyMessage

from teu.api.types import introspection_pb2 as types
from teu.api.types.runc.options import oci_pb2
from teu.ctr.client import introspection_pb2 as pb
from teu.ctr.commands import RUNTIME, Command, Ctr
from teu.ctr.flags import Options
from teu.ctr.output import show_json
from teu.ctr.run import OPTIONS_TYPE, runtime_options


def _told(options: AnyMessage) -> dict[str, object] | None:
    """The options of runc's shims that are set."""
    if options.type_url.rpartition("/")[2] != OPTIONS_TYPE:
        return None
    return {field.name: value for field, value in oci_pb2.Options.FromString(options.value).ListFields()}


def inspect_runtime(ctr: Ctr, options: Options, operands: list[str]) -> None:
    """What a runtime says that it can do, in the runtime-spec's "features", asked through the daemon."""
    asked = types.RuntimeRequest(runtime_path=options["runtime"])
    if (given := runtime_options(options)) is not None:
        asked.options.CopyFrom(given)
    request = pb.PluginInfoRequest(type="io.containerd.runtime.v2", id="task")
    request.options.type_url, request.options.value = asked.DESCRIPTOR.full_name, asked.SerializeToString()
    found = types.RuntimeInfo.FromString(ctr.client.introspection.PluginInfo(request).extra.value)
    show_json(
        {
            "Name": found.name,
            "Version": {"Version": found.version.version, "Revision": found.version.revision},
            "Options": _told(found.options),
            "Features": json.loads(found.features.value) if found.features.value else None,
            "Annotations": dict(found.annotations) or None,
        }
    )


COMMANDS = {
    "plugins inspect-runtime": Command(
        inspect_runtime,
        "[flags]",
        f"""
runtime      string={RUNTIME}  Runtime name, or path of a shim
runtime-config-path  string  Configuration of another runtime than runc's
runc-binary  string   The OCI runtime that the shim is to use
runc-root    string   The OCI runtime's folder of state
runc-systemd-cgroup  bool  Let the OCI runtime ask systemd for the cgroup
""",
    ),
}
