# SPDX-License-Identifier: Apache-2.0
"""`teu-ctr` against the whole of Debian's `ctr`: every command, alias and flag of its help; what they do besides what
test_ctr.py compares: conversion, sandboxes, programs of images, profiles, progress."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import re
import shlex
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peers
import pytest
from test_cli_terminal import Terminal
from test_ctr import TEU_CTR, Side, normal
from test_ctr import side as side  # a fixture

# Debian 12 has ctr 1.6, which has other commands and flags.
pytestmark = pytest.mark.needs("ctr", "containerd", "trixie")

OUR_SNAPSHOTTER = "ctr takes this one too where none is named, without telling it in its help"
# (Command, flag): why its default is not ctr's.
DELIBERATE = {
    ("", "--address"): "the socket of teu-containerd",
    ("containers create", "--runtime"): "our own shim",
    ("run", "--runtime"): "our own shim",
    ("sandboxes run", "--runtime"): "our own shim",
    ("run", "--cpu-shares"): "ctr's 1024 shares become a weight below the usual one in cgroups v2, for no reason of "
    "the user's; without the flag a container has the usual weight",
    ("images mount", "--platform"): "this machine's, which is no constant to print",
    ("deprecations list", "--format"): "ctr takes `default` too where none is named",
    ("images check", "--snapshotter"): OUR_SNAPSHOTTER,
    ("images import", "--snapshotter"): OUR_SNAPSHOTTER,
    ("images mount", "--snapshotter"): OUR_SNAPSHOTTER,
    ("images pull", "--snapshotter"): OUR_SNAPSHOTTER,
    ("images unmount", "--snapshotter"): OUR_SNAPSHOTTER,
    ("images usage", "--snapshotter"): OUR_SNAPSHOTTER,
    ("containers create", "--snapshotter"): OUR_SNAPSHOTTER,
    ("run", "--snapshotter"): OUR_SNAPSHOTTER,
    ("snapshots", "--snapshotter"): OUR_SNAPSHOTTER,
    ("snapshots unpack", "--snapshotter"): OUR_SNAPSHOTTER,
}
LATER_DELIBERATE = {
    ("plugins inspect-runtime", "--runtime"): "our own shim",
    ("shim", "--shim-address"): "what it is where none is named is a rule, and no constant to print",
}
# Values that say that there is none.
NO_DEFAULT = ("", "0", "0s", "false")


class Flag(NamedTuple):
    aliases: tuple[str, ...]
    takes_a_value: bool
    default: str
    variables: tuple[str, ...]


class Page(NamedTuple):
    flags: dict[str, Flag]
    below: dict[str, tuple[str, ...]]  # commands: their aliases


def read_help(text: str) -> Page:
    flags: dict[str, Flag] = {}
    below: dict[str, tuple[str, ...]] = {}
    section = ""
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z ]+:", line):
            section = line.removeprefix("GLOBAL ")
        elif line.startswith("   -") and section == "OPTIONS:":
            left, _, right = line.strip().partition("  ")
            names = [part.partition(" ") for part in left.split(", ")]
            default = re.search(r"\(default: (.*?)\)", right)
            flags[names[0][0]] = Flag(
                tuple(name for name, _, _ in names[1:]),
                any(value for _, _, value in names),
                default[1].strip('"') if default else "",
                tuple(re.findall(r"\[\$(\w+)\]", right)),
            )
        elif line.strip() and section == "COMMANDS:":
            name, *aliases = line.strip().split("  ")[0].split(", ")
            if name != "help":
                below[name] = tuple(aliases)
    flags.pop("--help", None)  # not every page of ctr's lists it
    return Page(flags, below)


def page_of_ctr(name: str) -> str:
    return peers.run("ctr", *name.split(), "--help").stdout


def page_of_ours(name: str) -> str:
    """What `teu-ctr NAME --help` prints, without the start of a Python for each of a hundred pages."""
    from teu.ctr import main

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main.dispatch([*name.split(), "--help"]) == 0
    return printed.getvalue()


def help_tree(page: Callable[[str], str]) -> dict[str, Page]:
    """The pages of all commands by their full names; "" is the program's own."""
    tree: dict[str, Page] = {}
    wanted = [""]
    while wanted:
        name = wanted.pop()
        tree[name] = read_help(page(name))
        wanted += [f"{name} {word}".strip() for word in tree[name].below]
    return tree


