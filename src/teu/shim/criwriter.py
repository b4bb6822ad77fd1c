# SPDX-License-Identifier: Apache-2.0
"""The log of a pod's container whose shim is another one, which knows no logs of Kubernetes: a process that reads what
that shim writes. Started by teu-containerd as `containerd-shim-teu-v2 -bundle FOLDER cri-log`.

    FOLDER/log.json         {"log": the file, "" for none; "cgroup": the folder of a cgroup to stand in, "" for none}
    FOLDER/stdout, stderr   FIFOs; a terminal has no second one. They are removed when all is written
    FOLDER/stdin            a FIFO, if the container has an input: it is held open, as clients come and go
    FOLDER/attach           made here: a socket for those who look on

The command ends when all is there; what it leaves behind ends with the last writer of the FIFOs, or with SIGTERM.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from teu.oci import jsontext
from teu.shim.crilog import LogFile
from teu.shim.loop import Loop

CONFIG, STDIN, ATTACH = "log.json", "stdin", "attach"
OUTPUTS = ("stdout", "stderr")


def main(folder: str) -> int:
    """The exit status of the command. OSError, ValueError."""
    with open(os.path.join(folder, CONFIG), "rb") as config:
        told = jsontext.loads(config.read())
    file = LogFile(told["log"], attach=os.path.join(folder, ATTACH))
    for name in OUTPUTS:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            # The kernel tells of an end only when there has been a writer.
            file.read_from(name, os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    if os.path.exists(os.path.join(folder, STDIN)):
        os.open(os.path.join(folder, STDIN), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    if os.fork():
        return 0
    os.setsid()
    _settle(told["cgroup"])
    try:
        _serve(file)
        for name in OUTPUTS:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
    finally:
        os._exit(0)


def _settle(cgroup: str) -> None:
    """Let go of all that is the caller's."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    os.chdir("/")
    if cgroup:
        try:
            with open(os.path.join(cgroup, "cgroup.procs"), "w") as file:
                file.write(str(os.getpid()))
        except OSError:
            pass  # it stays with the daemon, whose end leaves it alone


def _serve(file: LogFile) -> None:
    loop = Loop()
    file.start(loop)
    file.ended.then(lambda _: file.finish())
    file.drained.then(lambda _: loop.stop())
    loop.on_signal(signal.SIGTERM, file.close)
    loop.run()
    file.close()
