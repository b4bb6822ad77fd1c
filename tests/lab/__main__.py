# SPDX-License-Identifier: Apache-2.0
"""`./dev lab` and `./dev vm`: the labs' command line."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lab import clients, goprograms, namespace, newer, rootfs, vm

USAGE = """
  ./dev lab                           build the packages, boot, install them, open a shell, stop when it ends
  ./dev lab [options] -- CMD ...      the same with CMD as root in place of the shell; exits with its status
                                      (where NAME already runs: only run in it, and leave it running;
                                      with --dev or --bare: no packages)
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

A system test in an instance that is kept between runs: ./dev system. The same by hand, in the instance `me`:
  ./dev lab start --name me --dev
  ./dev lab exec --name me -- /usr/bin/python3 -m pytest -p no:cacheprovider /src/tests/system/test_x.py
  ./dev lab stop --name me
"""


VM_USAGE = """
  ./dev vm                            build the packages, switch on, install them, open a shell, switch off
  ./dev vm [options] -- CMD ...       the same with CMD as root in place of the shell; exits with its status
                                      (with --dev or --bare: no packages)
  ./dev vm start   [options]          switch on and leave on
  ./dev vm exec    --name N -- CMD    run CMD in N
  ./dev vm shell   --name N           a shell in it
  ./dev vm cut     --name N           power cut: kill QEMU, keep the disk; start boots from it again
  ./dev vm stop    --name N           switch off (with --keep-disk: as cut) and forget the disk
  ./dev vm list                       the machines that are on
  ./dev vm build   [--release R]      only make the cached image

Every cgroup v2 controller, AppArmor, Debian's own kernel. The source tree (and dist/) is copied to /src at
each start. KVM where it works, else emulation, which is about ten times slower. The only network is
restricted to the machine.
"""


def main() -> int:
    """Parse the command line, do it, return the exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--vm"]:
        return vm_main(arguments[1:])
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
    parser.add_argument(
        "--newer", action="store_true", help="show docker of Debian's next release, and a plugin of NRI, inside"
    )
    parser.add_argument("--clients", action="store_true", help="show clients that Debian does not have inside")
    parser.add_argument("--bind", action="append", default=[], metavar="HOST:INSIDE[:ro]", help="show a folder inside")
    parser.add_argument("--env", action="append", default=[], metavar="K=V", help="environment for CMD")
    parser.add_argument("--deb", action="append", default=[], metavar="FILE", help="install this package after boot")
    parser.add_argument("--packages", action="store_true", help="install dist/*.deb after boot")
    parser.add_argument("--bare", action="store_true", help="without a verb: install nothing")
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
    if options.packages:
        options.deb += [str(path) for path in sorted((source / "dist").glob("*.deb"))]
    started = False
    if options.verb == "start" or not namespace.pid_of(options.name):
        began = time.monotonic()
        binds = [*options.bind, *([f"{newer.ensure()}:{newer.INSIDE}:ro"] if options.newer else [])]
        binds += [f"{each.ensure()}:{each.inside}:ro" for each in goprograms.ALL] if options.newer else []
        binds += [f"{clients.ensure()}:{clients.INSIDE}:ro"] if options.clients else []
        namespace.start(options.name, options.release, source, options.dev, options.keep_disk, binds)
        started = True
        if options.deb:
            try:
                namespace.install_packages(options.name, options.deb)
            except BaseException:
                namespace.stop(options.name)
                raise
        print(f"lab: {options.name} is up ({time.monotonic() - began:.1f} s)", file=sys.stderr)
    if options.verb == "start":
        return 0
    try:
        return namespace.execute(options.name, command or ["bash", "-l"], options.env)
    finally:
        if started and not options.keep:
            namespace.stop(options.name)


def vm_main(arguments: list[str]) -> int:
    """`./dev vm`."""
    command: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, command = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="./dev vm",
        usage="./dev vm [VERB] [options] [-- CMD...]",
        description="The VM lab: Debian with its own kernel under QEMU.",
        epilog=VM_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = ["run", "start", "exec", "shell", "stop", "cut", "list", "build"]
    parser.add_argument("verb", nargs="?", default="run", choices=verbs, help="default: run")
    parser.add_argument("--name", default="main", help="the machine (default: main)")
    parser.add_argument("--release", default="trixie", choices=rootfs.RELEASES, help="default: trixie")
    parser.add_argument("--dev", action="store_true", help="use this tree in place of installed packages")
    parser.add_argument("--keep", action="store_true", help="leave the machine on afterwards")
    parser.add_argument("--keep-disk", action="store_true", help="stop: keep the disk for the next start")
    parser.add_argument("--packages", action="store_true", help="install dist/*.deb after boot")
    parser.add_argument("--bare", action="store_true", help="without a verb: install nothing")
    parser.add_argument("--memory", default="3G", help="default: 3G")
    parser.add_argument("--accel", default="", choices=["", "kvm", "tcg"], help="default: what works")
    parser.add_argument("--env", action="append", default=[], metavar="K=V", help="environment for CMD")
    options = parser.parse_args(arguments)
    try:
        return _do_vm(options, command, Path(__file__).resolve().parents[2])
    except namespace.LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 125


def _do_vm(options: argparse.Namespace, command: list[str], source: Path) -> int:
    name = options.name
    if options.verb == "build":
        print(vm.ensure(options.release))
    elif options.verb == "list":
        print("\n".join(vm.running()))
    elif options.verb == "cut":
        vm.power_cut(name)
    elif options.verb == "stop":
        vm.stop(name, options.keep_disk)
    elif options.verb in ("exec", "shell"):
        return vm.run(name, command or ["bash", "-l"], options.env)
    else:
        started = not vm.pid_of(name)
        if started or options.verb == "start":
            began = time.monotonic()
            way = vm.start(name, options.release, source, options.accel, options.memory)
            if options.dev or options.packages:
                try:
                    if options.dev:
                        vm.install_tree(name)
                    if options.packages:
                        vm.install_packages(name)
                except BaseException:
                    vm.stop(name)
                    raise
            print(f"lab: {name} is up with {way} ({time.monotonic() - began:.1f} s)", file=sys.stderr)
        if options.verb == "run":
            try:
                return vm.run(name, command or ["bash", "-l"], options.env)
            finally:
                if started and not options.keep:
                    vm.stop(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
