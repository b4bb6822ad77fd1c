#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Teu against Docker, side by side in one lab: `./dev bench` runs this inside the namespace lab. Against an older tree
of ours, `./dev bench --against COMMIT` runs pair.py; what a command costs, process by process, `./dev bench --budget`
counts with budget.py.

Both engines run as their packages ship them, with the same image.  Every figure is a median over turns taken in
one run; the table is printed and written to --output.  Nothing here is a test: a slow machine fails nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import http.client
import io
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import Row, load_image, rollup, run, table, turns

IMAGE = "busybox:latest"
REGISTRY_PORT = 5055
DOCKER = ["docker", "-H", "unix:///run/docker.sock"]
ENGINES = {"teu": ["teu"], "docker": DOCKER}


def settle() -> None:
    """Let the daemons finish what the last job left to them."""
    time.sleep(0.3)


def start_docker() -> None:
    for unit in ("containerd.service", "docker.socket", "docker.service"):
        subprocess.run(["systemctl", "unmask", unit], capture_output=True, check=False)
    subprocess.run(["systemctl", "start", "containerd.service", "docker.service"], check=True)


def load_both() -> None:
    load_image(IMAGE)
    saved = Path("/var/lib/teu-bench-image.tar")
    run(["teu", "save", "-o", str(saved), IMAGE])
    run([*DOCKER, "load", "-i", str(saved)])
    saved.unlink()


def bench_run(rounds: int) -> Iterator[Row]:
    for network in ("bridge", "none", "host"):
        yield turns(
            f"run --rm --network {network} busybox true",
            {
                who: (lambda _i, c=cmd, n=network: run([*c, "run", "--rm", "--network", n, IMAGE, "true"]))
                for who, cmd in ENGINES.items()
            },
            rounds,
            warmup=2,
        )


def remove_all() -> None:
    for cmd in ENGINES.values():
        ids = run([*cmd, "ps", "-aq"]).split()
        if ids:
            run([*cmd, "rm", "-f", *ids])


def bench_detached(rounds: int) -> Iterator[Row]:
    yield turns(
        "run -d (one after another)",
        {
            who: (lambda i, c=cmd: run([*c, "run", "-d", "--name", f"d{i}", IMAGE, "sleep", "3600"]))
            for who, cmd in ENGINES.items()
        },
        rounds,
    )
    yield turns(
        "rm -f of a running container",
        {who: (lambda i, c=cmd: run([*c, "rm", "-f", f"d{i}"])) for who, cmd in ENGINES.items()},
        rounds,
    )


def bench_exec(rounds: int) -> Iterator[Row]:
    remove_all()
    for cmd in ENGINES.values():
        run([*cmd, "run", "-d", "--name", "target", IMAGE, "sleep", "3600"])
    jobs = {w: (lambda _i, c=c: run([*c, "exec", "target", "true"])) for w, c in ENGINES.items()}
    yield turns("exec target true", jobs, rounds, warmup=2)
    yield turns("ps", {w: (lambda _i, c=c: run([*c, "ps"])) for w, c in ENGINES.items()}, rounds)
    yield turns("inspect", {w: (lambda _i, c=c: run([*c, "inspect", "target"])) for w, c in ENGINES.items()}, rounds)
    remove_all()


