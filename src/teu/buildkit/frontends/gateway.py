# SPDX-License-Identifier: Apache-2.0
"""gateway.v0: any image as a frontend. It runs as a container that asks LLBBridge over its standard streams.

Here is what is run, and whether it may be; how it runs is the Runner's matter (control, over the worker's executor).
The container has no more rights than a step of a build: the image is somebody's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from teu.api.buildkit import gateway_pb2
from teu.buildkit.core import errors
from teu.buildkit.frontends.bridge import Bridge, Request, Result, Tree
from teu.buildkit.llb import build
from teu.oci import jsontext, reference

CAPS_LABEL = "moby.buildkit.frontend.caps"
NETWORK_LABEL = "moby.buildkit.frontend.network.none"
INPUTS_CAP = "moby.buildkit.frontend.inputs"
PRODUCT = "buildkit"  # to whom frontends have to be compatible
IMAGE = "docker-image://"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPTION_MAX = 128 << 10  # bytes of one variable, which is what Linux takes


@dataclass(frozen=True, slots=True)
class Program:
    """A frontend, ready to run. `definition` is the one that its root was made of, serialised, which it finds in
    /run/config/buildkit/metadata/frontend.bin."""

    root: Tree
    name: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    directory: str
    network: bool
    definition: bytes


class Runner(Protocol):
    def run(self, bridge: Bridge, program: Program, request: Request) -> Result:
        """Run it to its end. What it returned, or the error that it returned, or why it did not."""


class Images:
    """Frontends in images. `allowed` are the repositories that they may come from, none for any; `workers` has the
    WorkerInfos that a frontend is told; `enabled` says whether there are frontends of others at all."""

    def __init__(
        self,
        runner: Runner,
        workers: Callable[[], Any],
        allowed: Callable[[], Sequence[str]] = tuple,
        enabled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._runner = runner
        self._workers = workers
        self._allowed = allowed
        self._enabled = enabled

    def solve(self, bridge: Bridge, request: Request) -> Result:
        """Answer a request of gateway.v0. Raises core.errors.Error."""
        return self._runner.run(bridge, self._program(bridge, request), request)

    def _program(self, bridge: Bridge, request: Request) -> Program:
        options = request.options
        if "gateway-devel" in options:
            raise errors.InvalidArgument("development gateway is no longer supported")
        source = options.get("source", "")
        if not source:
            raise errors.InvalidArgument("no source specified for gateway")
        if not self._enabled():
            raise errors.PermissionDenied("frontends of other images are not allowed by the builder's configuration")
        wanted = self._reference(source)
        asked = gateway_pb2.ResolveSourceMetaRequest(LogName=f"resolve image config for {IMAGE}{wanted}")
        asked.Source.identifier = IMAGE + str(wanted)
        asked.Image.SetInParent()
        answer = bridge.source_meta(asked)
        name = answer.Source.identifier.removeprefix(IMAGE)
        if name == answer.Source.identifier:
            raise errors.InvalidArgument(f"a policy made {name} of the frontend, which has to be an image")
        config = _config(answer.Image.Config)
        self._check_caps(request, str((config.get("Labels") or {}).get(CAPS_LABEL) or ""))
        if answer.Image.Digest and "@" not in name:
            name = f"{name}@{answer.Image.Digest}"
        definition = build.image(name, record_type="frontend").definition(bridge.platforms[0])
        solved = bridge.solve(Request(definition, policies=request.policies))
        root = solved.trees.get("")
        if root is None:
            raise errors.Error("gateway source didn't return default result")
        network = str((config.get("Labels") or {}).get(NETWORK_LABEL) or "").lower() not in ("1", "t", "true")
        return Program(
            root,
            name,
            tuple(str(word) for word in config.get("Entrypoint") or ("/run",)),
            self._environment(bridge, options, config.get("Env") or ()),
            str(config.get("WorkingDir") or "/"),
            network,
            definition.SerializeToString(deterministic=True),
        )

    def _reference(self, source: str) -> Any:
        try:
            wanted = reference.parse(source).with_default_tag()
            allowed = [reference.parse(one) for one in self._allowed()]
        except reference.ReferenceError_ as error:
            raise errors.InvalidArgument(f"failed to parse {errors.cut(source, 200)}: {error}") from None
        if allowed and all((one.domain, one.path) != (wanted.domain, wanted.path) for one in allowed):
            raise errors.PermissionDenied(f"'{errors.cut(source, 200)}' is not an allowed gateway source")
        return wanted

    @staticmethod
    def _check_caps(request: Request, label: str) -> None:
        have = {part.partition("+")[0] for part in label.split(",")}
        needed = [part.partition("+")[0] for part in request.options.get("frontend.caps", "").split(",") if part]
        for name in [*needed, *([INPUTS_CAP] if request.inputs else [])]:
            if name not in have:
                raise errors.unsupported_frontend_cap(name)

    def _environment(self, bridge: Bridge, options: Mapping[str, str], given: Sequence[str]) -> tuple[str, ...]:
        result = [str(entry) for entry in given]
        if not any(entry.startswith("PATH=") for entry in result):
            result.append(f"PATH={DEFAULT_PATH}")
        result += [
            f"BUILDKIT_FRONTEND_OPT_{number}={key}={value}"
            for number, (key, value) in enumerate(sorted(options.items()))
        ]
        result += [
            f"BUILDKIT_SESSION_ID={bridge.session}",
            f"BUILDKIT_WORKERS={jsontext.to_bytes(self._workers()).decode()}",
            f"BUILDKIT_EXPORTEDPRODUCT={PRODUCT}",
        ]
        for entry in result:
            if len(entry) >= OPTION_MAX or "\0" in entry:
                raise errors.InvalidArgument(f"an option is too long for a frontend: {errors.cut(entry, 100)}")
        return tuple(result)


def _config(data: bytes) -> dict[str, Any]:
    try:
        document = jsontext.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise errors.InvalidArgument(f"the frontend's image has a configuration that cannot be read: {error}") from None
    config = document.get("config") if isinstance(document, dict) else None
    if config is not None and not isinstance(config, dict):
        raise errors.InvalidArgument("the frontend's image has a configuration that cannot be read")
    config = config or {}
    for key, kind in (("Env", list), ("Entrypoint", list), ("Labels", dict)):
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise errors.InvalidArgument(f"the frontend's image has a {key} that cannot be read")
    return config
