# SPDX-License-Identifier: Apache-2.0
"""A process that works on the files of one container: stat, tar and untar for cp and export. cp.py starts it.

    python3 -IS visitor.py ROOT-FD VERB JSON      stat: JSON on stdout; tar: archive on stdout;
                                                  untar: archive on stdin

Exit status 0; or 1 with {"kind": "missing"|"no place"|"refused"|"error", "message": …} on stderr.

It is root, and everything that it looks at was made by somebody who is not to be trusted: the container's tree, an
archive. So before the first look it gives away what it does not need (`confine`):

  its root folder   is an empty, read-only file system. No path, neither the host's nor the container's, is ever found
                    by the interpreter or the C library: no module, codec, time zone, name service (CVE-2019-14271).
  the container     is a descriptor. What is in it is opened by openat2, which keeps links and ".." inside.
  imports           are off; all modules are there before.
  capabilities      are those for owners, modes, devices and file capabilities; no new ones come by an exec.

Whatever is raised ends in one line and `_exit`: there are no tracebacks, no hooks, no destructors, no flushes.
"""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, os.path.abspath(__file__).removesuffix("/teu/engine/files/visitor.py"))
sys.path.append("/usr/lib/python3/dist-packages")  # zstandard

from teu.engine.files import packing, unpacking
from teu.engine.files.paths import Missing, NoPlace, Refused
from teu.linux import capabilities
from teu.linux.mounts import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    new_filesystem,
)
from teu.linux.syscalls import PR_SET_NO_NEW_PRIVS, prctl
from teu.oci import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from teu.engine.files.paths import Asked

MOUNT_ATTRIBUTES = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
KEPT = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_SETFCAP",
]
MESSAGE_MAX = 1000  # characters: paths and names may be as long as they like


def confine() -> None:
    """See above. The working folder is that of the process's own descriptors, under their numbers: what has no call
    that takes a descriptor is done through "NUMBER"."""
    own = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(new_filesystem("tmpfs", "", [], MOUNT_ATTRIBUTES))
    os.chroot(".")
    os.fchdir(own)
    sys.meta_path.clear()
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.excepthook = sys.unraisablehook = _nothing
    keep, _ = capabilities.mask(KEPT)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    capabilities.limit(keep & capabilities.permitted())


def _nothing(*arguments: object) -> None:
    """In the place of the hooks that print."""


def task(root: int, verb: str, options: Asked) -> Callable[[], None]:
    """What is to be done, with all that it needs imported."""
    if verb == "stat":
        return lambda: packing.write(json.dumps(packing.describe(root, options["path"])).encode())
    if verb == "tar":
        return lambda: packing.pack(root, options["path"], options["whole"], options.get("attributes", False))
    archive = unpacking.Input()
    return lambda: unpacking.unpack(root, archive, options)


def main() -> None:
    code = 1
    try:
        os.umask(0)
        work = task(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
        confine()
        work()
        code = 0
    except BrokenPipeError:
        pass  # who asked has gone
    except Missing as error:
        _tell("missing", str(error))
    except NoPlace as error:
        _tell("no place", str(error))
    except Refused as error:
        _tell("refused", str(error))
    except tar.TarError as error:
        _tell("error", f"invalid tar archive: {error}")
    except OSError as error:
        _tell("error", error.strerror or os.strerror(error.errno or 0), error.filename)
    except MemoryError:
        _tell("error", "out of memory")
    except BaseException as error:
        _tell("error", f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _tell(kind: str, message: str, path: object = None) -> None:
    if isinstance(path, (str, bytes)):
        message = f"{os.fsdecode(path)}: {message}"
    if len(message) > MESSAGE_MAX:
        message = f"{message[: MESSAGE_MAX // 2]}…{message[-MESSAGE_MAX // 2 :]}"
    os.write(2, json.dumps({"kind": kind, "message": message}).encode())


if __name__ == "__main__":
    main()