def pids_named(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                # a script shows as: interpreter [options] program
                names = [os.path.basename(a).decode(errors="replace") for a in argv[:3]]
                if word in names and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
    return found


def bench_memory() -> Iterator[Row]:
    for cmd in ENGINES.values():
        for i in range(20):
            run([*cmd, "run", "-d", "--network", "host", "--name", f"m{i}", IMAGE, "sleep", "3600"])
    settle()
    shims = {"teu": "containerd-shim-teu-v2", "docker": "containerd-shim-runc-v2"}
    row = Row("shim, proportional memory, 20 running", "MiB")
    for who, word in shims.items():
        pids = [p for p in pids_named(word) if b"-id" in Path(f"/proc/{p}/cmdline").read_bytes()]
        row.samples[who] = [rollup(p, "Pss") / 1024 for p in pids]
        row.note += f"{who}: {len(pids)} shims; "
    yield row
    for ours, theirs in (("teud", "dockerd"), ("teu-containerd", "containerd")):
        row = Row(f"{ours} against {theirs}, resident, 20 running", "MiB")
        row.samples["teu"] = [sum(rollup(p, "Rss") for p in pids_named(ours)[:1]) / 1024]
        row.samples["docker"] = [sum(rollup(p, "Rss") for p in pids_named(theirs)[:1]) / 1024]
        yield row
    remove_all()


QUIET = 20
# What of each engine runs beside the containers' own processes.
BESIDE = {
    "teu": ("teud", "teu-containerd", "containerd-shim-teu-v2"),
    "docker": ("dockerd", "containerd", "containerd-shim-runc-v2", "docker-proxy"),
    "podman": ("podman", "conmon", "netavark", "aardvark-dns"),
}
IDLE_DROP_INS = (Path("/etc/teu/teud.yaml.d/quiet.yaml"), Path("/etc/teu/containerd.yaml.d/quiet.yaml"))
LEAVE_SECONDS = 60


def bench_quiet() -> Iterator[Row]:
    """What a host pays for containers that say nothing while no client is there: our daemons leave, podman has none."""
    remove_all()
    saved = Path("/var/lib/teu-bench-image.tar")
    run(["teu", "save", "-o", str(saved), IMAGE])
    run(["podman", "load", "-i", str(saved)])
    saved.unlink()
    for path in IDLE_DROP_INS:
        path.parent.mkdir(exist_ok=True)
        path.write_text("idle-exit: 2s\n")
    memory = Row(f"{QUIET} quiet containers and no client: memory", "MiB", note="proportional, beside the containers'")
    count = Row(f"{QUIET} quiet containers and no client: processes", "", note="beside the containers'")
    # podman's crun wants the pids controller for its cgroup, which the namespace lab does not have.
    commands = {
        **{who: [*cmd, "run"] for who, cmd in ENGINES.items()},
        "podman": ["podman", "run", "--cgroups=disabled"],
    }
    try:
        run(["systemctl", "restart", "teud.service", "teu-containerd.service"])
        for cmd in commands.values():
            for i in range(QUIET):
                run([*cmd, "-d", "--network", "host", "--name", f"q{i}", IMAGE, "sleep", "3600"])
        deadline = time.monotonic() + LEAVE_SECONDS
        while pids_named("teud") or pids_named("teu-containerd"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"teud or teu-containerd is still there after {LEAVE_SECONDS} s")
            time.sleep(0.5)
        for who, words in BESIDE.items():
            pids = {pid for word in words for pid in pids_named(word)}
            memory.samples[who] = [sum(rollup(pid, "Pss") for pid in pids) / 1024]
            count.samples[who] = [float(len(pids))]
        yield memory
        yield count
    finally:
        for path in IDLE_DROP_INS:
            path.unlink(missing_ok=True)
        run(["systemctl", "restart", "teud.service", "teu-containerd.service"])
        remove_all()
        run(["podman", "rm", "-f", "-t", "0", *(f"q{i}" for i in range(QUIET))])


DECLARED = 50
GENERATORS = {
    "teu": ("/usr/lib/systemd/system-generators/teu-system-generator", "TEU_UNIT_DIRS"),
    "podman": ("/usr/lib/systemd/system-generators/podman-system-generator", "QUADLET_UNIT_DIRS"),
}


def bench_generator(rounds: int) -> Iterator[Row]:
    """What declared containers cost each boot and each daemon-reload, which wait for the generators."""
    with tempfile.TemporaryDirectory() as folder:
        files, target = Path(folder, "files"), Path(folder, "units")
        for path in (files, target):
            path.mkdir()
        for number in range(DECLARED):
            (files / f"web{number}.container").write_text(
                f"[Unit]\nDescription=Site {number}\n[Container]\nImage=docker.io/library/busybox:latest\n"
                f"PublishPort=127.0.0.1:{9000 + number}:80\nVolume=/srv:/srv:ro\nEnvironment=A=1 B=2\nExec=httpd -f\n"
                "[Service]\nRestart=always\n[Install]\nWantedBy=multi-user.target\n"
            )
        jobs: dict[str, Callable[[int], object]] = {}
        for who, (program, variable) in GENERATORS.items():
            environment = {"PATH": "/usr/bin", variable: str(files)}
            argv = [program, str(target), str(target), str(target)]
            jobs[who] = lambda _i, argv=argv, env=environment: run(argv, env=env)  # type: ignore[misc]
        yield turns(f"generator, {DECLARED} declared containers", jobs, rounds, warmup=2)


def bench_tasks(rounds: int) -> Iterator[Row]:
    import tasks

    yield from tasks.life(rounds)


def bench_crowd() -> Iterator[Row]:
    """How the daemons grow with the number of containers, and the engines' `ps` with 400."""
    import tasks

    yield from tasks.crowd()
    row = Row("ps with 400 running", "ms", {who: [] for who in ENGINES})
    with ThreadPoolExecutor(10) as pool:
        for cmd in ENGINES.values():
            argv = [*cmd, "run", "-d", "--network", "none", "--log-driver", "json-file", IMAGE, "sleep", "3600"]
            list(pool.map(run, [argv] * 400))
    settle()
    for _ in range(9):
        for who, cmd in ENGINES.items():
            begin = time.perf_counter()
            if len(run([*cmd, "ps", "-q"]).split()) != 400:
                raise RuntimeError(f"{who} does not show 400 containers")
            row.samples[who].append((time.perf_counter() - begin) * 1000)
    yield row
    remove_all()


def bench_logs(megabytes: int, rounds: int) -> Iterator[Row]:
    line = "x" * 70
    count = megabytes * 1_000_000 // 71
    # busybox yes|head writes whole lines as fast as the log driver takes them
    script = f"yes {line} | head -n {count}"
    yield turns(
        f"write {megabytes} MB of log lines, json-file",
        {
            w: (
                lambda i, c=c: subprocess.run(
                    [
                        *c,
                        "run",
                        "--log-driver",
                        "json-file",
                        "--network",
                        "none",
                        "--name",
                        f"l{i}",
                        IMAGE,
                        "sh",
                        "-c",
                        script,
                    ],
                    stdout=subprocess.DEVNULL,
                    check=True,
                )
            )
            for w, c in ENGINES.items()
        },
        1,
        warmup=0,
    )
    yield turns(
        f"logs of those {megabytes} MB",
        {
            w: (lambda _i, c=c: subprocess.run([*c, "logs", "l0"], stdout=subprocess.DEVNULL, check=True))
            for w, c in ENGINES.items()
        },
        rounds,
        warmup=0,
    )
    remove_all()
    # What the journal itself takes is most of this: each line is an entry with some thirty fields.
    short = "yes x | head -n 100000"
    yield turns(
        "write 100,000 two-byte lines, journald",
        {
            w: (
                lambda i, c=c: subprocess.run(
                    [
                        *c,
                        "run",
                        "--log-driver",
                        "journald",
                        "--network",
                        "none",
                        "--name",
                        f"l{i}",
                        IMAGE,
                        "sh",
                        "-c",
                        short,
                    ],
                    stdout=subprocess.DEVNULL,
                    check=True,
                )
            )
            for w, c in ENGINES.items()
        },
        rounds,
        warmup=0,
    )
    yield turns(
        "logs of those 100,000 lines",
        {
            w: (lambda _i, c=c: subprocess.run([*c, "logs", "l0"], stdout=subprocess.DEVNULL, check=True))
            for w, c in ENGINES.items()
        },
        rounds,
        warmup=0,
    )
    yield turns(
        "logs --tail 10 of those 100,000 lines",
        {
            w: (
                lambda _i, c=c: subprocess.run(
                    [*c, "logs", "--tail", "10", "l0"], stdout=subprocess.DEVNULL, check=True
                )
            )
            for w, c in ENGINES.items()
        },
        rounds,
        warmup=0,
    )
    remove_all()


def make_layer(size: int, files: int) -> bytes:
    """A gzip layer of about `size` compressed bytes and `files` entries: half noise, half text, as layers are."""
    rng = random.Random(7)
    raw = io.BytesIO()
    each = size * 2 // files
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(files):
            body = rng.randbytes(each // 2) + (b"line %d of a text file\n" % i) * (each // 40)
            info = tarfile.TarInfo(f"data/d{i % 97}/f{i}")
            info.size, info.mtime = len(body), 1_700_000_000
            tar.addfile(info, io.BytesIO(body))
    return gzip.compress(raw.getvalue(), 6)


def put_blob(conn: http.client.HTTPConnection, repo: str, data: bytes) -> str:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    conn.request("POST", f"/v2/{repo}/blobs/uploads/")
    answer = conn.getresponse()
    answer.read()
    where = answer.headers["Location"]
    where += ("&" if "?" in where else "?") + "digest=" + digest
    conn.request("PUT", where, data, {"Content-Type": "application/octet-stream"})
    answer = conn.getresponse()
    answer.read()
    if answer.status != 201:
        raise RuntimeError(f"the registry refused a blob: {answer.status}")
    return digest


@contextlib.contextmanager
def registry() -> Iterator[Callable[[str], str]]:
    """Debian's registry server on loopback; yields what pushes an image of one large layer and returns its reference.

    Each image has a layer of its own that differs from the others in one small file: what is pulled twice, or right
    after the same files were removed, would measure the file system's memory of them.
    """
    root = Path("/var/lib/teu-bench-registry")
    config = Path("/run/teu-bench-registry.yml")
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}\nhttp:\n  addr: 127.0.0.1:{REGISTRY_PORT}\n"
    )
    server = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", REGISTRY_PORT)):
                break
            time.sleep(0.1)
        layer = make_layer(100_000_000, 10_000)
        plain = gzip.decompress(layer)

        def push(tag: str) -> str:
            info = tarfile.TarInfo("variant")
            info.size = len(tag)
            entry = info.tobuf() + tag.encode().ljust(tarfile.BLOCKSIZE, b"\0")
            diff_id = "sha256:" + hashlib.sha256(entry + plain).hexdigest()
            put_image(gzip.compress(entry) + layer, diff_id, tag)  # two members of gzip are one layer
            return f"127.0.0.1:{REGISTRY_PORT}/big:{tag}"

        yield push
    finally:
        server.terminate()
        server.wait()
        run(["rm", "-rf", str(root), str(config)])


