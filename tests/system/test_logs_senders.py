# SPDX-License-Identifier: Apache-2.0
"""Log drivers that send, and those that write in docker's form: the same container with Debian's dockerd and with teud,
before the same receiver (rsyslog, one of our own, a plugin), and the two wires compared."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine
import peers
import pytest
from drivers.logplugin import LogPlugin
from drivers.receivers import Receiver, gelf_messages, unpacked

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

SCRIPT = "echo one; echo; echo 'two \"quoted\" ü'; sleep 0.3; echo problem >&2; sleep 0.3; printf unfinished"
LONG = "dd if=/dev/zero bs=1 count=40000 2>/dev/null | tr '\\0' x; echo; echo after"
TEUD = ["docker", "-H", f"unix://{engine.SOCKET}"]

Client = list[str]
Wire = Callable[[Client], Any]


@pytest.fixture(scope="module")
def real() -> Iterator[Client]:
    with peers.dockerd() as daemon:
        daemon.load_busybox()
        yield daemon.client


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    engine.need_busybox()


@pytest.fixture
def both(real: Client) -> Callable[[Wire], None]:
    def compare(wire: Wire) -> None:
        theirs, ours = wire(real), wire(TEUD)
        assert ours == theirs

    return compare


def ask(client: Client, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*client, *arguments], capture_output=True, text=True, errors="surrogateescape", timeout=60, check=False
    )


def done(client: Client, *arguments: str) -> str:
    found = ask(client, *arguments)
    assert found.returncode == 0, found.stderr
    return found.stdout


def contained(client: Client, script: str, driver: str, *options: str, name: str = "sender") -> str:
    """A container that has run to its end: its id."""
    ask(client, "rm", "-f", name)
    flags = [word for option in options for word in ("--log-opt", option)]
    done(
        *(client, "run", "--name", name, "--network", "none", "-e", "A=1", "--label", "l=v", "--log-driver", driver),
        *(*flags, "busybox", "sh", "-c", script),
    )
    return done(client, "inspect", "-f", "{{.Id}}", name).strip()


@pytest.fixture
def listen() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(*arguments: Any, **named: Any) -> Receiver:
        made.append(Receiver(*arguments, **named))
        return made[-1]

    yield make
    for each in made:
        each.close()


# -- syslog ------------------------------------------------------------------------------------------


def plain(wire: bytes, identity: str) -> list[str]:
    """Without what differs from run to run."""
    text = wire.decode().replace(identity[:12], "ID")
    text = re.sub(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", lambda found: "T" + "." * bool(found[1]), text
    )
    text = re.sub(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d", "T", text)
    return re.sub(r"\[\d+\]|ID \d+ ", "[PID]", text).splitlines()


@pytest.mark.parametrize("form", ["", "rfc3164", "rfc5424", "rfc5424micro"])
@pytest.mark.parametrize("scheme", ["tcp", "udp", "unix", "unixgram"])
def test_syslog(
    scheme: str, form: str, both: Callable[[Wire], None], listen: Callable[..., Receiver], tmp_path: Path
) -> None:
    def wire(client: Client) -> list[str]:
        path = tmp_path / "socket" if scheme.startswith("unix") else None
        receiver = listen(scheme, path)
        address = f"{scheme}://{path}" if path else f"{scheme}://127.0.0.1:{receiver.port}"
        options = [f"syslog-address={address}", "syslog-facility=local3", *([f"syslog-format={form}"] if form else [])]
        identity = contained(client, SCRIPT, "syslog", *options)
        found = plain(receiver.wait(b"unfinished\n"), identity)
        receiver.close()
        return found

    both(wire)


CONFIGURATION = """
global(workDirectory="{folder}" DefaultNetstreamDriverCAFile="{folder}/ca.pem"
       DefaultNetstreamDriverCertFile="{folder}/server.pem" DefaultNetstreamDriverKeyFile="{folder}/server.key")
module(load="imudp") module(load="imtcp" StreamDriver.Name="{driver}" StreamDriver.Mode="{mode}"
       StreamDriver.AuthMode="anon")
input(type="imtcp" port="{port}") input(type="imudp" port="{port}" address="127.0.0.1")
template(name="all" type="string"
         string="%syslogfacility-text%.%syslogseverity-text% %programname% %app-name% %hostname%|%msg%\\n")
