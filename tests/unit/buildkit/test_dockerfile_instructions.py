# SPDX-License-Identifier: Apache-2.0
"""What each instruction may say, and BuildKit's words for what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from teu.buildkit.frontends.dockerfile import gitref, ports
from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.frontends.dockerfile.ignore import Ignored, clean, join, read_ignore_file
from teu.buildkit.frontends.dockerfile.image import go_duration, health_line
from teu.buildkit.frontends.dockerfile.instructions import Health, Instruction, duration, parse_stages
from teu.buildkit.frontends.dockerfile.lint import Linter
from teu.buildkit.frontends.dockerfile.mounts import Device, Mount, csv_fields, parse_device, parse_mount, ram_bytes
from teu.buildkit.frontends.dockerfile.parser import parse


def one(line: str) -> Any:
    stages, _ = parse_stages(parse(f"FROM x\n{line}".encode()), Linter())
    (found,) = stages[0].commands
    assert isinstance(found, Instruction)
    return found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("FOOBAR x", "unknown instruction: FOOBAR"),
        ("FOO bar", "unknown instruction: FOO (did you mean FROM?)"),
        ("COPPY a b", "unknown instruction: COPPY (did you mean COPY?)"),
        ("rum x", "unknown instruction: rum (did you mean run?)"),
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b c", "FROM requires either one or three arguments"),
        ("FROM a AS 1x", 'invalid name for build stage: "1x", name can\'t start with a number or contain symbols'),
        ("FROM --platfrom=x a", "unknown flag: --platfrom (did you mean platform?)"),
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("ADD", "ADD requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("COPY a <<E\nE", "COPY cannot accept a heredoc as a destination"),
        ("COPY --chown a b c", "missing a value on flag: --chown"),
        ("COPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY --chown=a --chown=b a b", "duplicate flag specified: --chown"),
        ("COPY --checksum=x a b", "unknown flag: --checksum"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV =x", "ENV names can not be blank"),
        ("LABEL", "LABEL requires at least one argument"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("USER", "USER requires exactly one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ('VOLUME [" "]', "VOLUME specified can not be an empty string"),
        ("SHELL", "SHELL requires at least one argument"),
        ("SHELL sh", "SHELL requires the arguments to be in JSON form"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD maintainer x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK RUN x", 'Unknown type "RUN" in HEALTHCHECK (try CMD)'),
        ("HEALTHCHECK --interval=1us CMD x", 'Interval "interval" cannot be less than 1ms'),
        ("HEALTHCHECK --interval=x CMD x", 'time: invalid duration "x"'),
        ("HEALTHCHECK --interval=3 CMD x", 'time: missing unit in duration "3"'),
        ("HEALTHCHECK --interval=3d CMD x", 'time: unknown unit "d" in duration "3d"'),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --retries=x CMD x", 'strconv.ParseInt: parsing "x": invalid syntax'),
        ("RUN --network=bridge x", 'invalid network mode "bridge"'),
        ("RUN --security=x x", 'security "x" is not valid'),
        ("RUN --mount=type=bind,from=$x y", "'from' doesn't support variable expansion, define alias stage instead"),
        ("RUN --device=a,name=b x", "device name already set to a"),
    ],
)
def test_errors_name_line_and_reason(line: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_stages(parse(f"FROM x\n{line}".encode()), Linter())
    assert str(caught.value) == f"dockerfile parse error on line 2: {message}"
    assert caught.value.locations[0][0].start == 2


def test_nothing_before_the_first_stage() -> None:
    with pytest.raises(DockerfileError, match="no build stage in current context") as caught:
        parse_stages(parse(b"RUN x"), Linter())
    assert caught.value.locations[0][0].start == 1


def test_stages_and_global_arguments() -> None:
    text = b"ARG A=1\n# base the base\nFROM a AS Base\nRUN x\nfrom --platform=linux/arm b\n"
    stages, arguments = parse_stages(parse(text), Linter())
    assert [(stage.name, stage.base, stage.platform, stage.description) for stage in stages] == [
        ("base", "a", "", "the base"),
        ("", "b", "linux/arm", ""),
    ]
    assert [one.key for argument in arguments for one in argument.arguments] == ["A"]


def test_copy_says_all() -> None:
    line = "COPY --from=a --chown=1:2 --chmod=u+x --link --parents --exclude=a --exclude=b x <<E /y/\nd\nE"
    found = one(line)
    assert (found.origin, found.chown, found.chmod, found.link, found.parents) == ("a", "1:2", "u+x", True, True)
    assert (found.excludes, found.sources, found.destination) == (["a", "b"], ["x"], "/y/")
    assert [(content.path, content.data, content.expand) for content in found.contents] == [("E", "d\n", True)]


def test_add_says_all() -> None:
    found = one("ADD --keep-git-dir=false --checksum=sha256:0 --unpack x /y")
    assert (found.keep_git_dir, found.checksum, found.unpack, found.link) == (False, "sha256:0", True, False)
    assert one("ADD x /y").keep_git_dir is None


def test_onbuild_keeps_heredocs() -> None:
    assert one("ONBUILD RUN <<E\na\nE").expression == "RUN <<E\na\nE"


def test_health() -> None:
    found = one(
        "HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=10ms --start-interval=1h --retries=3 CMD a b"
    )
    assert found.health == Health(["CMD-SHELL", "a b"], 90 * 10**9, 1500 * 10**6, 10**7, 3600 * 10**9, 3)
    assert one('HEALTHCHECK CMD ["a"]').health.test == ["CMD", "a"]
    line = health_line(found.health)
    assert line == 'HEALTHCHECK &{["CMD-SHELL" "a b"] "1m30s" "1.5s" "10ms" "1h0m0s" \'\\x03\'}'


@pytest.mark.parametrize(
    ("text", "value", "back"),
    [("0", 0, "0s"), ("1ns", 1, "1ns"), ("1.5us", 1500, "1.5µs"), ("2h3m4.25s", 7384250000000, "2h3m4.25s")],
)
def test_durations(text: str, value: int, back: str) -> None:
    assert duration(text) == value
    assert go_duration(value) == back


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("target=/x", Mount("bind", target="/x", readonly=True)),
        ("type=bind,from=a,src=/b,dst=/c,rw", Mount("bind", "a", "/b", "/c")),
        ("type=bind,target=/c,rw=false", Mount("bind", target="/c", readonly=True)),
        ("type=cache,target=/c,id=i,sharing=locked,uid=1,gid=2,mode=0700",
         Mount("cache", target="/c", id="i", sharing="locked", uid=1, gid=2, mode=0o700)),
        ("type=cache,target=$HOME/c,ro", Mount("cache", target="/root/c", readonly=True)),
        ("type=tmpfs,target=/t,size=64m", Mount("tmpfs", target="/t", size=64 << 20)),
        ("type=secret,id=s,env=TOKEN,required", Mount("secret", id="s", env="TOKEN", required=True, readonly=True)),
        ('type=secret,id=s,"target=/a,b"', Mount("secret", id="s", target="/a,b", readonly=True)),
        ("type=ssh", Mount("ssh", readonly=True)),
    ],
)  # fmt: skip
def test_mounts(text: str, mount: Mount) -> None:
    assert parse_mount(text, lambda word: word.replace("$HOME", "/root")) == mount


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=bidn", 'unsupported mount type "bidn" (did you mean bind?)'),
        ("type=cache,sharing=public", 'unsupported sharing value "public"'),
        ("x", "invalid field 'x' must be a key=value pair"),
        ("tarteg=/x", "unexpected key 'tarteg' in 'tarteg=/x' (did you mean target?)"),
        ("target=/x,required", "unexpected key 'required' for mount type 'bind'"),
        ("target=/x,size=1", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,size=x", "invalid value for size: x"),
        ("target=/x,ro=maybe", "invalid value for ro: maybe"),
        ("target=/x,mode=0700", 'mode not allowed for "bind" type mounts'),
        ("type=tmpfs,uid=1", 'uid not allowed for "tmpfs" type mounts'),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("type=cache,uid=x", "invalid value x for uid"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,source=a,id=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=shared", "secret mount should not define sharing"),
        ("target=/x,sharing=shared", "invalid cache sharing set for bind mount"),
    ],
)
def test_mount_errors(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_mount(text, lambda word: word)
    assert str(caught.value) == message


def test_devices_and_fields() -> None:
    assert parse_device("vendor1.com/device=foo,required") == Device("vendor1.com/device=foo", True)
    assert parse_device("name=vendor1.com/device,required=false") == Device("vendor1.com/device")
    assert csv_fields('a,"b,""c""",') == ["a", 'b,"c"', ""]
    for wrong in ('"a', '"a"b', 'a"b'):
        with pytest.raises(DockerfileError):
            csv_fields(wrong)
    assert [ram_bytes(text) for text in ("1", "1k", "1.5 MiB", "2gb", "x")] == [1, 1024, 3 << 19, 2 << 30, None]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("80", ["80/tcp"]),
        ("80/UDP", ["80/udp"]),
        ("8000-8002", ["8000/tcp", "8001/tcp", "8002/tcp"]),
        ("127.0.0.1:8080:80", ["80/tcp"]),
        ("[::1]:8080:80", ["80/tcp"]),
        ("8000-8001:80-81", ["80/tcp", "81/tcp"]),
        ("", 'invalid port: "": no port specified'),
        ("80/x", 'invalid port: "80/x": invalid proto: x'),
        ("x", "invalid containerPort: x"),
        ("9-8", "invalid containerPort: 9-8"),
        ("70000", "invalid containerPort: 70000"),
        ("x:1:80", "invalid IP address: x"),
        ("x:80", "invalid hostPort: x"),
        ("1-3:80-81", "invalid ranges specified for container and host Ports: 80-81 and 1-3"),
    ],
)
def test_ports(text: str, result: list[str] | str) -> None:
    try:
        assert ports.parse(text, (), Linter()) == result
    except DockerfileError as error:
        assert str(error) == result