def put_image(layer: bytes, diff_id: str, tag: str) -> None:
    conn = http.client.HTTPConnection("127.0.0.1", REGISTRY_PORT)
    image = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    ).encode()
    layer_digest, image_digest = put_blob(conn, "big", layer), put_blob(conn, "big", image)
    media = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": image_digest,
                "size": len(image),
            },
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer_digest, "size": len(layer)}
            ],
        }
    ).encode()
    conn.request("PUT", f"/v2/big/manifests/{tag}", manifest, {"Content-Type": media})
    answer = conn.getresponse()
    answer.read()
    conn.close()
    if answer.status != 201:
        raise RuntimeError(f"the registry refused the manifest: {answer.status}")


def bench_pull(rounds: int) -> Iterator[Row]:
    engines = {
        "teu": (["teu", "pull", "-q"], ["teu", "rmi"]),
        "docker": ([*DOCKER, "pull", "-q"], [*DOCKER, "rmi"]),
        "podman": (["podman", "pull", "-q", "--tls-verify=false"], ["podman", "rmi"]),
    }
    daemons = {
        who: ([who, "images", "pull", "--plain-http"], [who, "images", "rm", "--sync"]) for who in ("teu-ctr", "ctr")
    }
    rows = [
        Row("pull of a 100 MB gzip layer (10,000 files)", "ms", {who: [] for who in engines}),
        Row("the same without an engine, to a ready snapshot", "ms", {who: [] for who in daemons}),
    ]
    pulled: list[list[str]] = []
    with registry() as push:
        for number in range(rounds):
            for row, contestants in zip(rows, (engines, daemons), strict=True):
                for who, (pull, remove) in contestants.items():
                    reference = push(f"{who}-{number}")
                    os.sync()
                    settle()
                    begin = time.perf_counter()
                    run([*pull, reference])
                    row.samples[who].append((time.perf_counter() - begin) * 1000)
                    pulled.append([*remove, reference])
        for each in pulled:
            run(each)
    yield from rows


