# SPDX-License-Identifier: Apache-2.0
"""How a shim's program is found, started and asked to clean up: containerd's protocol of shim binaries.

`containerd-shim-NAME-VERSION … start` prints where the shim listens, `… delete` removes what a dead one has left.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess

from teu.api.types import introspection_pb2
from teu.containerd.core import errors
from teu.containerd.core.messages import Packed
from teu.containerd.runtime.bundle import Bundles
from teu.containerd.runtime.processes import with_given_limits
from teu.containerd.runtime.shim import Bootstrap, Exit, Shim
from teu.containerd.runtime.zygote import SHIM_BINARY, Zygote, ZygoteGone, ZygoteRefused
from teu.oci import jsontext
from teu.ttrpc import messages as m

log = logging.getLogger("teu.containerd.shims")

OWN_RUNTIME = "io.containerd.teu.v2"
TASK_API_VERSION_MAX = 3

# seconds
START_TIMEOUT = 60.0
CLEANUP_TIMEOUT = 60.0
# of cleaning up, where what does it is killed
CLEANUP_ATTEMPTS = 5
INFO_TIMEOUT = 30.0


def binary_name(runtime: str) -> str:
    """io.containerd.runc.v2 is containerd-shim-runc-v2; an absolute path is itself."""
    if runtime.startswith("/"):
        return runtime
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts[-2:]):
        raise errors.InvalidArgument(f'invalid runtime name "{runtime}", expected for instance {OWN_RUNTIME}')
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


def find_binary(runtime: str) -> str:
    """The shim's program for a runtime name."""
    name = binary_name(runtime)
    path = name if name.startswith("/") else shutil.which(name)
    if name.startswith("/") and not os.path.exists(name):
        raise errors.NotFound(f"invalid custom binary path: stat {name}: no such file or directory")
    if not path or not os.access(path, os.X_OK):
        raise errors.NotFound(f'runtime "{runtime}" binary not installed "{name}": file does not exist')
    return path


def binary_to_start(runtime: str) -> str:
    """`find_binary` for a shim that is to be started; an error says so, in containerd's words."""
    try:
        return find_binary(runtime)
    except errors.Error as error:
        raise type(error)(f"failed to start shim: failed to resolve runtime path: {error.message}") from error


def parse_bootstrap(output: bytes) -> Bootstrap:
    """What a shim's `start` printed: JSON (version 2 and 3), a protobuf message (later ones), or an address."""
    text = output.strip()
    if text.startswith(b"{"):
        parameters = jsontext.loads(text)
    elif text.startswith((b"unix:", b"/")) or not text:
        parameters = {"version": 2, "address": text.decode(), "protocol": "ttrpc"}
    else:
        parameters = m.decode("containerd.runtime.bootstrap.v1.BootstrapResult", output)
    version = parameters.get("version") or 2
    if version > TASK_API_VERSION_MAX:
        raise errors.Unimplemented(f"unsupported shim version ({version})")
    if not parameters.get("address"):
        raise errors.Unknown("the shim told no address")
    protocol = parameters.get("protocol") or "ttrpc"
    if protocol != "ttrpc":
        raise errors.Unimplemented(f'unsupported shim protocol "{protocol}"')
    return Bootstrap(version, parameters["address"], protocol)