action(type="omfile" file="{folder}/received" template="all")
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "server.pem", "-days", "2", "-extfile", "names"),
    )
    return folder


@pytest.fixture
def rsyslog(certificates: Path, tmp_path: Path) -> Iterator[Callable[[bool], int]]:
    """Starts Debian's rsyslogd: the port, on which it listens by UDP and by TCP or TLS. It writes to `received`."""
    running: list[subprocess.Popen[bytes]] = []

    def start(tls: bool) -> int:
        for name in ("ca.pem", "server.pem", "server.key"):
            shutil.copy(certificates / name, tmp_path / name)
        port = peers.free_port()
        file = tmp_path / "rsyslog.conf"
        driver, mode = ("gtls", "1") if tls else ("ptcp", "0")
        file.write_text(CONFIGURATION.format(folder=tmp_path, port=port, driver=driver, mode=mode))
        (tmp_path / "received").touch()
        running.append(subprocess.Popen(["rsyslogd", "-n", "-f", file, "-i", tmp_path / "pid"]))
        peers.wait_until(lambda: peers.answers("127.0.0.1", port), "rsyslogd listens")
        return port

    yield start
    for each in running:
        each.terminate()
        each.wait(20)


@pytest.mark.parametrize("form", ["rfc3164", "rfc5424", "rfc5424micro"])
@pytest.mark.parametrize("scheme", ["udp", "tcp", "tcp+tls"])
def test_what_rsyslog_makes_of_it(
    scheme: str, form: str, real: Client, rsyslog: Callable[[bool], int], tmp_path: Path
) -> None:
    port = rsyslog(scheme == "tcp+tls")
    received = tmp_path / "received"
    found = []
    for client in (real, TEUD):
        options = [f"syslog-address={scheme}://127.0.0.1:{port}", f"syslog-format={form}", "tag={{.Name}}"]
        if scheme == "tcp+tls":
            options.append(f"syslog-tls-ca-cert={tmp_path}/ca.pem")
        before = len(received.read_text())
        contained(client, SCRIPT, "syslog", *options)
        engine.eventually("the last line", lambda: "unfinished" in received.read_text()[before:])  # noqa: B023
        lines = received.read_text()[before:].splitlines()
        found.append([line for line in lines if "sender" in line])
    assert found[1] == found[0]
    assert len(found[1]) == 4 and found[1][0].startswith("daemon.info sender sender ")
    assert found[1][2].startswith("daemon.err sender sender ") and found[1][2].endswith("problem")
    assert done(TEUD, "logs", "sender").startswith('one\n\ntwo "quoted" ü\n')


# -- fluentd and gelf --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["fluentd-request-ack=true"], ["fluentd-sub-second-precision=true"]], ids=str)
@pytest.mark.parametrize("script", [SCRIPT, LONG], ids=["short", "long"])
def test_fluentd(
    script: str, options: list[str], both: Callable[[Wire], None], listen: Callable[..., Receiver]
) -> None:
    def wire(client: Client) -> list[Any]:
        receiver = listen()
        receiver.acknowledges = "fluentd-request-ack=true" in options
        wanted = [f"fluentd-address=127.0.0.1:{receiver.port}", "tag=docker.{{.Name}}", "labels=l", "env=A", *options]
        identity = contained(client, script, "fluentd", *wanted)
        receiver.wait(b"after" if script is LONG else b"unfinished")
        events = unpacked(receiver.all())
        found = []
        for tag, moment, record, option in events:
            assert record.pop("container_id") == identity
            if "partial_id" in record:
                assert len(record.pop("partial_id")) == 64
            assert abs((moment[0] if isinstance(moment, tuple) else moment) - time.time()) < 60
            found.append((tag, isinstance(moment, tuple), record, sorted(option)))
        return found

    both(wire)


@pytest.mark.parametrize("options", [[], ["gelf-compression-type=zlib"], ["gelf-compression-type=none"]], ids=str)
@pytest.mark.parametrize("scheme", ["udp", "tcp"])
@pytest.mark.parametrize("script", [SCRIPT, LONG], ids=["short", "long"])
def test_gelf(
    script: str, scheme: str, options: list[str], both: Callable[[Wire], None], listen: Callable[..., Receiver]
) -> None:
    if scheme == "tcp" and options:
        return

    def wire(client: Client) -> Any:
        receiver = listen(scheme)
        wanted = [f"gelf-address={scheme}://127.0.0.1:{receiver.port}", "labels=l", "env=A", *options]
        identity = contained(client, script, "gelf", *wanted)
        last = "after" if script is LONG else "unfinished"
        engine.eventually(
            "it has come", lambda: any(message["short_message"] == last for message in gelf_messages(receiver))
        )
        messages = gelf_messages(receiver)
        for message in messages:
            assert message.pop("_container_id") == identity and message.pop("_tag") == identity[:12]
            assert abs(message.pop("timestamp") - time.time()) < 60
            assert message.pop("_created").endswith("Z")
            assert message.pop("_image_id").startswith("sha256:")  # each has made its own of the archive
        return messages

    both(wire)