def test_every_command_alias_and_flag() -> None:
    theirs, ours = help_tree(page_of_ctr), help_tree(page_of_ours)
    assert len(theirs) > 90, "the help of ctr is not understood"
    differences = []
    deliberate = {**DELIBERATE, **(LATER_DELIBERATE if peers.ctr_version() >= (2, 0) else {})}
    for name, page in theirs.items():
        own = ours.get(name)
        if own is None:
            differences.append(f"no command {name}")
            continue
        for word, aliases in page.below.items():
            missing = set(aliases) - set(own.below.get(word, ()))
            if missing:
                differences.append(f"{name} {word}: no alias {missing}")
        for flag, wanted in page.flags.items():
            found = own.flags.get(flag)
            if found is None:
                differences.append(f"{name}: no flag {flag}")
                continue
            wanted = wanted._replace(aliases=tuple(dict.fromkeys(wanted.aliases)))  # ctr 2.1 has one twice
            for part, mine, other in zip(Flag._fields, found, wanted, strict=True):
                if mine == other or (part == "default" and mine in NO_DEFAULT and other in NO_DEFAULT):
                    continue
                if part != "default" or not deliberate.pop((name, flag), ""):
                    differences.append(f"{name} {flag}: {part} {mine!r}, ctr has {other!r}")
    assert read_help(peers.run(TEU_CTR, "--help").stdout) == ours[""]
    assert not differences, "\n".join(differences)
    assert not deliberate, "these do not differ any more"


# ---- an image of several platforms ------------------------------------------------------------------------


DOCKER = "application/vnd.docker."
MANIFEST_LIST = DOCKER + "distribution.manifest.list.v2+json"


