# SPDX-License-Identifier: Apache-2.0
"""The command line of a build as a request to the builder: exporters, caches, the frontend's options. Called by build.

Names and meanings are buildx's, so that a command line does the same with either.
"""

from __future__ import annotations

import os

from teu.cli.builds import outputs
from teu.cli.builds.contexts import Inputs
from teu.cli.builds.keys import parse_secret
from teu.cli.builds.receiving import Target
from teu.cli.builds.result import descriptor_of
from teu.cli.builds.session import Offer
from teu.cli.builds.store import REF_NAME, Store
from teu.cli.errors import CommandError
from teu.cli.options import FALSE, TRUE, key_values
from teu.cli.registry import check_reference
from teu.cli.run import proxies
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.cli.command import Cli
    from teu.cli.options import Options

FRONTEND = "dockerfile.v0"
SNAPSHOTTER = "org.mobyproject.buildkit.worker.snapshotter"
GATEWAY_IP = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"
DEFAULT_PROVENANCE = "mode=min,inline-only=true"
# Limits of steps: the options, and what the frontend calls them; of which version of BuildKit on.
LIMITS = {
    "memory": "memory",
    "memory-swap": "memswap",
    "cpu-shares": "cpushares",
    "cpu-period": "cpuperiod",
    "cpu-quota": "cpuquota",
    "cpuset-cpus": "cpusetcpus",
    "cpuset-mems": "cpusetmems",
}
LIMITED = (0, 31)
OWN_MARK = "+teu."  # in the version of teu-buildkitd, which has had them from the begin
DOCUMENTS = {
    "Multi-platform build": "https://docs.docker.com/go/build-multi-platform/",
    "OCI exporter": "https://docs.docker.com/go/build-exporters/",
    "Docker exporter": "https://docs.docker.com/go/build-exporters/",
    "Cache export": "https://docs.docker.com/go/build-cache-backends/",
    "Attestation": "https://docs.docker.com/go/attestations/",
}


class Engine:
    """What the builder says of itself that decides about requests."""

    def __init__(self, labels: dict[str, str], own: bool, version: str = "") -> None:
        """labels: of its worker. own: it is the engine's builder, which puts images into the engine's store."""
        self.own = own
        numbers = tuple(int(part) for part in version.removeprefix("v").split(".")[:2] if part.isdecimal())
        self.limits = OWN_MARK in version or numbers >= LIMITED
        self.whole = not own or SNAPSHOTTER in labels  # it keeps indexes, and may export anything
        self.gateway = labels.get(GATEWAY_IP, "")

    def need(self, feature: str) -> None:
        if not self.whole:
            raise CommandError(
                f"{feature} is not supported for the docker driver.\n"
                "Switch to an engine whose images are in containerd's store, and try again.\n"
                f"Learn more at {DOCUMENTS[feature]}"
            )


def variables(values: list[str]) -> dict[str, str]:
    """--build-arg: NAME=VALUE, or NAME for that of our environment, which is left out where it has none."""
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if equals:
            found[name] = text
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


