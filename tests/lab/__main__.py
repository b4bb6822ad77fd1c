# SPDX-License-Identifier: Apache-2.0
"""`./dev lab` and `./dev vm`: the labs' command line."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lab import namespace, rootfs

USAGE = """
  ./dev lab                           boot, open a shell, stop when the shell ends
  ./dev lab [options] -- CMD ...      boot, run CMD as root, stop, exit with its status
                                      (where NAME already runs: run in it, and leave it running)
  ./dev lab start   [options]         boot and leave running
  ./dev lab exec    --name N -- CMD   run CMD in the running instance N
  ./dev lab shell   --name N          a shell in it
  ./dev lab stop    --name N          kill its PID 1, and with it all of it
  ./dev lab list                      the running instances
  ./dev lab build   [--release R]     only make the cached root file system

An instance has its own systemd, pid, mount, net (loopback up), uts, ipc and cgroup namespaces; root is
an overlay on the cached root file system, /var/lib is on the host's file system. The source tree is at
/src, read-only. Several instances run at once under different names. Installed, but not started:
docker, containerd, podman, docker-registry (`systemctl start docker`).

With --dev this tree's src/teu, bin/, systemd/ and etc/ stand where the packages would install them;
Python is live (an edit is seen at the program's next start), units and configuration are copied at boot.

Example: a system test, in the instance `me`, kept between runs
  ./dev lab start --name me --dev
  ./dev lab exec --name me -- /usr/bin/python3 -m pytest -p no:cacheprovider /src/tests/system/test_x.py
  ./dev lab stop --name me
"""


def main() -> int:
    """Parse the command line, do it, return the exit status."""
    arguments = sys.argv[1:]
    command: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, command = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="./dev lab",
        usage="./dev lab [VERB] [options] [-- CMD...]",
        description="The namespace lab: Debian with systemd in namespaces of this machine.",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = ["run", "start", "exec", "shell", "stop", "list", "build"]
    parser.add_argument("verb", nargs="?", default="run", choices=verbs, help="default: run")
    parser.add_argument("--name", default="main", help="the instance (default: main)")
    parser.add_argument("--release", default="trixie", choices=rootfs.RELEASES, help="default: trixie")
    parser.add_argument("--dev", action="store_true", help="use this tree in place of installed packages")
    parser.add_argument("--keep", action="store_true", help="leave the instance running afterwards")
    parser.add_argument("--keep-disk", action="store_true", help="keep its files when it stops, for the next start")
    parser.add_argument("--bind", action="append", default=[], metavar="HOST:INSIDE[:ro]", help="show a folder inside")
    parser.add_argument("--env", action="append", default=[], metavar="K=V", help="environment for CMD")
    parser.add_argument("--deb", action="append", default=[], metavar="FILE", help="install this package after boot")
    options = parser.parse_args(arguments)
    source = Path(__file__).resolve().parents[2]
    try:
        return _do(options, command, source)
    except namespace.LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 125


def _do(options: argparse.Namespace, command: list[str], source: Path) -> int:
    if options.verb == "build":
        print(rootfs.ensure(options.release))
        return 0
    if options.verb == "list":
        print("\n".join(namespace.running()))
        return 0
    if options.verb == "stop":
        namespace.stop(options.name)
        return 0
    if options.verb in ("exec", "shell"):
        return namespace.execute(options.name, command or ["bash", "-l"], options.env)
    started = False
    if options.verb == "start" or not namespace.pid_of(options.name):
        began = time.monotonic()
        namespace.start(options.name, options.release, source, options.dev, options.keep_disk, options.bind)
        started = True
        if options.deb:
            _install(options.name, options.deb)
        print(f"lab: {options.name} is up ({time.monotonic() - began:.1f} s)", file=sys.stderr)
    if options.verb == "start":
        return 0
    try:
        return namespace.execute(options.name, command or ["bash", "-l"], options.env)
    finally:
        if started and not options.keep:
            namespace.stop(options.name)


def _install(name: str, debs: list[str]) -> None:
    for deb in debs:
        with open(deb, "rb") as file:
            import subprocess

            target = f"/var/tmp/{Path(deb).name}"
            subprocess.run(namespace.enter_command(name, ["sh", "-c", f"cat >{target}"]), stdin=file, check=True)
    files = [f"/var/tmp/{Path(deb).name}" for deb in debs]
    status = namespace.execute(name, ["apt-get", "install", "-y", "-qq", "--no-download", *files])
    if status:
        raise namespace.LabError(f"apt-get install ended with {status}")


if __name__ == "__main__":
    sys.exit(main())