# -- what becomes of output ---------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["syslog", "fluentd", "gelf"])
def test_without_its_receiver_a_container_does_not_start(driver: str, both: Callable[[Wire], None]) -> None:
    port = peers.free_port()

    def wire(client: Client) -> tuple[int, bool]:
        ask(client, "rm", "-f", "sender")
        option = f"{driver}-address=tcp://127.0.0.1:{port}"
        found = ask(
            *(client, "run", "--name", "sender", "--network", "none", "--log-driver", driver, "--log-opt", option),
            *("busybox", "true"),
        )
        return found.returncode, "failed to initialize logging driver" in found.stderr

    both(wire)


@pytest.mark.parametrize("mode", ["mode=non-blocking", "fluentd-async=true"])
def test_a_container_that_must_not_wait(mode: str, listen: Callable[..., Receiver]) -> None:
    """dockerd does not come to an end here: it waits for the receiver when the container has ended."""
    receiver = listen()
    receiver.reads = False
    began = time.monotonic()
    script = "i=0; while [ $i -lt 3000 ]; do echo $i " + 8000 * "x" + "; i=$((i+1)); done"
    contained(TEUD, script, "fluentd", f"fluentd-address=127.0.0.1:{receiver.port}", mode)
    assert time.monotonic() - began < 40
    receiver.reads = True
    assert done(TEUD, "inspect", "-f", "{{.State.ExitCode}}", "sender") == "0\n"
    if mode.startswith("mode"):
        identity = done(TEUD, "inspect", "-f", "{{.Id}}", "sender").strip()
        told = subprocess.run(
            ["journalctl", "-q", f"TEU_CONTAINER={identity}", "-o", "cat"], capture_output=True, text=True, check=True
        ).stdout
        assert re.search(r"container sender: \d+ lines of its output were dropped", told)


def test_deaths_of_teud_lose_nothing_that_is_acknowledged(listen: Callable[..., Receiver]) -> None:
    receiver = listen()
    receiver.acknowledges = True
    ask(TEUD, "rm", "-f", "sender")
    done(
        *(TEUD, "run", "-d", "--name", "sender", "--network", "none", "--log-driver", "fluentd"),
        *("--log-opt", f"fluentd-address=127.0.0.1:{receiver.port}", "--log-opt", "fluentd-request-ack=true"),
        *("busybox", "sh", "-c", "i=0; while [ $i -lt 4000 ]; do echo $i; i=$((i+1)); usleep 4000; done"),
    )
    for _ in range(3):
        time.sleep(0.7)
        subprocess.run(["systemctl", "kill", "-s", "KILL", "teud"], check=True)
        engine.eventually("it has come", lambda: ask(TEUD, "ps").returncode == 0)
    done(TEUD, "wait", "sender")
    engine.eventually("it has come", lambda: b"\xa43999" in receiver.all())
    lines = [event[2]["log"] for came in tuple(receiver.came) for event in unpacked(bytes(came))]
    assert sorted(set(map(int, lines))) == list(range(4000))
    assert list(dict.fromkeys(lines)) == [str(number) for number in range(4000)]  # in order, but for what came twice
    assert [int(line) for line in done(TEUD, "logs", "sender").split()] == list(range(4000))


@pytest.mark.parametrize("driver", ["splunk", "awslogs", "gcplogs", "unheard-of"])
def test_drivers_that_there_are_not(driver: str) -> None:
    found = ask(TEUD, "create", "--log-driver", driver, "busybox")
    assert found.returncode != 0 and f"no log driver named '{driver}' is registered" in found.stderr
    assert ("plugin" in found.stderr) == (driver != "unheard-of")


