# SPDX-License-Identifier: Apache-2.0
"""Declared files: their syntax, drop-ins, instances, and what the generator writes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from teu.cli.declared import generator
from teu.cli.declared.files import Declared, Entry, Problem, load, quoted, truth, words

TOP = Path(__file__).resolve().parents[3]


def parsed(text: str) -> Declared:
    one = Declared("web.container", "/x/web.container")
    one.parse(text, "/x/web.container")
    return one


def word_list(text: str) -> list[str]:
    return words(Entry("Exec", text, "/x", 3))


def test_sections_comments_and_continued_lines() -> None:
    one = parsed(
        "# first\n[Container]\nImage = busybox\n; note\nExec=sh -c \\\n# between\n  'a b'\nLabel=\n"
        "[Service]\nRestart=no\n"
    )
    assert [(entry.key, entry.value, entry.line) for entry in one.section("Container")] == [
        ("Image", "busybox", 3),
        ("Exec", "sh -c  'a b'", 5),
        ("Label", "", 8),
    ]
    assert one.section("Service")[0].value == "Restart=no".partition("=")[2]
    assert not one.problems


def test_an_empty_assignment_forgets_what_came_before() -> None:
    one = parsed("[Container]\nLabel=a=1\nLabel=\nLabel=b=2\nImage=x\nImage=\n")
    assert [entry.value for entry in one.every("Container", "Label")] == ["b=2"]
    assert one.last("Container", "Image") is None


@pytest.mark.parametrize(
    ("text", "line", "wrong"),
    [
        ("Image=x\n", 1, "before the first section"),
        ("[Container]\nImage\n", 2, "no assignment"),
        ("[Container\n", 1, "no section"),
        ("[Container]\nExec=a \\", 2, "in the middle"),
    ],
)
def test_mistakes_have_their_line(text: str, line: int, wrong: str) -> None:
    one = parsed(text)
    assert [(problem.line, wrong in problem.text) for problem in one.problems] == [(line, True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", ["a", "b"]),
        ("'a b' \"c d\"e", ["a b", "c de"]),
        (r"\x41\102\u0043\n\s\q", ["ABC\n \\q"]),
        ("'' x", ["", "x"]),
        (r'"a\"b"', ['a"b']),
    ],
)
def test_words_are_split_as_systemd_does(text: str, expected: list[str]) -> None:
    assert word_list(text) == expected


def test_words_that_are_none_are_told() -> None:
    with pytest.raises(Problem, match="not closed"):
        word_list("'a b")
    for text in (r"\xzz", r"\ud800", r"\U00110000"):
        with pytest.raises(Problem, match="escape"):
            word_list(text)
    with pytest.raises(Problem, match="neither"):
        truth(Entry("ReadOnly", "maybe", "/x", 1))


@pytest.mark.parametrize("word", ["plain", "", "a b", 'q"q', "it's", "back\\slash", "line\nfeed", "semi;colon", "%i$A"])
def test_what_is_quoted_is_read_back(word: str) -> None:
    assert word_list(quoted(word)) == [word]


def test_drop_ins_instances_masks_and_the_order_of_places(tmp_path: Path) -> None:
    high, low = tmp_path / "etc", tmp_path / "usr"
    for folder in (high / "sub", low):
        folder.mkdir(parents=True)
    (low / "a-b.container").write_text("[Container]\nImage=low\n")
    (high / "sub/a-b.container").write_text("[Container]\nImage=high\n")
    (low / "gone.container").write_text("[Container]\nImage=x\n")
    (high / "gone.container").symlink_to("/dev/null")
    (high / "t@.container").write_text("[Container]\nImage=t\n")
    (high / "t@1.container").symlink_to("t@.container")
    for name, file, text in (
        ("container.d", "10.conf", "Label=all=1"),
        ("a-.container.d", "10.conf", "Label=prefix=1"),
        ("a-b.container.d", "20.conf", "Label=own=1"),
        ("t@.container.d", "10.conf", "Label=template=1"),
        ("t@1.container.d", "20.conf", "Label=instance=1"),
    ):
        (low / name).mkdir()
        (low / name / file).write_text(f"[Container]\n{text}\n")
    found, problems = load((str(high), str(low)))
    assert not problems
    assert sorted(found) == ["a-b.container", "t@.container", "t@1.container"]

    def labels(name: str) -> list[str]:
        return [entry.value for entry in found[name].every("Container", "Label")]

    assert found["a-b.container"].path == str(high / "sub/a-b.container")
    assert labels("a-b.container") == ["prefix=1", "own=1"]
    assert labels("t@.container") == ["template=1"]
    assert labels("t@1.container") == ["template=1", "instance=1"]


def test_a_circle_of_folders_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "x.container").write_text("[Container]\nImage=x\n")
    assert list(load((str(tmp_path),))[0]) == ["x.container"]


def test_files_that_are_podmans_alone_and_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.kube").write_text("[Kube]\nYaml=x\n")
    (tmp_path / "y.container").write_bytes(b"[Container]\nImage=\xff\n")
    (tmp_path / "z.container").write_bytes(b"[Container]\nImage=\xef\xbf\xbd\n")  # which stands for what is no text
    (tmp_path / "both.container").write_bytes(b"[Container]\nImage=\xef\xbf\xbd\xef\xbf\n")
    found, problems = load((str(tmp_path),))
    assert [problem.path for problem in problems] == [str(tmp_path / "x.kube")]
    assert "UTF-8" in str(found["y.container"].problems[0]) and "UTF-8" in str(found["both.container"].problems[0])
    assert found["z.container"].every("Container", "Image")[0].value == "\ufffd" and not found["z.container"].problems


def run(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    target.mkdir(exist_ok=True)
    return subprocess.run(
        [TOP / "bin/teu-system-generator", target, target, target],
        env={"TEU_UNIT_DIRS": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_writes_units_and_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/web.container").write_text(
        "[Container]\nImage=busybox\n[Install]\nWantedBy=multi-user.target a.target\nAlias=www.service\n"
    )
    (tmp_path / "in/t@.container").write_text(
        "[Container]\nImage=busybox\n[Install]\nWantedBy=multi-user.target\nDefaultInstance=7\n"
    )
    done = run(tmp_path / "in", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "out"
    assert "ExecStart=/usr/libexec/teu/teu-unit container" in (out / "web.service").read_text()
    assert os.readlink(out / "multi-user.target.wants/web.service") == "../web.service"
    assert os.readlink(out / "www.service") == "web.service"
    assert os.readlink(out / "multi-user.target.wants/t@7.service") == "../t@.service"
    assert (out / "a.target.wants/web.service").is_symlink()


def test_a_mistake_costs_one_file_and_its_unit_tells_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.container").write_text("[Container]\nImage=busybox\n")
    (tmp_path / "in/bad.container").write_text("[Container]\nImage=busybox\nImagination=1\n")
    assert run(tmp_path / "in", tmp_path / "out").returncode == 0
    assert "teu-unit" in (tmp_path / "out/good.service").read_text()
    assert f"system validate --quiet {tmp_path}/in/bad.container" in (tmp_path / "out/bad.service").read_text()


def test_what_cannot_be_written_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, more in (
        ("a", "[Install]\nAlias=web.service/x.service a/b/deep.service\n"),
        ("web", "[Install]\nWantedBy=multi-user.target\n"),
    ):
        (tmp_path / f"in/{name}.container").write_text(f"[Container]\nImage=busybox\n{more}")
    (tmp_path / f"in/{'long' * 61}.network").write_text("[Network]\n")
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2
    for place in ("web.service/x.service", "longlonglong"):
        assert place in done.stderr
    assert "teu-unit" in (tmp_path / "out/web.service").read_text() and (tmp_path / "out/a.service").exists()
    assert os.readlink(tmp_path / "out/multi-user.target.wants/web.service") == "../web.service"
    assert os.readlink(tmp_path / "out/a/b/deep.service") == "../a.service"


def test_no_folder_is_no_work(tmp_path: Path) -> None:
    assert run(tmp_path / "none", tmp_path / "out").returncode == 0
    assert not list((tmp_path / "out").iterdir())


def test_problems_go_to_the_journal_or_the_kernels_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("/x/web.container", 7, "is wrong")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        monkeypatch.setattr(generator, "JOURNAL", str(tmp_path / "journal"))
        generator.log([problem])
        told = journal.recv(4096).decode()
    assert "MESSAGE=/x/web.container:7: is wrong\n" in told and "PRIORITY=3\n" in told and "CODE_LINE=7\n" in told
    (tmp_path / "kmsg").touch()
    monkeypatch.setattr(generator, "JOURNAL", str(tmp_path / "nobody"))
    monkeypatch.setattr(generator, "KERNEL_LOG", str(tmp_path / "kmsg"))
    generator.log([problem])
    assert (tmp_path / "kmsg").read_text() == "<3>teu-system-generator: /x/web.container:7: is wrong\n"


# What the generator is of.
MODULES = {"teu", "teu.cli", "teu.cli.declared"}
MODULES |= {f"teu.cli.declared.{name}" for name in ("files", "generator", "keys", "translate")}
LOOK = """
import sys
sys.path.insert(0, 'src')
from teu.cli.declared import generator
units, problems = generator.everything((sys.argv[1],))
generator.write(sys.argv[2], units)
print(*sys.modules)
"""


def loaded(*command: str) -> set[str]:
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", *command], capture_output=True, text=True, check=True, cwd=TOP
    )
    return set(done.stdout.split())


def test_the_generator_imports_next_to_nothing(tmp_path: Path) -> None:
    """It stands between the kernel and the first unit of every boot: 50 files in 20 ms. One module more is for what is
    bound of /run or /dev."""
    bare = loaded("import os, sys; print(*sys.modules)")
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    place = tmp_path / "in"
    (place / "web.container").write_text(
        "[Unit]\nDescription=Größe\nAfter=a.network\n[Container]\nImage=busybox\nPod=p.pod\nVolume=a.volume:/a\n"
        "Volume=/srv:/srv\nHealthCmd='a b'\nSecret=x\nAutoUpdate=registry\n[Install]\nWantedBy=multi-user.target\n"
    )
    for name, text in (
        ("p.pod", "[Pod]\n"),
        ("a.volume", "[Volume]\n"),
        ("a.network", "[Network]\n"),
        ("i.image", "[Image]\nImage=x\n"),
        ("b.build", "[Build]\nImageTag=x\nFile=./Dockerfile\n"),
        ("bad.container", "[Container]\nImagination=1\n"),
    ):
        (place / name).write_text(text)
    assert loaded(LOOK, str(place), str(tmp_path / "out")) - bare <= MODULES | {"__future__"}
    (place / "log.container").write_text("[Container]\nImage=busybox\nVolume=/dev/log:/dev/log\n")
    more = loaded(LOOK, str(place), str(tmp_path / "out")) - bare - MODULES
    assert more <= {"__future__", "teu.systemd", "teu.systemd.logfields"}


def test_a_file_costs_few_steps(tmp_path: Path) -> None:
    """What a further file costs, in calls of functions: of a program of milliseconds that is most of its time."""

    def calls(count: int) -> int:
        folder, target = tmp_path / f"in{count}", tmp_path / f"out{count}"
        folder.mkdir()
        target.mkdir()
        for number in range(count):
            (folder / f"web{number}.container").write_text(
                f"[Unit]\nDescription=Site {number}\n[Container]\nImage=docker.io/library/busybox:latest\n"
                "PublishPort=80:80\nVolume=/srv:/srv:ro\nEnvironment=A=1 B=2\nExec=httpd -f\n"
                "[Service]\nRestart=always\n[Install]\nWantedBy=multi-user.target\n"
            )
        number = 0

        def called(_frame: object, event: str, _argument: object) -> None:
            nonlocal number
            number += event == "call"

        before = sys.getprofile()
        sys.setprofile(called)
        try:
            units, problems = generator.everything((str(folder),))
            generator.write(str(target), units)
        finally:
            sys.setprofile(before)
        assert len(units) == count and not problems
        return number

    assert (calls(30) - calls(10)) / 20 < 170  # 145; 481 where each key was looked for in all lines
