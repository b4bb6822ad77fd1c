# SPDX-License-Identifier: Apache-2.0
"""The clients: each a thread that does one thing after the other with things of its own."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import images
import whole
from scripted_registry import ScriptedRegistry, tar

from soak.ledger import ABSENT, DUE, Container, Ledger, Thing

# Under /var/lib, which is a real file system in the lab.
WORK = Path("/var/lib/teu-soak")
# No command takes so long, however many deaths it meets; if it does it hangs.
HANG = 240.0
# For an answer, while daemons die and come back.
PATIENT = 90.0
AT_MOST = {"container": 4, "image": 3, "network": 2, "volume": 2}
TAGS = 4  # of each client's repository

WRITER = """\
run=$(cat /proc/sys/kernel/random/uuid); i=0
while :; do i=$((i+1)); echo "$run $i"; echo "$run $i" >>/said/lines; usleep 60000; done"""
SERVER = "echo %s >/tmp/index.html; exec httpd -f -p 80 -h /tmp"
# The programs that are run, by role; a mortal ends by itself.
ROLES = ("sleeper", "sleeper", "mortal", "writer", "writer", "keeper", "server")


class Done(NamedTuple):
    code: int
    out: str
    err: str
    killed: bool  # the client was, by a killer

    @property
    def acknowledged(self) -> bool:
        return self.code == 0 and not self.killed


class Workshop:
    """What the clients share: a registry, a folder, the processes that are under way."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.registry = ScriptedRegistry()
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self._struck: set[subprocess.Popen[bytes]] = set()
        self.contents: dict[str, str] = {}  # what /own says in each image
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Workshop:
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        images.need_busybox()
        self._stack.enter_context(self.registry)
        # So that some of a pull is under way for a while.
        self.registry.hook = lambda _method, path: time.sleep(0.05 if "/blobs/" in path else 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        shutil.rmtree(WORK, ignore_errors=True)

    def offer(self, number: int, dice: random.Random) -> None:
        """The images of a client: a base that all share, and layers of its own."""
        base = images.busybox_layer()
        ballast = tar(("ballast", random.Random(1).randbytes(3_000_000)))
        for tag in range(TAGS):
            text = f"{number}-{tag}-{dice.randrange(1 << 30)}"
            layers = [base, ballast, tar(("own", text.encode()), ("bulk", dice.randbytes(500_000)))]
            self.registry.image(f"soak{number}", str(tag), *layers)
            self.contents[f"{self.registry.address}/soak{number}:{tag}"] = text

    def teu(self, *argv: str, stdin: bytes = b"", timeout: float = HANG) -> Done:
        process = subprocess.Popen(
            ["teu", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with self.lock:
            self.running.add(process)
        try:
            out, err = process.communicate(stdin, timeout=timeout)
            hangs = False
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            hangs = True
        with self.lock:
            self.running.discard(process)
            killed = process in self._struck and process.returncode < 0
            self._struck.discard(process)
        said = err.decode(errors="replace")
        shown = " ".join(argv)[:200]
        if hangs:
            self.ledger.contradict(f"hangs for {timeout:.0f} s: teu {shown}")
        elif process.returncode < 0 and not killed:
            self.ledger.contradict(f"ended by signal {-process.returncode}: teu {shown}")
        if "Traceback" in said or "internal error" in said.lower():
            self.ledger.contradict(f"teu {shown}: {said.strip()[-600:]}")
        return Done(process.returncode, out.decode(errors="replace"), said, killed or hangs)

    def strike(self, dice: random.Random) -> bool:
        """Kill a client; whether there was one."""
        with self.lock:
            alive = [process for process in self.running if process.poll() is None]
            if not alive:
                return False
            victim = dice.choice(alive)
            self._struck.add(victim)
            victim.kill()
            return True


def ask(path: str, until: float = PATIENT) -> tuple[int, Any]:
    """The API's answer as soon as there is one; (0, why) after `until` seconds without."""
    deadline = time.monotonic() + until
    last: object = None
    while True:
        try:
            status, body = images.api("GET", path)
            if status < 500:
                return status, body
            last = f"{status}: {body}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            last = repr(error)
        if time.monotonic() > deadline:
            return 0, last
        time.sleep(0.1)


class Client:
    """Has a thread; is none, whose names are many."""

    def __init__(self, workshop: Workshop, number: int, dice: random.Random) -> None:
        self.name = f"client {number}"
        self._thread = threading.Thread(target=self._run, name=self.name)
        self.start, self.join = self._thread.start, self._thread.join
        self.number = number
        self._workshop, self._ledger, self._dice = workshop, workshop.ledger, dice
        self._count = 0
        self._deeds: list[Callable[[], None]] = [
            *[self._make] * 5,
            self._foreground,
            self._foreground,
            *[self._life] * 8,
            *[self._exec] * 5,
            self._exec_input,
            *[self._copy_in] * 3,
            *[self._copy_out] * 3,
            self._logs,
            self._logs,
            *[self._remove] * 3,
            self._commit,
            *[self._pull] * 3,
            *[self._use_image] * 2,
            self._remove_image,
            self._tag,
            *[self._network] * 3,
            self._connect,
            self._connect,
            self._disconnect,
            *[self._volume] * 4,
            self._fetch,
            self._look,
            self._look,
            *[self._build] * 4,
            self._prune,
        ]
        self._volumes: dict[str, set[str]] = {}  # what each may say
        self.folder = WORK / str(number)
        workshop.offer(number, dice)

    def _run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._ledger.over.is_set():
            try:
                self._dice.choice(self._deeds)()
                mine = [thing for kind in AT_MOST for thing in self._mine(kind)]
                # Those above all of which it is not known how they are.
                mine = [thing for thing in mine if thing.settled() and len(thing.states) > 1] or mine
                if mine:
                    self.verify(self._dice.choice(mine))
            except Exception as error:
                self._ledger.contradict(f"{self.name} fails itself: {error!r}")
                if not isinstance(error, (OSError, AssertionError)):
                    raise

    # -- help ----------------------------------------------------------------------------------

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"s{self.number}-{kind}-{self._count}"

    def _mine(self, kind: str) -> list[Any]:
        """What may be there of this client's."""
        with self._ledger.lock:
            return [
                thing
                for thing in self._ledger.things.values()
                if thing.kind == kind and self._owns(thing.name) and thing.states != {ABSENT} and not thing.doubted
            ]

    def _owns(self, name: str) -> bool:
        name = name.rpartition("/")[2]
        return name.startswith((f"s{self.number}-", f"soak{self.number}:"))

    def _some(self, *states: str) -> Container | None:
        """One of the client's containers that is certainly in one of these states."""
        with self._ledger.lock:
            found = [one for one in self._mine("container") if any(one.certain(state) for state in states)]
        return self._dice.choice(found) if found else None

    def _present(self, kind: str) -> Thing | None:
        with self._ledger.lock:
            found = [one for one in self._mine(kind) if one.certain("present")]
        return self._dice.choice(found) if found else None

    def _teu(self, verb: str, *argv: str, stdin: bytes = b"", code: int = 0) -> Done:
        """Run it and count how it went; an exit code that the program in a container was told to end with is an
        acknowledgement as well."""
        done = self._workshop.teu(*argv, stdin=stdin)
        if done.killed:
            how = "client killed"
        elif done.code == code:
            how = "acknowledged"
        else:
            how = "refused"
            self._ledger.refused(verb, done.err)
            if not done.err.strip():
                self._ledger.contradict(f"refused without a word ({done.code}): teu {' '.join(argv)[:200]}")
        self._ledger.count(verb, how)
        return done

    def _do(self, verb: str, thing: Thing, after: str, *argv: str, meanwhile: tuple[str, ...] = ()) -> Done:
        """A command that brings the thing into the state of after."""
        self._ledger.begin(thing, after, *meanwhile)
        if isinstance(thing, Container):
            thing.pid = 0
        done = self._teu(verb, *argv)
        with self._ledger.lock:
            if done.acknowledged:
                thing.due = None
            self._ledger.end(thing, done.acknowledged, after)
        return done

    # -- containers ----------------------------------------------------------------------------

    def _make(self) -> None:
        if len(self._mine("container")) >= AT_MOST["container"]:
            return
        dice = self._dice
        role = dice.choice(ROLES)
        container = Container("container", self._fresh(role), role=role)
        flags = ["--name", container.name, "--label", "soak=1"]
        script = ["sleep", "1000000"]
        if role == "writer":
            container.driver = dice.choice(("json-file", "journald"))
            said = self.folder / container.name
            said.mkdir()
            flags += ["--log-driver", container.driver, "-v", f"{said}:/said"]
            script = ["sh", "-c", WRITER]
        elif role == "mortal":
            code = dice.randrange(1, 120)
            container.codes = {code}
            script = ["sh", "-c", f"sleep {dice.uniform(0, 4):.2f}; exit {code}"]
        elif role == "keeper":
            container.keeps = True
            flags += ["--restart", "unless-stopped"]
        elif role == "server":
            flags += ["-p", "127.0.0.1::80"]
            script = ["sh", "-c", SERVER % container.name]
        network, volume = self._present("network"), self._present("volume")
        if network and dice.random() < 0.4:
            flags += ["--network", network.name]
            container.networks[network.name] = True
        if volume and dice.random() < 0.3:
            flags += ["-v", f"{volume.name}:/volume"]
        self._ledger.add(container)
        verb = dice.choice(("create", "run"))
        words = [verb, *(["-d"] if verb == "run" else []), *flags, whole.IMAGE, *script]
        after = "running" if verb == "run" else "created"
        done = self._do(verb, container, after, *words, meanwhile=("created", "running", "exited"))
        with self._ledger.lock:
            if done.acknowledged:
                container.ident = done.out.strip()
                if verb == "run":
                    self._started(container)
            else:
                container.networks = dict.fromkeys(container.networks)
                container.codes |= {126, 127, 128} if container.codes else set()

    def _started(self, container: Container) -> None:
        if container.role == "mortal":
            with self._ledger.lock:
                container.states = {"running", "exited"}
                container.due = ("exited", time.monotonic() + DUE)

    def _life(self) -> None:
        """Start, stop, restart, kill, pause: what suits the state."""
        container = self._some("created", "running", "exited", "paused")
        if not container:
            return
        dice, name = self._dice, container.name
        (state,) = container.states
        if state in ("created", "exited"):
            with self._ledger.lock:
                if container.role != "mortal":
                    container.codes = set()
            if self._do("start", container, "running", "start", name, meanwhile=("exited",)).acknowledged:
                self._started(container)
            else:
                with self._ledger.lock:  # 126 to 128: it was not to be started
                    container.codes |= {126, 127, 128} if container.codes else set()
            return
        if state == "paused":
            self._do("unpause", container, "running", "unpause", name)
            return
        verb = dice.choice(("stop", "stop", "restart", "kill", "pause"))
        with self._ledger.lock:
            container.codes |= {137, 143}
        if verb == "stop":
            self._do("stop", container, "exited", "stop", "-t", dice.choice(("0", "1")), name)
        elif verb == "restart":
            words = ("restart", "-t", "0", name)
            if self._do("restart", container, "running", *words, meanwhile=("exited",)).acknowledged:
                self._started(container)
            else:
                with self._ledger.lock:
                    container.codes |= {126, 127, 128}
        elif verb == "pause":
            self._do("pause", container, "paused", "pause", name)
        elif self._do("kill", container, "exited", "kill", name).acknowledged:
            with self._ledger.lock:  # it has been sent; the end follows
                container.states = {"running", "exited"}
                container.due = ("exited", time.monotonic() + DUE)

    def _remove(self) -> None:
        container = self._some("created", "running", "exited", "paused")
        if not container:
            return
        if container.role == "writer" and container.driver:
            self.verify_log(container)
        done = self._do("rm", container, ABSENT, "rm", "-f", "-v", container.name, meanwhile=("exited",))
        if done.acknowledged:
            with self._ledger.lock:
                container.networks.clear()
            if container.role == "writer":
                shutil.rmtree(self.folder / container.name, ignore_errors=True)

    def _foreground(self) -> None:
        """run --rm: what it says and its exit code are those of the program; it goes by itself, also without client."""
        word, code = f"word{self._dice.randrange(1 << 40)}", self._dice.randrange(20, 100)
        container = Container("container", self._fresh("rm"), role="foreground")
        self._ledger.add(container)
        self._ledger.begin(container, "created", "running", "exited")
        done = self._teu(
            "run --rm",
            "run",
            "--rm",
            "--name",
            container.name,
            whole.IMAGE,
            "sh",
            "-c",
            f"echo {word}; sleep {self._dice.uniform(0, 1):.2f}; exit {code}",
            code=code,
        )
        told = done.code == code and not done.killed
        if told and done.out != f"{word}\n":
            self._ledger.contradict(f"run --rm said {done.out!r} and ended with {code}, and {word} was to be said")
        if not told and not done.killed and done.code not in (1, 125, 137):
            self._ledger.contradict(f"run --rm ended with {done.code} in place of {code}: {done.err.strip()}")
        with self._ledger.lock:
            self._ledger.end(container, told, ABSENT, "exited", "running")
            if told:
                container.due = (ABSENT, time.monotonic() + DUE)
            else:  # what was created and not started stays, as with docker
                container.states = {ABSENT, "created", "running", "exited"}

    def _exec(self) -> None:
        container = self._some("running")
        if not container:
            return
        version = container.version
        word, code = f"word{self._dice.randrange(1 << 40)}", self._dice.randrange(20, 100)
        done = self._teu("exec", "exec", container.name, "sh", "-c", f"echo {word}; exit {code}", code=code)
        if done.killed:
            return
        if done.code == code and done.out != f"{word}\n":
            self._ledger.contradict(f"exec said {done.out!r} in place of {word}, and ended with {code}", container)
        elif done.code not in (code, 1, 125, 126, 127, 137) and container.version == version:
            self._ledger.contradict(f"exec ended with {done.code} in place of {code}: {done.err.strip()}", container)

    def _exec_input(self) -> None:
        container = self._some("running")
        if not container:
            return
        data = self._dice.randbytes(self._dice.randrange(1, 400_000))
        done = self._teu("exec -i", "exec", "-i", container.name, "sha256sum", stdin=data)
        if done.acknowledged and done.out.split()[:1] != [hashlib.sha256(data).hexdigest()]:
            self._ledger.contradict(f"exec -i ended with 0; its {len(data)} bytes came otherwise", container)

    def _copy_in(self) -> None:
        container = self._some("created", "running", "exited")
        if not container:
            return
        path = f"/root/f{self._dice.randrange(6)}"
        data = self._dice.randbytes(self._dice.choice((10, 5000, 1_500_000)))
        source = self.folder / "in"
        source.write_bytes(data)
        with self._ledger.lock:
            container.files.pop(path, None)  # either, or in part, until it is acknowledged
        if self._teu("cp in", "cp", str(source), f"{container.name}:{path}").acknowledged:
            with self._ledger.lock:
                container.files[path] = data

    def _copy_out(self) -> None:
        container = self._some("created", "running", "exited")
        if container and container.files:
            self.verify_file(container, self._dice.choice(sorted(container.files)))

    def _logs(self) -> None:
        with self._ledger.lock:
            writers = [one for one in self._mine("container") if one.role == "writer" and ABSENT not in one.states]
        if writers:
            self.verify_log(self._dice.choice(writers))

    def _fetch(self) -> None:
        """The published port answers, also while the daemons are dead."""
        with self._ledger.lock:
            servers = [one for one in self._mine("container") if one.role == "server" and one.certain("running")]
        if not servers:
            return
        container = self._dice.choice(servers)
        version = container.version
        deadline = time.monotonic() + PATIENT
        last: object = None
        while container.version == version and not self._ledger.over.is_set():
            done = self._workshop.teu("port", container.name, "80")
            try:
                if done.acknowledged:
                    last = done.out
                    with urllib.request.urlopen(f"http://{done.out.split()[0]}/index.html", timeout=10) as answer:
                        last = answer.read().decode().strip()
                        self._ledger.checked("published ports")
                        if last == container.name:
                            return
            except (OSError, http.client.HTTPException, IndexError) as error:
                last = f"{last}: {error!r}"
            if time.monotonic() > deadline:
                self._ledger.contradict(f"its published port does not answer: {last}", container)
                return
            time.sleep(0.2)

    def _commit(self) -> None:
        container = self._some("running", "exited")
        if not container or len(self._mine("image")) >= AT_MOST["image"] + 1:
            return
        image = Thing("image", f"s{self.number}-commit:{self._count}")
        self._count += 1
        self._ledger.add(image)
        self._do("commit", image, "present", "commit", container.name, image.name)

    # -- images, networks, volumes -------------------------------------------------------------

    def _pull(self) -> None:
        name = self._dice.choice([one for one in self._workshop.contents if self._owns(one)])
        with self._ledger.lock:
            image = self._ledger.things.get(("image", name)) or Thing("image", name)
            self._ledger.things["image", name] = image
        if image.settled() and not image.doubted:
            self._do("pull", image, "present", "pull", "-q", name)

    def _use_image(self) -> None:
        image = self._present("image")
        if not image:
            return
        self.verify(image)
        if image.name not in self._workshop.contents or image.doubted:
            return
        container = Container("container", self._fresh("use"), role="foreground")
        self._ledger.add(container)
        self._ledger.begin(container, "created", "running", "exited")
        words = ["run", "--rm", "--name", container.name, image.name, "busybox", "cat", "/own"]
        done = self._teu("run an image", *words)
        wanted = self._workshop.contents[image.name]
        if done.acknowledged and done.out != wanted:
            self._ledger.contradict(f"its /own says {done.out!r} in place of {wanted!r}", image)
        with self._ledger.lock:
            self._ledger.end(container, False)
            if done.acknowledged:
                container.due = (ABSENT, time.monotonic() + DUE)

    def _tag(self) -> None:
        source = self._present("image")
        if not source or len(self._mine("image")) >= AT_MOST["image"]:
            return
        image = Thing("image", f"s{self.number}-tag:{self._count}")
        self._count += 1
        self._ledger.add(image)
        if source.name in self._workshop.contents:
            self._workshop.contents[image.name] = self._workshop.contents[source.name]
        self._do("tag", image, "present", "tag", source.name, image.name)

    def _remove_image(self) -> None:
        image = self._present("image")
        if image:
            self._do("rmi", image, ABSENT, "rmi", image.name)

    # -- builds --------------------------------------------------------------------------------

    def _build(self) -> None:
        """A few different ones, some of them those of others: done anew, or not, the result is the same."""
        number, mine = self._dice.randrange(4), self._dice.random() < 0.3
        context, result = self.folder / "context", self.folder / "built"
        shutil.rmtree(context, ignore_errors=True)
        shutil.rmtree(result, ignore_errors=True)
        context.mkdir()
        text = f"{self.number if mine else 'shared'}-{number}"
        (context / "file").write_text(text)
        (context / "bulk").write_bytes(random.Random(number).randbytes(2_000_000))
        (context / "Dockerfile").write_text(
            f"FROM busybox AS one\nRUN --mount=type=cache,target=/c sleep 0.{number}; echo {number} >/one\n"
            "FROM busybox\nCOPY . /context/\nCOPY --from=one /one /one\nRUN cat /context/file /one >/made\n"
        )
        done = self._teu("build", "build", "--progress=plain", "-o", f"type=local,dest={result}", str(context))
        if done.acknowledged:
            made = (result / "made").read_text() if (result / "made").exists() else None
            if made != f"{text}{number}\n":
                self._ledger.contradict(f"a build of {text} made {made!r}")
            self._ledger.checked("results of builds")
        shutil.rmtree(result, ignore_errors=True)

    def _prune(self) -> None:
        self._teu("builder prune", "builder", "prune", "-f", *self._dice.choice(([], ["-a"])))

    def _network(self) -> None:
        mine = self._mine("network")
        if len(mine) < AT_MOST["network"]:
            network = Thing("network", self._fresh("net"))
            self._ledger.add(network)
            self._do("network create", network, "present", "network", "create", network.name)
            return
        found = self._present("network")
        if not found:
            return
        with self._ledger.lock:
            used = [one for one in self._mine("container") if one.networks.get(found.name, False) is not False]
        if used:
            self.verify(found)
        else:
            self._do("network rm", found, ABSENT, "network", "rm", found.name)

    def _connect(self) -> None:
        network, container = self._present("network"), self._some("running", "created", "exited")
        if not network or not container or container.networks.get(network.name, False) is not False:
            return
        with self._ledger.lock:
            container.networks[network.name] = None
        if self._teu("connect", "network", "connect", network.name, container.name).acknowledged:
            with self._ledger.lock:
                container.networks[network.name] = True

    def _disconnect(self) -> None:
        container = self._some("running", "created", "exited")
        joined = [name for name, known in container.networks.items() if known] if container else []
        if not container or not joined:
            return
        name = self._dice.choice(joined)
        with self._ledger.lock:
            container.networks[name] = None
        if self._teu("disconnect", "network", "disconnect", name, container.name).acknowledged:
            with self._ledger.lock:
                container.networks[name] = False

    def _volume(self) -> None:
        """Made, written, read, removed."""
        mine = self._mine("volume")
        if len(mine) < AT_MOST["volume"]:
            volume = Thing("volume", self._fresh("vol"))
            self._ledger.add(volume)
            self._do("volume create", volume, "present", "volume", "create", volume.name)
            return
        found = self._present("volume")
        if not found:
            return
        written: set[str] = self._volumes.setdefault(found.name, {""})
        turn = self._dice.random()
        if turn < 0.15:
            # Refused where a container has it, which is a state as good as any.
            self._do("volume rm", found, ABSENT, "volume", "rm", found.name)
            return
        container = Container("container", self._fresh("vol"), role="foreground")
        self._ledger.add(container)
        self._ledger.begin(container, "created", "running", "exited")
        word = f"word{self._dice.randrange(1 << 40)}"
        script = f"echo {word} >/v/new && mv /v/new /v/word" if turn < 0.6 else "touch /v/word; cat /v/word"
        flags = ["--rm", "--name", container.name, "-v", f"{found.name}:/v"]
        done = self._teu("use a volume", "run", *flags, whole.IMAGE, "sh", "-c", script)
        with self._ledger.lock:
            self._ledger.end(container, False)
            if done.acknowledged:
                container.due = (ABSENT, time.monotonic() + DUE)
        if turn < 0.6:
            # What was not acknowledged may come to its end later than one that follows.
            self._volumes[found.name] = {word} if done.acknowledged and len(written) == 1 else written | {word}
        elif done.acknowledged:
            self._ledger.checked("volumes read")
            if done.out.strip() not in written:
                self._ledger.contradict(f"it says {done.out.strip()!r}, and was written {sorted(written)}", found)

    def _look(self) -> None:
        """What changes nothing, and has to answer or say why not."""
        words = self._dice.choice(
            (
                ("ps", "-a"),
                ("images",),
                ("system", "df"),
                ("stats", "--no-stream"),
                ("info",),
                ("network", "ls"),
                ("events", "--since", "10s", "--until", "0s"),
                ("volume", "ls"),
            )
        )
        container = self._some("running")
        if container and self._dice.random() < 0.5:
            words = self._dice.choice((("top", container.name), ("diff", container.name), ("inspect", container.name)))
        self._teu("look", *words)

    # -- what is asked of the ledger's entries -------------------------------------------------

    def verify(self, thing: Thing) -> None:
        """Ask about it until it is what it has to be."""
        deadline = time.monotonic() + PATIENT
        while not thing.doubted:
            with self._ledger.lock:
                version, possible = thing.version, thing.possible()
            state, body = self._state(thing)
            if state == "":
                self._ledger.contradict(f"no answer in {PATIENT:.0f} s about it: {body}", thing)
                return
            with self._ledger.lock:
                if thing.version != version:
                    continue
                problem = "" if state in possible else f"is {state}, and has to be {' or '.join(sorted(possible))}"
                if not problem and isinstance(thing, Container) and body:
                    problem = self._details(thing, state, body)
                if not problem:
                    self._ledger.checked(f"{thing.kind}s")
                    self._ledger.observed(thing, state, version)
                    return
            if time.monotonic() > deadline:
                self._ledger.contradict(problem, thing)
                return
            time.sleep(0.2)

    @staticmethod
    def _state(thing: Thing) -> tuple[str, Any]:
        path = {
            "container": "/containers/{}/json",
            "image": "/images/{}/json",
            "network": "/networks/{}",
            "volume": "/volumes/{}",
        }[thing.kind]
        status, body = ask(path.format(thing.name))
        if status == 404:
            return ABSENT, None
        if status != 200:
            return "", body
        return (str(body["State"]["Status"]) if thing.kind == "container" else "present"), body

    @staticmethod
    def _details(container: Container, state: str, body: Any) -> str:
        """What contradicts the ledger in a container's inspection, if anything does."""
        if state == "running" and container.certain("running") and not container.keeps:
            pid = int(body["State"]["Pid"])
            if container.pid and pid != container.pid:
                return f"its process is {pid} and was {container.pid}: nothing has started it again"
            container.pid = pid
            if not os.path.exists(f"/proc/{pid}"):
                return f"it is said to run, and its process {pid} is not there"
        code = int(body["State"]["ExitCode"])
        # What a restart policy brings back ends by what struck it.
        if state == "exited" and container.codes and code not in container.codes and not container.keeps:
            return f"ended with {code}, and has to have ended with {' or '.join(map(str, sorted(container.codes)))}"
        there = body["NetworkSettings"]["Networks"]
        for name, known in container.networks.items():
            if known is not None and known != (name in there):
                return f"it is {'' if known else 'not '}connected to {name}, and is on {sorted(there)}"
        return ""

    def verify_file(self, container: Container, path: str) -> None:
        target = self.folder / "out"
        target.unlink(missing_ok=True)
        version = container.version
        done = self._teu("cp out", "cp", f"{container.name}:{path}", str(target))
        if done.acknowledged:
            self._ledger.checked("files")
            wanted = container.files.get(path)
            if wanted is not None and target.read_bytes() != wanted:
                self._ledger.contradict(f"{path} was copied into it, and comes out otherwise", container)
        elif re.search("could not find|no such file", done.err, re.IGNORECASE) and container.version == version:
            self._ledger.contradict(f"{path} was copied into it, and is not there: {done.err.strip()}", container)

    def verify_log(self, container: Container) -> None:
        """Every line that it has written is in its log, once, in order."""
        said = (
            runs((self.folder / container.name / "lines").read_text())
            if (self.folder / container.name / "lines").exists()
            else {}
        )
        deadline = time.monotonic() + PATIENT
        while not container.doubted:
            done = self._teu("logs", "logs", container.name)
            problem = ""
            if done.acknowledged:
                with self._ledger.lock:
                    kills = self._ledger.kills
                    lost = kills["kill -9 journald"] if container.driver == "journald" else 0
                    deaths = sum(number for what, number in kills.items() if "teu" in what or "journald" in what)
                problem = log_problem(runs(done.out), said, container.torn, lost, deaths)
                if not problem:
                    self._ledger.checked(f"logs ({container.driver})")
                    return
            elif not done.killed:
                problem = f"no log: {done.err.strip()}"
            if problem and time.monotonic() > deadline:
                self._ledger.contradict(f"{container.driver}: {problem}", container)
                return
            time.sleep(0.3)


def runs(text: str) -> dict[str, list[int]]:
    """{run: numbers} of the whole lines RUN NUMBER."""
    found: dict[str, list[int]] = {}
    for line in text.split("\n")[:-1]:
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            found.setdefault(words[0], []).append(int(words[1]))
        elif line.strip():
            found.setdefault(f"no line that was written: {line[:80]!r}", []).append(0)
    return found


def log_problem(logged: dict[str, list[int]], said: dict[str, list[int]], torn: bool, lost: int, twice: int) -> str:
    """What is wrong with a log, if something is.

    `said` are numbers that were written before it was asked for; with `torn` the end of a run may be missing; so many
    lines may be `lost` (journald was killed with them), and so many may be there `twice`.
    """
    missing = 0
    for run, numbers in logged.items():
        if run.startswith("no line"):
            return run
        if numbers != sorted(numbers):
            at = next(i for i in range(1, len(numbers)) if numbers[i] < numbers[i - 1])
            return f"out of order in run {run}: {numbers[max(0, at - 5) : at + 5]}"
        if len(numbers) - len(set(numbers)) > twice:
            return f"{len(numbers) - len(set(numbers))} lines of run {run} are there twice"
        gaps = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
        missing += len(gaps)
        if missing > lost:
            return f"run {run} lacks {len(gaps)} of {numbers[-1]} lines: {gaps[:20]}"
    if not torn:
        for run, numbers in said.items():
            end = max(logged.get(run, [0]))
            if end + lost < max(numbers):
                return f"run {run} ends at {end}, and {max(numbers)} was written"
    return ""


def finish(ledger: Ledger, workers: list[Client]) -> None:
    """At the end: each entry once more, all of what it says; then everything is removed."""
    print("soak: everything in the ledger is asked for", flush=True)
    deadline = time.monotonic() + PATIENT
    while time.monotonic() < deadline and not all(thing.settled() for thing in list(ledger.things.values())):
        time.sleep(0.5)
    with ledger.lock:
        things = list(ledger.things.values())
    for worker in workers:
        for thing in things:
            if worker._owns(thing.name):
                worker.verify(thing)
        for container in worker._mine("container"):
            if container.role == "writer" and ABSENT not in container.states:
                worker.verify_log(container)
            for path in sorted(container.files):
                worker.verify_file(container, path)
    for worker in workers:
        for kind, words in (
            ("container", ("rm", "-f", "-v")),
            ("image", ("rmi", "-f")),
            ("network", ("network", "rm")),
            ("volume", ("volume", "rm")),
        ):
            for thing in things:
                if thing.kind == kind and worker._owns(thing.name) and (thing.doubted or thing.states != {ABSENT}):
                    done = worker._teu(" ".join(words), *words, thing.name)
                    if done.code and not re.search("no such|not found", done.err, re.IGNORECASE):
                        ledger.contradict(f"{kind} {thing.name} cannot be removed at the end: {done.err.strip()}")
