# SPDX-License-Identifier: Apache-2.0
"""`build`: an image, or files, from a Dockerfile. By BuildKit's protocol where the engine speaks it, else, or with
DOCKER_BUILDKIT=0, by the classic request. What it does is in the package `builds`; here are its options."""

from __future__ import annotations

import os

from teu.cli.builds.wire import Builder, BuildError, NoBuilder, address_of, described
from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import FALSE, TRUE, Options

# Options of BuildKit alone.
MODERN = (
    "allow",
    "annotation",
    "attest",
    "build-context",
    "cache-to",
    "call",
    "check",
    "load",
    "metadata-file",
    "no-cache-filter",
    "output",
    "policy",
    "print",
    "provenance",
    "push",
    "sbom",
    "secret",
    "ssh",
)


def build(cli: Cli, options: Options, operands: list[str]) -> int:
    wanted = os.environ.get("DOCKER_BUILDKIT", "")
    if wanted and wanted not in TRUE | FALSE:
        raise CommandError(
            "DOCKER_BUILDKIT environment variable expects boolean value: "
            f'strconv.ParseBool: parsing "{wanted}": invalid syntax'
        )
    if not options["disable-content-trust"]:
        from teu.cli.registry import refuse_trust  # 1 ms, on the way to an error

        refuse_trust(options)
    address = address_of(cli, options["builder"])
    if wanted in FALSE and not address:
        return by_classic(cli, options, operands)
    try:
        builder = Builder(cli, address)
        workers = builder.stream("ListWorkers", "ListWorkersRequest")
    except NoBuilder:
        return by_classic(cli, options, operands)
    except BuildError as error:
        raise CommandError(f"ERROR: {described(error)}") from None
    from teu.cli.builds import modern  # 20 ms, in which the builder looks at its workers

    try:
        return modern.build(cli, options, operands[0], builder, workers)
    finally:
        builder.close()


def by_classic(cli: Cli, options: Options, operands: list[str]) -> int:
    modern = [name for name in MODERN if name in options.changed]
    if modern:
        raise CommandError(
            f"the --{modern[0]} option requires BuildKit, which this engine does not have, or DOCKER_BUILDKIT=0 forbids"
        )
    from teu.cli.builds import classic  # 13 ms, tarfile's

    return classic.build(cli, options, operands)


COMMANDS = {
    "image build": Command(
        build,
        "[OPTIONS] PATH | URL | -",
        1,
        1,
        """
   --add-host       list     Add a line to the hosts file, NAME:ADDRESS (host-gateway for the host's own)
   --allow          list     Let steps have what they need a permission for: network.host, security.insecure, device
   --annotation     list     Annotate the image's manifest or index, [LEVEL:]KEY=VALUE
   --attest         list     Attestations of the image, type=sbom|provenance[,KEY=VALUE]
   --build-arg      list     Set a build-time variable, NAME=VALUE, or NAME to copy ours
   --build-context  list     A further context, NAME=PATH, docker-image://IMAGE, oci-layout://PATH or a URL
   --builder        string   The builder: default (the engine's), or unix://PATH of a buildkitd
   --cache-from     list     Where to look for cached steps, IMAGE or type=registry|local|…,KEY=VALUE
   --cache-to       list     Where to leave the cache, type=inline|registry|local|…,KEY=VALUE
   --call           string=build  What to do: build, check, outline or targets, and format=json after a comma
   --cgroup-parent  string   The slice (or cgroup path) of the build
   --check          bool     Only check the Dockerfile (--call=check)
!  --compress       bool     Compress the context (classic builder)
   --cpu-period     int      Length of the CFS period of a step in microseconds
   --cpu-quota      int      CPU time of a step per period in microseconds
-c --cpu-shares     int      Relative weight of a step's CPU time
   --cpuset-cpus    string   CPUs that steps may run on, as 0-3,5
   --cpuset-mems    string   Memory nodes that steps may use, as 0-1
-f --file           string   The Dockerfile (PATH/Dockerfile), - for the standard input
!  --disable-content-trust  bool=true  Must stay true: signatures are not checked
   --force-rm       bool     Remove intermediate containers of a failed build too (classic builder)
   --iidfile        string   Write the image's ID to this file
!  --isolation      string   Accepted for docker's sake
   --label          list     Attach a label to the image, KEY=VALUE
   --load           bool     Put the image into the engine (-o type=docker)
-m --memory         bytes    Most memory that a step may use
   --memory-swap    swap     Most memory and swap of a step together, -1 for no limit on swap
   --metadata-file  string   Write what the build came to, as JSON, to this file
   --network        string=default  Network of the build: default, host or none
   --no-cache       bool     Do not use the cache
   --no-cache-filter  strings  Do not use the cache for these stages
-o --output         list     Where the result goes, PATH or type=local|tar|oci|docker|image|registry|cacheonly,dest=PATH
   --platform       strings  Platforms of the image, OS[/ARCH[/VARIANT]]
   --policy         list     disabled=true: without the policy in Rego beside the Dockerfile, which only buildx reads
!  --print          string   As --call
   --progress       string=auto  How progress is shown: auto, tty, plain, quiet or rawjson
   --provenance     string   Attest how the image came about (--attest type=provenance): true, false, mode=min|max
   --pull           bool     Look for newer base images
   --push           bool     Push the image to its registry (-o type=registry)
-q --quiet          bool     Show only the image's ID
   --rm             bool=true  Remove intermediate containers (classic builder)
   --sbom           string   Attest what the image consists of (--attest type=sbom): true, false, generator=IMAGE
   --secret         list     A secret for steps that ask for it, id=NAME[,src=PATH|,env=VARIABLE]
   --security-opt   strings  Security options of the build (classic builder)
   --shm-size       bytes    Size of /dev/shm
!  --squash         bool     One layer for all steps (classic builder)
   --ssh            list     An ssh agent or keys for steps that ask for them, default or ID[=SOCKET|KEY[,KEY]]
-t --tag            list     Name of the image, NAME[:TAG]
   --target         string   Build only up to this stage
   --ulimit         list     Limits of processes, NAME=SOFT[:HARD]
""",
    ),
}