def runtime_info(runtime: str, options: Packed) -> introspection_pb2.RuntimeInfo:
    """What a shim's program tells of itself (its `-info`): containerd.types.RuntimeInfo (blocking).

    `runtime` is a name or a path, "" for our own; raises NotFound for one that is not installed, Unknown where the
    program fails."""
    binary = find_binary(runtime or OWN_RUNTIME)
    try:
        done = subprocess.run(
            [binary, "-info"],
            input=options.SerializeToString(),
            capture_output=True,
            timeout=INFO_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip()
        raise errors.Unknown(f"{binary} -info: {detail or error}") from error
    return introspection_pb2.RuntimeInfo.FromString(done.stdout)


class Programs:
    """Runs the programs of shims, warm by the zygote where it can. Everything here blocks."""

    def __init__(
        self, bundles: Bundles, *, address: str, ttrpc_address: str, zygote: Zygote | None = None, debug: bool = False
    ) -> None:
        self._bundles = bundles
        self._address = address
        self._ttrpc_address = ttrpc_address
        self._zygote = zygote
        self._debug = debug

    def environment(self, namespace: str) -> dict[str, str]:
        """The environment of a shim's program, as containerd's protocol has it."""
        return dict(
            os.environ,
            TTRPC_ADDRESS=self._ttrpc_address,
            GRPC_ADDRESS=self._address,
            NAMESPACE=namespace,
            MAX_SHIM_VERSION=str(TASK_API_VERSION_MAX),
        )

    def command(self, shim: Shim, *args: str) -> list[str]:
        """The command line of a shim's program, with the last words `args`."""
        command = [
            shim.binary,
            "-namespace",
            shim.namespace,
            "-address",
            self._address,
            "-publish-binary",
            "/usr/sbin/teu-containerd",
            "-id",
            shim.id,
        ]
        return [*command, *(["-debug"] if self._debug else []), *args]

    def _start_cold(self, shim: Shim, options: bytes) -> Bootstrap:
        """Run the shim's `start` (blocking)."""
        try:
            done = subprocess.run(
                with_given_limits(self.command(shim, "start")),
                input=options,
                capture_output=True,
                cwd=shim.bundle,
                env=self.environment(shim.namespace),
                timeout=START_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise errors.DeadlineExceeded(f"{shim.binary} start took over {START_TIMEOUT:.0f} s") from error
        except OSError as error:
            raise errors.Unknown(f"cannot run {shim.binary}: {error.strerror}") from error
        if done.returncode:
            reason = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise errors.Unknown(f"{reason}: exit status {done.returncode}")
        return parse_bootstrap(done.stdout)

    def start(self, shim: Shim, options: bytes) -> Bootstrap:
        """Start a shim for its bundle, warm where possible (blocking)."""
        if self._zygote and os.path.basename(shim.binary) == SHIM_BINARY:
            try:
                address = self._zygote.start_shim(
                    namespace=shim.namespace,
                    container=shim.id,
                    bundle=shim.bundle,
                    address=self._address,
                    ttrpc_address=self._ttrpc_address,
                    debug=self._debug,
                )
                return Bootstrap(TASK_API_VERSION_MAX, address)
            except ZygoteGone:
                pass
            except ZygoteRefused as error:
                raise errors.Unknown(f"start the shim: {error}") from error
        return self._start_cold(shim, options)

    def delete(self, shim: Shim) -> Exit:
        """Run the shim's `delete` and remove the bundle (blocking); task.DeleteResponse.

        A sandbox of our own shim has no process and no mount: where the shim ends by itself, its `delete` would start a
        program, 45 ms, that finds nothing."""
        answer = Exit(255)
        if not os.path.isdir(shim.bundle):
            return answer
        if not (shim.dismissed and shim.is_ours):
            answer = self._clean_up(shim)
        try:
            self._bundles.remove(shim.bundle)
        except OSError as error:
            log.error("the bundle of %s/%s: %s", shim.namespace, shim.id, error, extra=shim.fields)
        return answer

    def _clean_up(self, shim: Shim) -> Exit:
        """Run the shim's `delete` (blocking)."""
        answer = Exit(255)
        try:
            for _ in range(CLEANUP_ATTEMPTS):
                done = subprocess.run(
                    with_given_limits(self.command(shim, "-bundle", shim.bundle, "delete")),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    cwd=shim.bundle,
                    env=self.environment(shim.namespace),
                    timeout=CLEANUP_TIMEOUT,
                    check=False,
                )
                if done.returncode >= 0:
                    break
            done.check_returncode()
            answer = Exit.told(m.decode("task.DeleteResponse", done.stdout))
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            detail = getattr(error, "stderr", b"") or b""
            log.error(
                "clean-up of %s/%s: %s %s",
                shim.namespace,
                shim.id,
                error,
                detail.decode(errors="replace"),
                extra=shim.fields,
            )
        return answer