def ping(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        if not sock.recv(12).startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path} did not answer 200")
        while sock.recv(65536):
            pass


def bench_wake(rounds: int) -> Iterator[Row]:
    """From the first connection to the answer of a daemon that systemd has to start."""

    def stop(units: list[str]) -> None:
        run(["systemctl", "stop", *units])
        run(["systemctl", "reset-failed"])

    row = Row("stopped daemon: first connection to answer", "ms", {"teu": [], "docker": []})
    for _ in range(rounds):
        stop(["teud.service", "teu-containerd.service"])
        begin = time.perf_counter()
        ping("/run/teu/teud.sock")
        row.samples["teu"].append((time.perf_counter() - begin) * 1000)
        stop(["docker.service", "containerd.service"])
        run(["systemctl", "start", "docker.socket"])
        begin = time.perf_counter()
        ping("/run/docker.sock")
        row.samples["docker"].append((time.perf_counter() - begin) * 1000)
    yield row


def bench_runtime(rounds: int) -> Iterator[Row]:
    import runtimes

    yield from runtimes.rows(rounds)


def bench_build(rounds: int) -> Iterator[Row]:
    import builds

    yield from builds.rows(ENGINES, rounds)


def bench_network(group: str, rounds: int) -> Iterator[Row]:
    import networks

    yield from networks.GROUPS[group](rounds)


