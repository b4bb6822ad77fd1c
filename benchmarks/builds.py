# SPDX-License-Identifier: Apache-2.0
"""`teu build` on teu-buildkitd beside `docker build` on the BuildKit in dockerd, in turns.  Called by bench.py, which
has loaded the base image into both engines.

Both clients write plain progress, as they do without a terminal, and both images are put into their engine's store
under a name, as they are by default.  Where a job needs something that no builder has seen, a small file in the context
is written anew before each turn, with the same words for both.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from measure import Row, rollup, run

Engines = Mapping[str, Sequence[str]]

PLACE = Path("/var/lib/teu-bench-build")
SERVICES = {
    "teu": ("teud.service", "teu-containerd.service", "teu-buildkitd.service"),
    "docker": ("docker.service", "containerd.service"),
}
BUILDER = "teu-buildkitd.service"
DROP_IN = Path("/etc/teu/buildkitd.yaml.d/50-bench.yaml")
FILES, MEGABYTES = 10_000, 100
BIG_MEGABYTES = 500
LINES = 300_000

CACHED = "FROM busybox:latest\nCOPY file /file\n" + "".join(f"RUN echo {n} >/made-{n}\n" for n in range(8))
STEPS = "FROM busybox:latest\n" + "".join(f"RUN echo {n} >/made-{n}\n" for n in range(20))
CONTEXT = "FROM busybox:latest\nCOPY . /data\n"
BIG = "FROM busybox:latest\nCOPY big /big\n"
STAGES = """\
FROM busybox:latest AS one
RUN sleep 2; echo one >/one
FROM busybox:latest AS two
RUN sleep 2; echo two >/two
FROM busybox:latest
COPY --from=one /one /
COPY --from=two /two /
"""


def context(name: str, dockerfile: str) -> Path:
    """A folder with a Dockerfile and a small file."""
    folder = PLACE / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "file").write_text("file\n")
    return folder


def many_files(folder: Path) -> None:
    """FILES files of MEGABYTES in all, half of each noise and half text, as the layer of the pull has them."""
    dice = random.Random(7)
    each = MEGABYTES * 1_000_000 // FILES
    for number in range(FILES):
        path = folder / f"d{number % 97}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        text = b"line %d of a text file\n" % number
        path.write_bytes(dice.randbytes(each // 2) + (text * (each // 2 // len(text) + 1))[: each // 2])


def big_file(path: Path) -> None:
    """BIG_MEGABYTES, every other megabyte noise."""
    dice = random.Random(11)
    text = (b"text of a large file " * 50_000)[:1_000_000]
    with path.open("wb") as file:
        for number in range(BIG_MEGABYTES):
            file.write(dice.randbytes(1_000_000) if number % 2 else text)


def build(engine: Sequence[str], folder: Path, *argv: str, tag: str = "bench-built") -> None:
    run([*engine, "build", "-t", tag, *argv, str(folder)])


def timed(
    name: str,
    engines: Engines,
    job: Callable[[str, int], None],
    rounds: int,
    before: Callable[[str, int], None] | None = None,
    warmup: int = 1,
    note: str = "",
) -> Row:
    """As measure.turns, with what `before` does left out of the time."""
    row = Row(name, "ms", {who: [] for who in engines}, note)
    for index in range(warmup + rounds):
        for who in engines:
            if before:
                before(who, index)
            begin = time.perf_counter()
            job(who, index)
            spent = time.perf_counter() - begin
            if index >= warmup:
                row.samples[who].append(spent * 1000)
    return row


def prune(engine: Sequence[str]) -> None:
    """Forget every build of the engine, and its results."""
    subprocess.run([*engine, "rmi", "-f", "bench-built", "bench-big"], capture_output=True, check=False)
    run([*engine, "image", "prune", "-f"])
    run([*engine, "builder", "prune", "-a", "-f"])


# --- jobs ----------------------------------------


def cached(engines: Engines, rounds: int) -> Iterator[Row]:
    folder = context("cached", CACHED)

    def again(who: str, _: int) -> None:
        build(engines[who], folder)

    def at_rest(who: str, _: int) -> None:
        if who == "teu":
            run(["systemctl", "stop", BUILDER])

    yield timed("build: all of 9 steps cached", engines, again, rounds, warmup=2)
    note = "ours starts its builder first"
    yield timed("build: the same after a rest", engines, again, min(rounds, 5), at_rest, warmup=0, note=note)


def steps(engines: Engines, rounds: int) -> Iterator[Row]:
    folder = context("steps", STEPS)
    for name, argv in (("the default network", ()), ("no network", ("--network", "none"))):

        def whole(who: str, _: int, argv: tuple[str, ...] = argv) -> None:
            build(engines[who], folder, "--no-cache", *argv)

        yield timed(f"build: 20 RUN steps without cache, {name}", engines, whole, rounds)


def contexts(engines: Engines, rounds: int) -> Iterator[Row]:
    folder = context("context", CONTEXT)
    many_files(folder)
    what = f"{FILES:,} files, {MEGABYTES} MB"

    def fresh(who: str, index: int) -> None:
        changed(who, index)
        if index:
            prune(engines[who])
        os.sync()

    def changed(_: str, index: int) -> None:
        (folder / "file").write_text(f"{time.monotonic_ns()} {index}\n")

    def whole(who: str, _: int) -> None:
        build(engines[who], folder)

    def copied(who: str, _: int) -> None:
        build(engines[who], folder, "--no-cache")

    yield timed(f"build: context of {what}, the first time", engines, whole, rounds, fresh)
    yield timed("build: that context unchanged", engines, whole, rounds)
    yield timed("build: that context, one file changed", engines, whole, rounds, changed)
    yield timed("build: COPY of those files anew", engines, copied, rounds)


def export(engines: Engines, rounds: int) -> Iterator[Row]:
    """From the files of a result, which the builder has, to an image of the engine that a container can have."""
    folder = context("export", BIG)
    big_file(folder / "big")

    def cache(who: str, _: int) -> None:
        with (folder / "big").open("r+b") as file:
            file.write(b"%032d" % time.monotonic_ns())
        run([*engines[who], "build", "-o", "type=cacheonly", str(folder)])
        os.sync()

    def load(who: str, index: int) -> None:
        build(engines[who], folder, tag="bench-big")
        run([*engines[who], "create", "--network", "none", "--name", f"big{index}", "bench-big", "true"])

    yield timed(
        f"build: export and load of {BIG_MEGABYTES} MB", engines, load, rounds, cache, note="to a container of it"
    )
    for engine in engines.values():
        run([*engine, "rm", "-f", *(f"big{index}" for index in range(rounds + 1))])
        prune(engine)


def stages(engines: Engines, rounds: int) -> Iterator[Row]:
    folder = context("stages", STAGES)

    def whole(who: str, _: int) -> None:
        build(engines[who], folder, "--no-cache")

    yield timed("build: two stages of 2 s each, in parallel", engines, whole, rounds)


# --- memory ----------------------------------------


def held(service: str) -> float:
    """Proportional memory of all processes of a service, in MiB."""
    total = 0.0
    with contextlib.suppress(OSError):
        for pid in Path("/sys/fs/cgroup/system.slice", service, "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError, RuntimeError):  # it has ended meanwhile
                total += rollup(int(pid), "Pss") / 1024
    return total


def memory(engines: Engines) -> Iterator[Row]:
    """What the daemons hold more than before the first build, all of them together: at most, while a context of many
    files is built three times; and when the builder has come to rest.  The daemons begin anew."""
    folder = context("context", CONTEXT)
    work = Row("build: memory at work, most of it", "MiB", {}, "daemons against before the build; proportional")
    rest = Row("build: memory of the builder at rest", "MiB", {}, "ours has ended; dockerd's growth")
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text("idle-exit: 2s\n")
    try:
        for who, engine in engines.items():
            run(["systemctl", "restart", *SERVICES[who]])
            prune(engine)
            run(["systemctl", "restart", *SERVICES[who]])
            run([*engine, "run", "--rm", "--network", "none", "busybox:latest", "true"])
            if who == "teu":
                run(["systemctl", "stop", BUILDER])
            before = sum(map(held, SERVICES[who]))
            daemon = held("docker.service")
            most, over = [before], threading.Event()

            def look(who: str = who, most: list[float] = most, over: threading.Event = over) -> None:
                while not over.wait(0.05):
                    most.append(sum(map(held, SERVICES[who])))

            thread = threading.Thread(target=look)
            thread.start()
            try:
                for number in range(3):
                    (folder / "file").write_text(f"{time.monotonic_ns()} {number}\n")
                    build(engine, folder)
            finally:
                over.set()
                thread.join()
            work.samples[who] = [max(most) - before]
            if who == "teu":
                deadline = time.monotonic() + 60
                while held(BUILDER) and time.monotonic() < deadline:
                    time.sleep(0.5)
                rest.samples[who] = [held(BUILDER)]
            else:
                time.sleep(5)
                rest.samples[who] = [held("docker.service") - daemon]
    finally:
        DROP_IN.unlink()
        subprocess.run(["systemctl", "stop", BUILDER], capture_output=True, check=False)
    yield work
    yield rest


# --- logs ----------------------------------------


@contextlib.contextmanager
def building(engine: Sequence[str], folder: Path) -> Iterator[list[int]]:
    """One build after another while the context lasts; how many came to their end."""
    over = threading.Event()
    done = [0]
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not over.is_set():
                build(engine, folder, "--no-cache", "--network", "none")
                done[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)  # it has begun
    try:
        yield done
    finally:
        over.set()
        thread.join()
        if failed:
            raise failed[0]


def logs(engines: Engines, rounds: int) -> Iterator[Row]:
    """How long a container takes to write its lines, with and without builds beside it."""
    folder = context("steps", STEPS)
    script = f"yes {'x' * 70} | head -n {LINES}"
    argv = ["--network", "none", "--log-driver", "json-file", "--name", "chatty", "busybox:latest", "sh", "-c", script]
    alone = Row(f"{LINES:,} lines of a container's log, no build", "ms", {who: [] for who in engines})
    beside = Row(f"{LINES:,} lines while builds run", "ms", {who: [] for who in engines})

    def write(engine: Sequence[str]) -> float:
        begin = time.perf_counter()
        run([*engine, "run", "-d", *argv])
        run([*engine, "wait", "chatty"])
        spent = time.perf_counter() - begin
        run([*engine, "rm", "-f", "chatty"])
        return spent * 1000

    for _ in range(rounds):
        for who, engine in engines.items():
            alone.samples[who].append(write(engine))
            with building(engine, folder):
                beside.samples[who].append(write(engine))
    for row in (alone, beside):
        row.note = "lines/s: " + ", ".join(f"{who} {LINES / row.median(who) * 1000:,.0f}" for who in engines)
    slower = ", ".join(f"{who} {beside.median(who) / alone.median(who):.2f}" for who in engines)
    beside.note += f"; times as long as without: {slower}"
    yield alone
    yield beside


def rows(engines: Engines, rounds: int) -> Iterator[Row]:
    """All of it; the engines by their names, ours first."""
    few = min(rounds, 5)
    shutil.rmtree(PLACE, ignore_errors=True)
    try:
        yield from cached(engines, rounds)
        yield from steps(engines, few)
        yield from contexts(engines, few)
        yield from memory(engines)
        yield from export(engines, min(rounds, 3))
        yield from stages(engines, min(rounds, 3))
        yield from logs(engines, min(rounds, 3))
    finally:
        shutil.rmtree(PLACE)
        for engine in engines.values():
            prune(engine)