def several_platforms(path: Path, name: str) -> Path:
    """An archive with an image of docker's kinds for this machine's and another platform, its layers with gzip."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def stored(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": kind, "size": len(data), "digest": f"sha256:{digest}"}

    here = {"x86_64": "amd64", "aarch64": "arm64"}[peers.run("uname", "-m").stdout.strip()]
    manifests = []
    for architecture in (here, "s390x"):
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as tar:
            for member in ("bin/hello", "lib/libhello.so", "etc/none"):
                entry = tarfile.TarInfo(member)
                data = f"{member} of {architecture}\n".encode()
                entry.size, entry.mode = len(data), 0o755
                tar.addfile(entry, io.BytesIO(data))
            link = tarfile.TarInfo("bin/hi")
            link.type, link.linkname = tarfile.SYMTYPE, "hello"
            tar.addfile(link)
        diff_id = "sha256:" + hashlib.sha256(plain.getvalue()).hexdigest()
        config = {
            "os": "linux",
            "architecture": architecture,
            "config": {"Cmd": ["/bin/hello"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [],
        }
        layer = stored(DOCKER + "image.rootfs.diff.tar.gzip", gzip.compress(plain.getvalue(), mtime=0))
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER + "distribution.manifest.v2+json",
            "config": stored(DOCKER + "container.image.v1+json", json.dumps(config).encode()),
            "layers": [layer],
        }
        described = stored(DOCKER + "distribution.manifest.v2+json", json.dumps(manifest).encode())
        manifests.append({**described, "platform": {"os": "linux", "architecture": architecture}})
    listed = {"schemaVersion": 2, "mediaType": MANIFEST_LIST, "manifests": manifests}
    top = stored(MANIFEST_LIST, json.dumps(listed).encode())
    top["annotations"] = {"io.containerd.image.name": name}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    with tarfile.open(path, "w") as tar:
        for file, data in files.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


HELLO = "example.org/hello:1"
CONVERSIONS = """
HELLO example.org/new:platform
--all-platforms HELLO example.org/new:same
--all-platforms --oci HELLO example.org/new:oci
--all-platforms --uncompress HELLO example.org/new:tar
--all-platforms --uncompress --oci HELLO example.org/new:both
--platform linux/s390x HELLO example.org/new:s390x
--platform linux/s390x --platform linux/amd64 --oci HELLO example.org/new:two
--platform linux/riscv64 HELLO example.org/new:none
--platform nonsense/x/y/z HELLO example.org/new:bad
--oci example.org/none:1 example.org/new:nosuch
--oci HELLO example.org/new:both
HELLO
"""


@pytest.fixture
def spaces(side: Side) -> Iterator[dict[str, str]]:
    """A namespace for each program, emptied afterwards."""
    names = {program: f"whole-{number}-{time.monotonic_ns()}" for number, program in enumerate(("ctr", TEU_CTR))}
    yield names
    for name in names.values():
        here = [TEU_CTR, "-a", side.address, "-n", name]
        for kind in ("images", "leases"):
            found = peers.run(*here, kind, "ls", "-q").stdout.split()
            if found:
                peers.run(*here, kind, "rm", *found)


def done(side: Side, spaces: dict[str, str], program: str, *words: str, code: int | None = 0) -> Any:
    given = peers.as_of_ours(words) if program == "ctr" and "--local=false" not in words else words
    return peers.run(program, "--address", side.address, "-n", spaces[program], *given, code=code, timeout=60)


def test_images_convert(side: Side, spaces: dict[str, str], tmp_path: Path) -> None:
    """Both make the same blobs, byte for byte, with the same labels."""
    archive = several_platforms(tmp_path / "hello.tar", HELLO)
    results: dict[str, list[object]] = {}
    for program in spaces:
        into = peers.as_of_ours(["images", "import", "--all-platforms", "--no-unpack", str(archive)])
        peers.run("ctr", "--address", side.address, "-n", spaces[program], *into)
        told = results.setdefault(program, [])
        for line in CONVERSIONS.strip().splitlines():
            words = line.replace("HELLO", HELLO).split()
            answer = done(side, spaces, program, "images", "convert", *words, code=None)
            told.append((line, answer.returncode, answer.stdout, normal(answer.stderr)))
        for name in ("platform", "same", "oci", "tar", "both", "s390x", "two"):
            digest = next(
                row.split()[2]
                for row in done(
                    side, spaces, program, "images", "ls", f"name==example.org/new:{name}"
                ).stdout.splitlines()[1:]
            )
            document = done(side, spaces, program, "content", "get", digest).stdout
            told.append((name, document))
        # What was made on the way, and is held by nothing, may be there for as long as the collector likes.
        lease = done(side, spaces, program, "leases", "create").stdout.strip()
        done(side, spaces, program, "leases", "rm", "--sync", lease)
        blobs = done(side, spaces, program, "content", "ls").stdout.splitlines()[1:]
        # Size, age and the labels that hold the image's own parts.
        told.append(
            sorted(
                (
                    row.split()[0],
                    row.split()[1],
                    ",".join(sorted(label for label in row.split()[-1].split(",") if "gc.ref.content" in label)),
                )
                for row in blobs
            )
        )
    for theirs, ours in zip(results["ctr"], results[TEU_CTR], strict=True):
        assert ours == theirs


# Done by ctr in one namespace and by teu-ctr in another, as STORY of test_ctr.py: what that leaves out.
LINES = """
images import --digests=false ARCHIVE
images import --base-name example.org/foo --digests ARCHIVE
images import --skip-digest-for-named ARCHIVE
images import --digests --skip-digest-for-named ARCHIVE
images import --discard-unpacked-layers --no-unpack ARCHIVE
images import --index-name example.org/index:1 --no-unpack --all-platforms HELLO
images import
images ls -q
images import --platform linux/s390x HELLO
images import --all-platforms --no-unpack HELLO
images export --platform linux/s390x FOLDER/one.tar example.org/hello:1
images export --all-platforms FOLDER/all.tar example.org/hello:1
images rm --sync example.org/hello:1 example.org/index:1
images import --all-platforms --no-unpack FOLDER/all.tar
images ls
images mount --rw docker.io/library/busybox:latest FOLDER
images unmount FOLDER
images unmount --rm FOLDER
images unmount
images push
images pull
images tag example.org/hello:1 REGISTRY/SPACE:1
images push --plain-http REGISTRY/SPACE:1
images push --plain-http REGISTRY/SPACE:2 example.org/none:1
images push --plain-http --platform linux/s390x REGISTRY/SPACE:3 example.org/hello:1
images rm --sync REGISTRY/SPACE:1 example.org/hello:1
images pull --plain-http --print-chainid --label a=b --platform linux/s390x REGISTRY/SPACE:1
images ls name~=SPACE
images pull --plain-http REGISTRY/SPACE:1
images ls name~=SPACE
content fetch-object --plain-http REGISTRY/SPACE:1
content fetch-object --plain-http REGISTRY/SPACE:3
content fetch-blob
content fetch-blob --plain-http REGISTRY/SPACE:1
content push-object
content push-object --plain-http REGISTRY/SPACE:object
content push-object --plain-http REGISTRY/SPACE:object CONFIG application/vnd.oci.image.config.v1+json
content fetch-blob --plain-http REGISTRY/SPACE:object CONFIG
content edit --editor "sed -i s/linux/minix/" CONFIG
content edit CONFIG
content edit
content edit --validate x --editor true CONFIG
content active nosuch
content prune references --dry
content prune references
content ls -q
plugins ls
plugins ls -d id==overlayfs
plugins ls -d type==io.containerd.snapshotter.v1 id==native
oci
snapshots mounts
snapshots mounts FOLDER
snapshots commit x
snapshots info
snapshots diff
snapshots diff nosuch
snapshots --snapshotter native prepare n
snapshots --snapshotter native ls
snapshots --snapshotter native rm n
snapshots --snapshotter "" ls
snapshots unpack sha256:0000000000000000000000000000000000000000000000000000000000000000
leases create -x nonsense
leases rm --sync nosuch
leases rm
deprecations list --format json
info x
version x
shim --id nosuch state
shim state
containers info
containers checkpoint
containers checkpoint nosuch
containers checkpoint nosuch example.org/nosuch:1
containers restore
containers restore nosuch
tasks attach nosuch
tasks metrics --format nonsense nosuch
tasks exec
tasks rm
run --config /nosuch x1
run --privileged-without-host-devices IMAGE x1 true
run --env-file /nosuch IMAGE x2 true
nosuch
images nosuch
images -x
-x
"""


# The same, of what ctr has from containerd 2 on.
LATER_LINES = """
images inspect nosuch
images inspect IMAGE
images inspect --content IMAGE
images import --all-platforms --no-unpack --label a=b --label c HELLO
images ls name==example.org/hello:1
images inspect example.org/hello:1
images tag --skip-reference-check IMAGE not:a:reference
images ls -q
images rm --sync example.org/hello:1 not:a:reference
images import --sync-fs ARCHIVE
snapshots unpack --sync-fs sha256:0000000000000000000000000000000000000000000000000000000000000000
images pull --plain-http --skip-metadata --sync-fs REGISTRY/SPACE:1
content fetch-blob --plain-http --media-type application/json REGISTRY/SPACE:object CONFIG
plugins inspect-runtime --runtime io.containerd.runc.v2
plugins inspect-runtime --runtime io.containerd.nosuch.v2
shim --id nosuch shutdown
shim --id nosuch state --task-id other
shim --id nosuch pprof heap
shim pprof heap
"""


def test_an_index_of_a_whole_archive(side: Side, spaces: dict[str, str]) -> None:
    """Made by the daemon, and by the client."""
    for program, flags in (("ctr", ["--local=false"]), ("ctr", []), (TEU_CTR, [])):
        done(
            side,
            spaces,
            program,
            "images",
            "import",
            *flags,
            "--index-name",
            "example.org/index:1",
            str(peers.archive()),
        )
        listed = done(side, spaces, program, "images", "ls", "name==example.org/index:1").stdout
        assert "application/vnd.oci.image.index.v1+json" in listed, (program, flags)
        assert "complete" in done(side, spaces, program, "images", "check", "name==example.org/index:1").stdout
        done(side, spaces, program, "images", "rm", "--sync", "example.org/index:1", peers.IMAGE)


def shortened(text: str) -> str:
    """Only the first line of a help, whose words are our own; of progress, that there was some."""
    if text.startswith("Incorrect Usage"):
        return text.partition("\n")[0]
    if text.startswith("NAME:"):
        return "HELP " + text.split()[1:4][-1]
    text = re.sub(r"(?s)^.*elapsed: [^\n]*\n", "PROGRESS\n", text)
    return re.sub(r"[0-9.]+(ms|µs|s)(?=\s*$)", "SPAN", text)


# What ctr of containerd 1.7 says, and teu-ctr in the words of the later one.
WORDS_OF_1_7 = (
    ("container id must be specified", "shim ID (--id) or address (--shim-address) must be specified"),
    (r"fail to connect to container \S+ shim", "fail to connect to container shim with sockets: [SOCKETS]"),
    (r"extra arguments: \[", "extra arguments: &["),
    (r"Incorrect Usage\. ", "Incorrect Usage: "),
)


def later(text: str) -> str:
    """In the words of ctr 2, without the names of sockets, of which each program tries its own, and what is another one
    for each image."""
    for earlier, words in WORDS_OF_1_7 if peers.ctr_version() < (2, 0) else ():
        text = re.sub(earlier, words, text)
    text = re.sub(r"(?m)(Created|Updated): .* UTC$", r"\1: WHEN", re.sub(r"/s/[0-9a-f]{64}", "/s/HASH", text))
    return re.sub(r"with sockets: \[.*\]", "with sockets: [SOCKETS]", text)


# On one daemon: what differs between daemons is compared elsewhere (test_containerd_conformance).
@pytest.mark.needs("docker-registry")
@pytest.mark.parametrize("side", ["teu"], indirect=True)
@pytest.mark.timeout(400)
def test_the_rest_of_the_story(side: Side, spaces: dict[str, str], registry: peers.Registry, tmp_path: Path) -> None:
    layout = json.loads(peers.run("tar", "xOf", str(peers.archive()), "index.json").stdout)
    first = layout["manifests"][0]["digest"].replace(":", "/")
    manifest = json.loads(peers.run("tar", "xOf", str(peers.archive()), f"blobs/{first}").stdout)
    hello = several_platforms(tmp_path / "hello.tar", HELLO)
    answers: dict[str, list[tuple[str, str, str, int]]] = {}
    for program, space in spaces.items():
        folder = tmp_path / space
        folder.mkdir()
        fill = {
            "ARCHIVE": str(peers.archive()),
            "FOLDER": str(folder),
            "REGISTRY": registry.address,
            "SPACE": space,
            "CONFIG": manifest["config"]["digest"],
            "IMAGE": peers.IMAGE,
            "HELLO": str(hello),
        }
        heard = answers.setdefault(program, [])
        lines = LINES.strip().splitlines()
        if peers.ctr_version() >= (2, 0):
            lines += LATER_LINES.strip().splitlines()
        for line in lines:
            words = line
            for name, value in fill.items():
                words = words.replace(name, value)
            given = peers.as_of_ours(shlex.split(words)) if program == "ctr" else shlex.split(words)
            argv = [program, "--address", side.address, "-n", space, *given]
            answer = peers.run(*argv, code=None, timeout=60, env={"EDITOR": ""})
            out, err = (
                normal(later(shortened(text.replace(space, "SPACE").replace(str(folder), "FOLDER"))))
                for text in (answer.stdout, answer.stderr)
            )
            # ctr's drawing of progress may be cut off in a call.
            err = re.sub(r"TIME level=error msg=.* error=.context canceled.\n", "", err)
            heard.append((line, out, err, answer.returncode))
    found = [
        f"{theirs[0]}\n    ctr:     {theirs[1:]}\n    teu-ctr: {ours[1:]}"
        for theirs, ours in zip(answers["ctr"], answers[TEU_CTR], strict=True)
        if theirs != ours
    ]
    assert not found, f"{len(found)} of {len(answers['ctr'])} lines differ\n" + "\n".join(found)


# ---- progress ---------------------------------------------------------------------------------------------


def alike(line: str) -> str:
    """Without what differs from one run to the next: times, rates, and whether a drawing came before or after the end
    of what was there already."""
    line = re.sub(r"[0-9.]+(ms|µs|s)(?=\s*$)", "SPAN", line)
    return re.sub(r"(elapsed:).*", r"\1", re.sub(r"\b(done|exists) +\|", "done |", line))


@pytest.fixture(scope="module")
def registry() -> Iterator[peers.Registry]:
    with peers.registry() as daemon:
        yield daemon


@pytest.mark.needs("docker-registry")
def test_progress_without_a_terminal(
    side: Side, spaces: dict[str, str], registry: peers.Registry, tmp_path: Path
) -> None:
    """Drawings one after another; of each the last is the same, but for times and rates."""
    archive = several_platforms(tmp_path / "hello.tar", HELLO)
    drawn: dict[str, list[list[str]]] = {}
    for number, program in enumerate(spaces):
        name = f"{registry.address}/progress/{side.name}{number}:1"  # of one length
        into = peers.as_of_ours(["images", "import", "--all-platforms", "--no-unpack", str(archive)])
        peers.run("ctr", "-a", side.address, "-n", spaces[program], *into)
        done(side, spaces, program, "images", "tag", HELLO, name)
        pushed = done(side, spaces, program, "images", "push", "--plain-http", name).stdout
        done(side, spaces, program, "images", "rm", "--sync", HELLO, name)
        pulled = done(side, spaces, program, "images", "pull", "--plain-http", name).stdout
        fetched = done(side, spaces, program, "content", "fetch", "--plain-http", "--all-platforms", name).stdout
        told = drawn.setdefault(program, [])
        # ctr leaves the layers out when it pushes: its handler of parts that are not to be distributed does.
        pushed = re.sub(r"^layer-.*\n", "", pushed, flags=re.M)
        for shown in (pushed, pulled, fetched):
            assert "\x1b[1A" not in shown
            parts = {line.split()[0]: line for line in shown.splitlines() if "|" in line}
            told.append(sorted(alike(line).replace(name, "NAME") for line in parts.values()))
        told.append([alike(line) for line in pulled.splitlines() if line.startswith(("unpacking", "done: "))])
    for theirs, ours in zip(drawn["ctr"], drawn[TEU_CTR], strict=True):
        assert theirs
        assert ours == theirs


def screen(shown: str) -> list[str]:
    """What a terminal of more than enough width shows in the end."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[\d*[A-Za-z]|\r|\n)", shown):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r":
            lines[row] += part
    return [line.rstrip() for line in lines]