class Request:
    """One build: `fields` for Solve, `offer` for its session."""

    def __init__(self, cli: Cli, options: Options, engine: Engine) -> None:
        self.offer = Offer(cli.config)
        self.inputs = Inputs(self.offer)
        self.outputs: list[outputs.Output] = []
        self.push: list[str] = []  # names that the engine is to push when all is built
        self._caches: list[Store] = []  # folders that get a cache
        self._layouts: dict[str, list[str]] = {}  # folders that get a result: its names
        self._cli = cli
        self._options = options
        self._engine = engine
        self._attributes = self.inputs.attributes
        self._entitlements = list(options["allow"])
        self._exports: list[dict[str, Any]] = []

    def make(self, where: str) -> dict[str, Any]:
        """The fields of Solve. CommandError for what cannot be asked for."""
        options = self._options
        self.inputs.add(where, options["file"])
        beside = os.path.join(self.offer.folders.get("dockerfile", ""), self._attributes["filename"] + ".rego")
        if options["policy"] or ("dockerfile" in self.offer.folders and os.path.lexists(beside)):
            from teu.cli.builds import policy  # 0.3 ms, which no other build pays

            policy.check_rego(options["policy"], beside)
        for text in options["build-context"]:
            self.inputs.add_named(text)
        for text in options["secret"]:
            identifier, secret = parse_secret(text)
            self.offer.secrets[identifier] = secret
        for text in options["ssh"]:
            self.offer.agents.add(text)
        arguments = variables(options["build-arg"])
        self._platforms()
        self._attest()
        self._frontend(arguments)
        self._export(outputs.parse_outputs(options), arguments)
        imports = [entry for text in options["cache-from"] if (entry := self._cache_source(text))]
        if imports:  # the frontend looks for them, with what it has read of the Dockerfile
            self._attributes["cache-imports"] = jsontext.dumps(imports)
        exports = [self._cache_target(text) for text in options["cache-to"]]
        if arguments.get("BUILDKIT_INLINE_CACHE") in TRUE:
            exports.append({"Type": "inline", "Attrs": {}})
        fields: dict[str, Any] = {
            "Frontend": FRONTEND,
            "FrontendAttrs": self._attributes,
            "Cache": {"Exports": exports, "Imports": imports},
            "Entitlements": self._entitlements,
            "Exporters": self._exports,
        }
        if os.environ.get("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"):
            from teu.cli.builds import policy  # 0.3 ms, which no other build pays

            fields["SourcePolicy"] = policy.read()
        if self._exports:  # for builders that know one exporter alone
            fields["ExporterDeprecated"] = self._exports[0]["Type"]
            fields["ExporterAttrsDeprecated"] = self._exports[0]["Attrs"]
        return fields

    def _platforms(self) -> None:
        options = self._options
        given = options["platform"] or [os.environ.get("DOCKER_DEFAULT_PLATFORM", "")]
        platforms = [part.strip() for value in given for part in value.split(",") if part.strip()]
        if len(platforms) > 1:
            self._engine.need("Multi-platform build")
        if platforms:
            self._attributes["platform"] = ",".join(dict.fromkeys(platforms))

    def _attest(self) -> None:
        given = outputs.parse_attestations(self._options)
        wanted = {kind: text for kind, text in given.items() if text is not None}
        if wanted:
            self._engine.need("Attestation")
        for kind, text in wanted.items():
            self._attributes[f"attest:{kind}"] = text
        off = os.environ.get("BUILDX_NO_DEFAULT_ATTESTATIONS", "")
        if off and off not in TRUE | FALSE:
            raise CommandError(
                f'invalid BUILDX_NO_DEFAULT_ATTESTATIONS: strconv.ParseBool: parsing "{off}": invalid syntax'
            )
        if "provenance" not in given and self._engine.whole and off not in TRUE:
            self._attributes["attest:provenance"] = DEFAULT_PROVENANCE
        folders = self.offer.folders
        if "attest:provenance" in self._attributes and "context" in folders and "context" not in self._attributes:
            from teu.cli.builds import repository  # 0.3 ms, for provenance alone

            self._attributes.update(repository.attributes(folders["context"], folders.get("dockerfile", "")))

    def _frontend(self, arguments: dict[str, str]) -> None:
        options, attributes = self._options, self._attributes
        if options["pull"]:
            attributes["image-resolve-mode"] = "pull"
        elif self._engine.own:
            attributes["image-resolve-mode"] = "local"
        if options["target"]:
            attributes["target"] = options["target"]
        stages = [part for value in options["no-cache-filter"] for part in value.split(",") if part]
        if options["no-cache"]:
            attributes["no-cache"] = ""
        elif stages:
            attributes["no-cache"] = ",".join(stages)
        if options["no-cache"] and stages:
            raise CommandError("--no-cache and --no-cache-filter are currently not allowed to be used together")
        for name, value in arguments.items():
            attributes[f"build-arg:{name}"] = value
        for name, value in self._proxies().items():
            attributes.setdefault(f"build-arg:{name}", value)
        if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
            attributes.setdefault("build-arg:SOURCE_DATE_EPOCH", epoch)
        for name, value in key_values(options["label"]).items():
            attributes[f"label:{name}"] = value
        self._surroundings()
        if arguments.get("BUILDKIT_MULTI_PLATFORM") in TRUE:
            attributes["multi-platform"] = "true"

    def _surroundings(self) -> None:
        """What the steps find around them: network, hosts, limits."""
        options, attributes = self._options, self._attributes
        network = options["network"]
        if network in ("host", "none"):
            attributes["force-network-mode"] = network
            if network == "host" and "network.host" not in self._entitlements:
                self._entitlements.append("network.host")
        elif network not in ("", "default"):
            raise CommandError(
                f'network mode "{network}" not supported by buildkit - a build has the network default, host or none'
            )
        hosts = [self._host(text) for text in options["add-host"]]
        if hosts:
            attributes["add-hosts"] = ",".join(hosts)
        if options["shm-size"]:
            attributes["shm-size"] = str(options["shm-size"])
        if options["ulimit"]:
            attributes["ulimit"] = ",".join(_ulimit(text) for text in options["ulimit"])
        if options["cgroup-parent"]:
            attributes["cgroup-parent"] = options["cgroup-parent"]
        if self._engine.limits:
            attributes.update({name: str(options[one]) for one, name in LIMITS.items() if options[one]})

    def _proxies(self) -> dict[str, str]:
        return key_values(proxies(self._cli, []))

    def _host(self, text: str) -> str:
        """NAME:ADDRESS or NAME=ADDRESS, as the frontend wants it."""
        for sign in ("=", ":"):
            name, found, address = text.partition(sign)
            if found and name and address:
                break
        else:
            raise CommandError(f'invalid host {text}: bad format for add-host: "{text}"')
        if address == "host-gateway":
            if not self._engine.gateway:
                raise CommandError("unable to derive the IP value for host-gateway")
            address = self._engine.gateway
        address = address.strip("[]")
        numbers = address.split(".")
        if ":" not in address and not (
            len(numbers) == 4 and all(one.isdecimal() and int(one) < 256 for one in numbers)
        ):
            raise CommandError(f"invalid host {text}: invalid IP address in add-host: {address!r}")
        return f"{name}={address}"

    # Results.

    def _export(self, given: list[outputs.Output], arguments: dict[str, str]) -> None:
        options = self._options
        question = options["call"] not in ("", "build") or options["check"] or options["print"]
        if not given and not question and self._engine.own and os.environ.get("BUILDX_NO_DEFAULT_LOAD") not in TRUE:
            given = [outputs.Output("image", {})]
        if len([one for one in given if one.destination == "-"]) > 1:
            raise CommandError("only one output can be written to the standard output")
        names = [self._tag(text) for text in options["tag"]]
        marks = outputs.parse_annotations(options["annotation"])
        if marks and not question and not any(one.kind in ("image", "oci", "docker") for one in given):
            raise CommandError("annotations are only supported for the image, oci and docker exporters")
        for output in given:
            if output.kind == "cacheonly":
                continue
            if output.kind in ("image", "oci", "docker"):
                if names:
                    output.attributes["name"] = ",".join(names)
                output.attributes.update(marks)
            number = len(self._exports)
            self._where(output, number)
            self.outputs.append(output)
            self._exports.append({"Type": output.kind, "Attrs": output.attributes})

    @staticmethod
    def _tag(name: str) -> str:
        try:
            check_reference(name)
        except CommandError as error:
            raise CommandError(f'invalid tag "{name}": {error.text}') from None
        return name

    def _where(self, output: outputs.Output, number: int) -> None:
        """Say who takes the result: the engine's store, a registry, a folder or a file of ours."""
        kind = output.kind
        if kind == "docker" and not output.destination:
            if not self._engine.own:
                raise CommandError(
                    "this builder has no engine that images could be loaded into: use `-o type=docker,dest=FILE` and "
                    "`teu load -i FILE`"
                )
            kind = output.kind = "image"
        if kind == "image":
            self._image(output)
        elif kind == "local":
            if os.path.exists(output.destination) and not os.path.isdir(output.destination):
                raise CommandError(f"destination directory {output.destination} is a file")
            self.offer.targets[number] = output.destination
        elif kind in ("tar", "oci", "docker"):
            if kind != "tar":
                self._engine.need("OCI exporter" if kind == "oci" else "Docker exporter")
            if kind == "docker" and "," in self._attributes.get("platform", ""):
                raise CommandError(
                    "docker exporter does not support exporting manifest lists, use the oci exporter instead"
                )
            if output.attributes.get("tar") in FALSE:
                self._layout(output)
                return
            target = Target(output.destination)
            target.check()
            self.offer.targets[number] = target
        else:
            raise CommandError(f'unsupported output type "{kind}"')

    def _layout(self, output: outputs.Output) -> None:
        """A result as a folder with an OCI layout (tar=false)."""
        if output.destination in ("", "-"):
            raise CommandError(f"dest is required for {output.kind} output with tar=false")
        if "export" in self.offer.stores:
            raise CommandError("only one output can be a folder with an OCI layout")
        store = self.offer.stores["export"] = Store(output.destination, writes=True)
        store.prepare()
        names = output.attributes.get("name", "")
        self._layouts[output.destination] = [name for name in names.split(",") if name]

    def _image(self, output: outputs.Output) -> None:
        attributes = output.attributes
        pushes = attributes.get("push") in TRUE
        if pushes and not attributes.get("name"):
            raise CommandError("tag is needed when pushing to registry")
        if not self._engine.own:
            return
        output.kind = "moby"
        if pushes and attributes.get("push-by-digest") in TRUE:
            raise CommandError("push-by-digest is currently not implemented for the engine's own builder")
        if pushes and not self._engine.whole:
            # The engine's old store pushes by a request of its own.
            self.push = attributes["name"].split(",")
            del attributes["push"]

    # Caches.

    def _cache_source(self, text: str) -> dict[str, Any] | None:
        """None, with a warning, for a folder without a cache: the first build of a pipeline has none."""
        entry = outputs.parse_cache(text)
        if entry["Type"] == "local":
            attributes = entry["Attrs"]
            folder = attributes.get("src", "")
            if not folder:
                raise CommandError("local cache importer requires src")
            store = Store(folder, writes=False)
            if not attributes.get("digest"):
                attributes["digest"] = store.find(attributes.pop("tag", "latest")) if os.path.isdir(folder) else ""
            if not attributes["digest"]:
                self._cli.warn(f"WARNING: local cache import at {folder} not found: {folder}/index.json names none")
                return None
            self.offer.stores[f"local:{folder}"] = store
        return entry

    def _cache_target(self, text: str) -> dict[str, Any]:
        entry = outputs.parse_cache(text)
        if entry["Type"] != "inline":
            self._engine.need("Cache export")
        if entry["Type"] == "local":
            folder = entry["Attrs"].get("dest", "")
            if not folder:
                raise CommandError("local cache exporter requires dest")
            store = self.offer.stores[f"local:{folder}"] = Store(folder, writes=True)
            store.prepare()
            self._caches.append(store)
        return entry

    def settle(self, answer: dict[str, str]) -> None:
        """Name in the folders with OCI layouts what the build put there."""
        cache = descriptor_of(answer, "cache.manifest")
        for store in self._caches:
            if cache:
                store.name(cache, [{REF_NAME: "latest"}])
        image = descriptor_of(answer, "containerimage.descriptor")
        for folder, names in self._layouts.items():
            if image:
                marks = [{"io.containerd.image.name": name, REF_NAME: name.rpartition(":")[2]} for name in names]
                Store(folder, writes=True).name(image, marks or [{REF_NAME: "latest"}])

    def close(self) -> None:
        self.offer.agents.close()
        self.inputs.close()


def _ulimit(text: str) -> str:
    """NAME=SOFT[:HARD] with both, as the frontend wants it."""
    name, equals, values = text.partition("=")
    soft, colon, hard = values.partition(":")
    if not equals or not _number(soft) or (colon and not _number(hard)):
        raise CommandError(f'invalid argument "{text}" for "--ulimit" flag: invalid ulimit argument: {text}', 125)
    return f"{name}={soft}:{hard or soft}"


def _number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