def bench_cri(rounds: int) -> Iterator[Row]:
    import cri

    yield from cri.rows(rounds)


def head() -> str:
    versions = []
    for argv in (
        ["teu", "--version"],
        ["docker", "--version"],
        ["docker", "buildx", "version"],
        ["containerd", "--version"],
        ["runc", "--version"],
        ["crun", "--version"],
        ["podman", "--version"],
    ):
        with contextlib.suppress(OSError, RuntimeError):
            versions.append(run(argv).splitlines()[0].strip())
    cpus = os.cpu_count()
    return (
        f"Measured {time.strftime('%Y-%m-%d')} on {cpus} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}; " + "; ".join(versions) + ".\n\n"
        "Medians; each pair took turns in one run in the same lab; ratio = ours / theirs, below 1 is faster or "
        "smaller.\n\n"
    )


# By name, what yields the rows; given the rounds that were asked for.
GROUPS: dict[str, Callable[[int], Iterator[Row]]] = {
    "run": bench_run,
    "detached": bench_detached,
    "exec": bench_exec,
    "memory": lambda _: bench_memory(),
    "quiet": lambda _: bench_quiet(),
    "generator": bench_generator,
    "tasks": bench_tasks,
    "crowd": lambda _: bench_crowd(),
    "cri": bench_cri,
    "logs": lambda _: bench_logs(200, 3),
    "pull": lambda _: bench_pull(5),
    "wake": lambda _: bench_wake(5),
    "runtime": bench_runtime,
    "build": bench_build,
    "attach": lambda rounds: bench_network("attach", rounds),
    "traffic": lambda rounds: bench_network("traffic", rounds),
    "many": lambda rounds: bench_network("many", rounds),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--only", default="", help="the same, comma-separated")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    wanted = [*options.groups, *(w for w in options.only.split(",") if w)] or list(GROUPS)
    if unknown := [name for name in wanted if name not in GROUPS]:
        parser.error(f"unknown group {', '.join(unknown)}; choose from {', '.join(GROUPS)}")
    start_docker()
    load_both()
    rows: list[Row] = []
    for name in wanted:
        for row in GROUPS[name](options.rounds):
            print(table([row]).splitlines()[-1], flush=True)
            rows.append(row)
    text = head() + table(rows)
    if options.output:
        options.output.write_text("# Benchmarks\n\n" + text)
    print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