def test_copies_can_be_read_or_there_is_none(both: Callable[[Wire], None], listen: Callable[..., Receiver]) -> None:
    def wire(client: Client) -> list[Any]:
        receiver = listen()
        address = f"syslog-address=tcp://127.0.0.1:{receiver.port}"
        contained(client, SCRIPT, "syslog", address)
        answers = [ask(client, "logs", *more, "sender").stdout for more in ([], ["--tail", "2"], ["--since", "1h"])]
        contained(client, SCRIPT, "syslog", address, "cache-disabled=true")
        found = ask(client, "logs", "sender")
        return [answers, found.returncode, "does not support reading" in found.stderr]

    both(wire)


# -- docker's own form of local ------------------------------------------------------------------------


def test_each_reads_the_others_local_files(real: Client, tmp_path: Path) -> None:
    root = done(real, "info", "-f", "{{.DockerRootDir}}").strip()
    script = f"{SCRIPT}; {LONG}; i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"
    files, shown = {}, {}
    for client, folder in ((real, f"{root}/containers"), (TEUD, "/var/lib/teu/engine/containers")):
        identity = contained(client, script, "local", "max-size=64k", "max-file=3")
        folder = f"{folder}/{identity}/local-logs"
        engine.eventually("it has come", lambda folder=folder: sorted(os.listdir(folder)) == WANTED)  # type: ignore[misc]
        files[client[-1]] = folder
        shown[client[-1]] = done(client, "logs", "sender")
    # The files are cut where each thinks fit: so each reads all of the other's.
    theirs, ours = files[real[-1]], files[TEUD[-1]]
    kept = tmp_path / "kept"
    shutil.copytree(theirs, kept)
    _exchange(ours, theirs)
    assert done(real, "logs", "sender") == shown[TEUD[-1]]
    assert done(real, "logs", "--tail", "7", "sender") == "".join(shown[TEUD[-1]].splitlines(keepends=True)[-7:])
    _exchange(kept, ours)
    assert done(TEUD, "logs", "sender") == shown[real[-1]]
    assert done(TEUD, "logs", "--tail", "7", "sender") == "".join(shown[real[-1]].splitlines(keepends=True)[-7:])


WANTED = ["container.log", "container.log.1.gz", "container.log.2.gz"]


def _exchange(source: Path | str, target: Path | str) -> None:
    for name in WANTED:
        shutil.copy2(f"{source}/{name}", f"{target}/{name}")


# -- plugins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [True, False])
def test_plugins(reads: bool, both: Callable[[Wire], None]) -> None:
    Path("/run/docker/plugins").mkdir(parents=True, exist_ok=True)
    name = f"house-{str(reads).lower()}"  # dockerd remembers what a plugin can do
    path = Path(f"/run/docker/plugins/{name}.sock")
    plugin = LogPlugin(path, reads)

    def wire(client: Client) -> Any:
        plugin.asked.clear()
        identity = contained(client, "echo one; sleep 0.3; echo two >&2", name, "its=own", "tag=t")
        engine.eventually("it has come", lambda: len(plugin.stored.get(identity, [])) == 2)
        (started,) = plugin.of("StartLogging")
        assert re.fullmatch(r"/run/docker/logging/[0-9a-f]{64}", started["File"])
        # dockerd may tell once more of the one before.
        stop = {"File": started["File"]}
        engine.eventually("it has stopped", lambda: stop in plugin.of("StopLogging"))
        assert plugin.of("StopLogging").count(stop) == 1
        info = started["Info"]
        assert info.pop("ContainerID") == identity and info.pop("ContainerCreated").endswith("Z")
        info["ContainerLabels"], info["ContainerEnv"] = info["ContainerLabels"] or {}, sorted(info["ContainerEnv"])
        info.pop("DaemonName")
        assert info.pop("ContainerImageID").startswith("sha256:")
        info.pop("LogPath")
        entries = [re.sub(rb"\x10[\x80-\xff]*[\0-\x7f]\x1a", b"T", entry) for entry in plugin.stored[identity]]
        answer = ask(client, "logs", "sender")
        tail = ask(client, "logs", "--tail", "1", "sender")
        told = [body["Config"] for body in plugin.of("ReadLogs")]
        return json.loads(json.dumps(info)), entries, answer.stdout, answer.stderr, tail.stdout, tail.stderr, told

    try:
        both(wire)
    finally:
        plugin.close()
        path.unlink(missing_ok=True)
        ask(TEUD, "rm", "-f", "sender")