@pytest.mark.needs("docker-registry")
def test_progress_on_a_terminal(side: Side, spaces: dict[str, str], registry: peers.Registry) -> None:
    """Each drawing takes the place of the one before: one is left, the same from both, but for times and rates."""
    name = f"{registry.address}/progress/terminal-{side.name}:1"
    side.ours("images", "tag", peers.IMAGE, name)
    side.ours("images", "push", "--plain-http", name)
    side.ours("images", "rm", name)
    left: dict[str, list[str]] = {}
    for program in spaces:
        pull = ["images", "pull", "--plain-http", name]
        given = peers.as_of_ours(pull) if program == "ctr" else pull
        terminal = Terminal(program, "-a", side.address, "-n", spaces[program], *given, columns=250)
        assert terminal.code() == 0
        shown = screen(terminal.seen.decode())
        assert sum(line.startswith("layer-") for line in shown) == 1, "the drawings before are not taken away"
        left[program] = [alike(line) for line in shown]
    # Of configuration and layer ctr shows either first.
    assert sorted(left[TEU_CTR]) == sorted(left["ctr"])
    assert [line.split(":")[0][:8] for line in left[TEU_CTR] if line][-3:] == ["elapsed", "unpackin", "done"]


# ---- sandboxes, programs, profiles ------------------------------------------------------------------------


