# SPDX-License-Identifier: Apache-2.0
"""A vertex of LLB of the kind "exec": a process in a root, with mounts; what it writes are its outputs.

The key is BuildKit's: the whole operation but for what is not of it (addresses of extra hosts, proxies, ids of caches,
selectors), and the platform. What a step reads of a mount that it cannot carry over into an output counts by its
content, so a change beside it redoes nothing; its root counts by what it was made of.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core import errors
from teu.buildkit.core.op import CacheMap, Context, Dependency, Kept, Record, Ref
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import Worker, snapshot
from teu.buildkit.llb import platforms
from teu.buildkit.llb.load import NETWORK_HOST, SECURITY_INSECURE, NotAllowed, Vertex
from teu.buildkit.ops import keys, results
from teu.buildkit.ops.content import failures
from teu.buildkit.ops.mounts import EMPTY, ROOT, Caches, Prepared, Preparing, secret_variables
from teu.buildkit.session.manager import Manager
from teu.buildkit.worker.executor import Box, Executor, Wish, failure, quoted
from teu.buildkit.worker.spec import Limits, Process
from teu.oci import cdi, defaults
from teu.oci import digest as digests

TYPE = "buildkit.exec.v0"


@dataclass
class Steps:
    """What steps run with; one for the whole builder. `sampled`: whether what a step uses is to be looked at."""

    worker: Worker
    executor: Executor
    sessions: Manager
    caches: Caches = field(init=False)
    sampled: Callable[[Context], bool] = lambda context: False
    devices: cdi.Devices = field(default_factory=cdi.Devices)

    def __post_init__(self) -> None:
        self.caches = Caches(self.worker)


class ExecOp:
    def __init__(self, vertex: Vertex, steps: Steps) -> None:
        self._vertex = vertex
        self._op: pb.ExecOp = vertex.op.exec
        self._steps = steps
        self.samples: list[dict[str, Any]] = []  # of its last run, where it was sampled

    # The key

    def cache_key(self, context: Context) -> CacheMap:
        op = pb.ExecOp()
        op.CopyFrom(self._op)
        for host in op.meta.extraHosts:
            host.IP = ""
        for mount in op.mounts:
            mount.selector = ""
            if _cache_name_is_no_matter(mount):
                mount.cacheOpt.ID = ""
                mount.cacheOpt.sharing = pb.SHARED
        op.meta.ClearField("proxy_env")
        if len(op.mounts) == 1 and op.mounts[0] == pb.Mount(
            input=op.mounts[0].input,
            dest=ROOT,
            output=op.mounts[0].output,
            contentCache=op.mounts[0].contentCache,
        ):
            del op.mounts[:]  # the root alone, as of a plain RUN: BuildKit once left mounts out
        value = {"Type": TYPE, "Exec": keys.plain(op), **self._platform_key()}
        return CacheMap(keys.of(value), tuple(self._dependencies()))

    def _platform_key(self) -> dict[str, Any]:
        if self._vertex.op.HasField("platform"):
            one = self._vertex.op.platform
            found = [one.OS, one.Architecture, one.Variant, one.OSVersion, list(one.OSFeatures)]
        else:
            host = platforms.host()
            found = [host.os, host.architecture, host.variant, "", []]
        names = ("Variant", "OSVersion", "OSFeatures")
        more = {name: value for name, value in zip(names, found[2:]) if value}
        return {"OS": found[0], "Arch": found[1], **more}

    def _dependencies(self) -> list[Dependency]:
        count = len(self._vertex.inputs)
        selectors: list[list[str]] = [[] for _ in range(count)]
        by_content = [False] * count
        for mount in self._op.mounts:
            if mount.mountType in (pb.SECRET, pb.SSH, pb.TMPFS) or mount.input == EMPTY:
                continue
            if not 0 <= mount.input < count:
                raise errors.InvalidArgument(f"invalid mountinput {mount.input}")
            selector = posixpath.normpath("/" + mount.selector.lstrip("/"))
            selectors[mount.input].append(selector)
            by_content[mount.input] = _counts_by_content(mount, selector)
        found = []
        for number in range(count):
            joined = b"\0".join(one.encode("utf-8", "surrogateescape") for one in selectors[number])
            selector = digests.of(joined) if selectors[number] else ""
            content = _content(self._steps.worker, _outermost(selectors[number])) if by_content[number] else None
            found.append(Dependency(selector, content))
        return found

    def load(self, context: Context, record: Record, output: int) -> Ref:
        return results.load(self._steps.worker, record)

    # The work

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        op, steps = self._op, self._steps
        meta = op.meta
        what = " ".join(meta.args)
        self._check_platform()
        steps.executor.warm(op.network)
        preparing = Preparing(steps.worker, steps.sessions, steps.caches, context, f"exec {what}", meta.cwd or "/")
        prepared: Prepared | None = None
        try:
            prepared = preparing.prepare(op.mounts, [snapshot(one) for one in inputs])
            context.check()
            process = Process(
                args=tuple(meta.args),
                env=tuple(self._environment()),
                cwd=meta.cwd or "/",
                user=meta.user,
                secrets=tuple(secret_variables(steps.sessions, context.sessions(), op.secretenv)),
            )
            wish = Wish(
                root=prepared.root,
                mounts=prepared.mounts,
                readonly=prepared.readonly,
                network=op.network,
                insecure=op.security == pb.INSECURE,
                hostname=meta.hostname,
                extra_hosts=[(host.Host, host.IP) for host in meta.extraHosts],
                cgroup_parent=meta.cgroupParent,
                limits=limits(meta.ulimit, self._vertex.metadata.linux_resources),
                recursive=meta.removeMountStubsRecursive,
                first=process,
                name=what,
                sampled=steps.sampled(context),
                devices=self._devices(),
            )
            return self._run(context, wish, process, meta.validExitCodes, prepared.commit)
        except errors.Error as error:
            if not isinstance(error, errors.Cancelled):
                error.at_solve(self._vertex.op, description=self._vertex.metadata.description)
                error.kept = self._kept(inputs, prepared)
            raise
        finally:
            if prepared is not None:
                prepared.release()

    def _kept(self, inputs: Sequence[Ref], prepared: Prepared | None) -> Kept:
        """For debuggers: what each mount was, and what the step has made of it."""
        left = prepared.leave() if prepared is not None else {}
        given = [inputs[one.input] if 0 <= one.input < len(inputs) else None for one in self._op.mounts]
        mounts = [left.get(number) or (one and one.clone()) for number, one in enumerate(given)]
        return Kept([one and one.clone() for one in given], mounts)

    def _run(
        self,
        context: Context,
        wish: Wish,
        process: Process,
        valid: Sequence[int],
        commit: Callable[[], Sequence[Ref]],
    ) -> Sequence[Ref]:
        """The step, and what `commit` makes of it where it has done well."""
        box: Box | None = None
        try:
            try:
                box = self._steps.executor.box(wish)
                with context.on_cancel(box.kill):
                    running = box.start(process, lambda data: context.log(1, data), lambda data: context.log(2, data))
                    code = running.wait()
                context.check()
                problem = failure(code, out_of_memory=box.out_of_memory, valid=valid)
                if problem is not None:
                    raise problem
            except errors.Cancelled:
                raise
            except errors.Error as error:
                what = quoted(wish.name)
                raise error.prefixed(f"process {what} did not complete successfully") from error.__cause__
            with box.releasing():
                return commit()
        finally:
            if box is not None:
                box.release()
                if box.samples is not None:
                    self.samples = box.samples.found()

    def _devices(self) -> cdi.Edits:
        """What the devices give that the build was given (llb.devices), as they are now."""
        try:
            return self._steps.devices.edits([one.name for one in self._op.cdiDevices])
        except cdi.Unknown as error:
            raise errors.NotFound(error.args[0]) from None

    def _environment(self) -> list[str]:
        op = self._op
        env = [*op.meta.env]
        if op.meta.HasField("proxy_env"):
            env += proxy_variables(op.meta.proxy_env)
        if not any(entry.startswith("PATH=") for entry in env):
            env.append(f"PATH={defaults.PATH}")
        return env

    def _check_platform(self) -> None:
        if not self._vertex.op.HasField("platform"):
            return
        one = self._vertex.op.platform
        wanted = platforms.normalized(platforms.Platform(one.OS, one.Architecture, one.Variant))
        known = [platforms.parse(text) for text in self._steps.worker.platforms] or [platforms.host()]
        if not any(_runs(wanted, other) for other in known):
            raise errors.Error(
                f"no support for running processes with {wanted} platform, supported: "
                f"{', '.join(str(other) for other in known)}; other architectures need an emulator (binfmt_misc, with"
                " the flag F: qemu-user-static)"
            )


def _runs(wanted: platforms.Platform, there: platforms.Platform) -> bool:
    """Whether a machine of that platform runs what is made for the wanted one: an older variant of its architecture,
    too."""
    same = (wanted.os, wanted.architecture) == (there.os, there.architecture)
    return same and wanted.variant <= there.variant


def _cache_name_is_no_matter(mount: pb.Mount) -> bool:
    """Whether the name of its cache is left out of the key. That of a Dockerfile's plain cache mount, whose name is its
    place, is there: keys were made so before names were left out."""
    if not mount.HasField("cacheOpt"):
        return False
    identity = mount.cacheOpt.ID
    namespaced = "/" in identity and identity.partition("/")[2] == mount.dest
    return not ((identity == mount.dest or namespaced) and mount.cacheOpt.sharing == pb.SHARED)


def _counts_by_content(mount: pb.Mount, selector: str) -> bool:
    """Only where nothing that was not selected can get into an output. Raises InvalidArgument."""
    safe = mount.output == EMPTY or mount.readonly or selector == ROOT
    if mount.contentCache == pb.OFF:
        return False
    if mount.contentCache == pb.ON:
        if not safe:
            raise errors.InvalidArgument(f"invalid mount cache content of {mount.dest}")
        return True
    return safe and mount.dest != ROOT


def _outermost(selectors: Collection[str]) -> list[str]:
    """Those that are not below another one."""
    return sorted(
        one
        for one in set(selectors)
        if not any(one != other and one.startswith(other.rstrip("/") + "/") for other in selectors)
    )


def _content(worker: Worker, selectors: Sequence[str]) -> Callable[[Context, Ref], str]:
    whole = not selectors or ROOT in selectors
    chosen = [Selection()] if whole else [Selection(one, follow=True) for one in selectors]

    def ask(context: Context, ref: Ref) -> str:
        tree = snapshot(ref)
        if tree is None:
            return "sha256:" + hashlib.sha256(b"\0".join(b"scratch" for _ in chosen)).hexdigest()
        with failures(worker, ref):
            return tree.checksum(chosen)

    return ask


def proxy_variables(proxy: pb.ProxyEnv) -> list[str]:
    """In both spellings, as programs look for them."""
    found = []
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"):
        value = getattr(proxy, name)
        if value:
            found += [f"{name.upper()}={value}", f"{name}={value}"]
    return found


def limits(ulimits: Sequence[pb.Ulimit], resources: pb.LinuxResources | None = None) -> Limits:
    asked = tuple((one.Name, one.Soft, one.Hard) for one in ulimits)
    if resources is None:
        return Limits(asked)
    return Limits(
        asked,
        memory=resources.memory,
        swap=resources.memorySwap,
        shares=resources.cpuShares,
        period=resources.cpuPeriod,
        quota=resources.cpuQuota,
        cpus=resources.cpusetCpus,
        mems=resources.cpusetMems,
    )


def check_entitlements(network: int, security: int, entitlements: Collection[str]) -> None:
    """What a process of a frontend's container may not have without the build's consent (CVE-2024-23653): the check
    that load.py makes of steps. Raises NotAllowed."""
    for needed, entitlement in ((network == pb.HOST, NETWORK_HOST), (security == pb.INSECURE, SECURITY_INSECURE)):
        if needed and entitlement not in entitlements:
            raise NotAllowed(f"{entitlement} is not allowed")