@pytest.mark.parametrize(
    ("text", "remote", "ref", "subdir"),
    [
        ("https://github.com/a/b.git", "https://github.com/a/b.git", "", ""),
        ("https://github.com/a/b.git#main:sub/dir", "https://github.com/a/b.git", "main", "sub/dir"),
        ("https://u:p@h/a.git?ref=x&subdir=y", "https://u:p@h/a.git", "x", "y"),
        ("https://h/a.git?tag=v1", "https://h/a.git", "refs/tags/v1", ""),
        ("https://h/a.git?branch=b", "https://h/a.git", "refs/heads/b", ""),
        ("git://h/a#v1:../../x", "git://h/a", "v1", "x"),
        ("ssh://git@h:22/a", "ssh://git@h:22/a", "", ""),
        ("git@github.com:a/b.git#x:y", "git@github.com:a/b.git", "x", "y"),
        ("github.com/a/b", "github.com/a/b", "", ""),
    ],
)
def test_git_references(text: str, remote: str, ref: str, subdir: str) -> None:
    found = gitref.parse(text)
    assert found is not None
    assert (found.remote, found.ref, found.subdir) == (remote, ref, subdir)


@pytest.mark.parametrize("text", ["./a.git", "../a", "a.git", "https://h/a.tar.gz", "ftp://h/a.git", "/a/b", "", "a:b"])
def test_what_is_no_git_reference(text: str) -> None:
    assert gitref.parse(text) is None


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("x=1", 'unexpected query "x"'),
        ("ref=a&ref=b", 'query "ref" has multiple values'),
        ("ref=", 'query "ref" has no value'),
        ("keep-git-dir=x", 'invalid keep-git-dir value: "x"'),
        ("tag=a&branch=b", "branch conflicts with tag"),
        ("ref=a&tag=b", 'ref conflicts: "a" vs "refs/tags/b"'),
        ("mtime=x", 'invalid mtime value: "x" (must be "checkout" or "commit")'),
    ],
)
def test_wrong_queries(query: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        gitref.parse(f"https://h/a.git?{query}")
    assert str(caught.value) == message


def test_git_switches() -> None:
    found = gitref.parse("https://h/a.git?keep-git-dir&submodules=false&checksum=abc&fetch-by-commit&mtime=commit")
    assert found is not None
    assert (found.keep_git_dir, found.submodules, found.checksum) == (True, False, "abc")
    assert (found.fetch_by_commit, found.mtime) == (True, "commit")


def test_ignore_files() -> None:
    data = b"\xef\xbb\xbf# comment\n  /a/b/../c/ \r\n\n! /d\n#x\n !e\n*/temp*\n"
    patterns = read_ignore_file(data)
    assert patterns == ["a/c", "!d", "!e", "*/temp*"]


@pytest.mark.parametrize(
    ("patterns", "ignored", "kept"),
    [
        (["a"], ["a", "a/b", "a/b/c"], ["b/a", "ab"]),
        (["*.md", "!README.md"], ["x.md"], ["README.md", "a/x.md"]),
        (["**/*.go"], ["a.go", "x/y/a.go"], ["a.gox"]),
        (["a/**", "!a/b"], ["a/c", "a/c/d"], ["a/b", "a/b/c"]),
        (["*", "!src"], ["x", "y/z"], ["src", "src/a"]),
        (["a?c", "[xy]z"], ["abc", "xz"], ["ac", "zz"]),
    ],
)
def test_what_is_left_out(patterns: list[str], ignored: list[str], kept: list[str]) -> None:
    found = Ignored(patterns)
    assert all(path in found for path in ignored)
    assert not any(path in found for path in kept)


def test_a_line_that_is_no_pattern() -> None:
    with pytest.raises(DockerfileError):
        Ignored(["[a"])


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("", "."),
        ("a//b/./c/..", "a/b"),
        ("/../a", "/a"),
        ("../a", "../a"),
        ("/", "/"),
        ("a/../..", ".."),
        ("//a", "/a"),
    ],
)
def test_clean(path: str, cleaned: str) -> None:
    assert clean(path) == cleaned


def test_join() -> None:
    assert (join("/", "a", "../b"), join("", ""), join("/", "")) == ("/b", "", "/")