def told(side: Side, line: str, *programs: str) -> list[tuple[str, str, int]]:
    """What each program says to a line."""
    answers = []
    for program in programs or ("ctr", TEU_CTR):
        answer = peers.run(*side.argv(program, *line.split()), code=None)
        answers.append((normal(answer.stdout), normal(answer.stderr), answer.returncode))
    return answers


def test_sandboxes(side: Side, tmp_path: Path) -> None:
    """Neither ctr 1.7 nor 2.1 can start a sandbox on any daemon, but they see those that teu-ctr runs."""
    # The shim of containerd 2 serves no sandboxes any more.
    runtime = "io.containerd.runc.v2" if peers.ctr_version() < (2, 0) else "io.containerd.teu.v2"
    pod = tmp_path / "pod.json"
    pod.write_text(json.dumps({"ociVersion": "1.0.2", "process": {"args": ["/pause"], "cwd": "/"}, "linux": {}}))

    def shims() -> str:
        return peers.run("pgrep", "-af", f"containerd-shim-{runtime.split('.')[2]}-v2.* pod-1", code=None).stdout

    run = ("sandboxes", "run", "--runtime", runtime, str(pod), "pod-1")
    assert side.ours(*run) == "pod-1\n"
    assert shims()
    again = peers.run(*side.argv(TEU_CTR, *run), code=1).stderr
    assert again.startswith("teu-ctr: failed to create new sandbox: ") and "already exists" in again
    for line in (
        "sandboxes ls",
        "s list --filters id==pod-1",
        "sb ls --filters id==nosuch",
        "sandboxes rm nosuch",
        f"sandbox run {tmp_path}/nosuch.json pod-2",
    ):
        theirs, ours = told(side, line)
        assert ours == theirs, line
    assert re.search(rf"^pod-1 +\d{{4}}-\d\d-\d\d [0-9:.]+ \+0000 UTC {runtime} $", side.ours("s", "ls"), re.M)
    removed = peers.run(*side.argv(TEU_CTR, "sandboxes", "rm", "pod-1"))
    assert 'level=info msg="deleted: pod-1"' in removed.stderr
    assert "pod-1" not in side.ctr("sandboxes", "ls")
    peers.wait_until(lambda: not shims(), "the shim ends")


def contents(folder: Path) -> dict[str, tuple[str, int, str]]:
    return {
        str(path.relative_to(folder)): (
            ("link", 0, str(path.readlink()))
            if path.is_symlink()
            else ("folder", 0, "")
            if path.is_dir()
            else ("file", path.stat().st_mode, path.read_text())
        )
        for path in folder.rglob("*")
    }


def test_programs_of_an_image(side: Side, tmp_path: Path) -> None:
    archive = several_platforms(tmp_path / "hello.tar", HELLO)
    side.ctr("images", "import", "--all-platforms", "--no-unpack", str(archive))
    for flags, names in (((), {"bin", "bin/hello", "bin/hi"}), (("--libs",), {"lib", "lib/libhello.so"})):
        folders = []
        for program in ("ctr", TEU_CTR):
            folder = tmp_path / f"{len(names)}{program.rpartition('/')[2]}"
            folder.mkdir()
            for extra, code in (((), 0), ((), 1), (("--replace",), 0)):
                words = ("install", *flags, *extra, "--path", str(folder), HELLO)
                answer = peers.run(*side.argv(program, *words), code=code)
                if code:
                    assert f"cannot replace bin/hello in {folder}" in answer.stderr
            folders.append(contents(folder))
        assert folders[1] == folders[0]
        assert names <= set(folders[1])
    assert told(side, "install --path /tmp nosuch")[0] == told(side, "install --path /tmp nosuch")[1]
    side.ours("images", "rm", HELLO)


PROFILES = {
    "goroutines": "goroutine ",
    "goroutines --debug 1": "goroutine profile:",
    "heap --debug 1": "heap profile:",
    "threadcreate --debug 1": "threadcreate profile:",
    "block --debug 1": "--- contention",
}


def test_profiles(tmp_path: Path) -> None:
    """Those of a real containerd; teu-containerd is not written in Go and has none."""
    socket = tmp_path / "debug.sock"
    with peers.containerd(f'[debug]\n  address = "{socket}"\n'):
        for profile, start in PROFILES.items():
            for program in ("ctr", TEU_CTR):
                shown = peers.run(program, "pprof", "-d", str(socket), *profile.split()).stdout
                assert shown.startswith(start), (program, profile)
        for words in (("profile", "-s", "1s"), ("trace", "--seconds", "1s")):
            raw = peers.run("sh", "-c", '"$@" | wc -c', "sh", TEU_CTR, "pprof", "-d", str(socket), *words).stdout
            assert int(raw) > 100, words
    for program in ("ctr", TEU_CTR):
        answer = peers.run(program, "pprof", "--debug-socket", "/nosuch", "heap", code=1)
        assert normal(answer.stderr) == (
            'PROGRAM: Get "http://./debug/pprof/heap?debug=0": dial unix /nosuch: connect: no such file or directory\n'
        )
