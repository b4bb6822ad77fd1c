# SPDX-License-Identifier: Apache-2.0
"""The log drivers syslog, fluentd and gelf before receivers on loopback: what is on the wire, what a receiver that is
away or slow does to the output, and the copy that can be read."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import logs
from drivers.receivers import Receiver, gelf_messages, unpacked

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.logs import registry, syslog
from teu.engine.logs.driver import LINE_LIMIT
from teu.engine.logs.marker import Marker

Listen = Callable[..., Receiver]


@pytest.fixture
def listen() -> Iterator[Listen]:
    made: list[Receiver] = []

    def make(*arguments: Any, **named: Any) -> Receiver:
        made.append(Receiver(*arguments, **named))
        return made[-1]

    yield make
    for each in made:
        each.close()


def run(folder: Path, kind: str, address: str, **options: str) -> logs.Run:
    named = {key.replace("_", "-"): value for key, value in options.items()}
    return logs.Run(folder, kind, {f"{kind}-address": address, **named})


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + logs.SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# -- syslog ------------------------------------------------------------------------------------------

STAMP = r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("", r"<30>{stamp} {id}\[{pid}\]: out\n<27>{stamp} {id}\[{pid}\]: err\n"),
        ("rfc3164", r"<30>{stamp} {host} {id}\[{pid}\]: out\n<27>{stamp} {host} {id}\[{pid}\]: err\n"),
        (
            "rfc5424",
            r"<30>1 {iso}{zone} {host} {id} {pid} {id} - out\n<27>1 {iso}{zone} {host} {id} {pid} {id} - err\n",
        ),
        (
            "rfc5424micro",
            r"<30>1 {iso}\.\d{{6}}{zone} {host} {id} {pid} {id} - out\n"
            r"<27>1 {iso}\.\d{{6}}{zone} {host} {id} {pid} {id} - err\n",
        ),
    ],
)
@pytest.mark.parametrize("scheme", ["tcp", "udp", "unix", "unixgram"])
def test_formats_of_syslog(scheme: str, form: str, pattern: str, listen: Listen, tmp_path: Path) -> None:
    path = tmp_path / "socket" if scheme.startswith("unix") else None
    receiver = listen(scheme, path)
    address = f"{scheme}://{path}" if path else f"{scheme}://127.0.0.1:{receiver.port}"
    folder = tmp_path / "c"
    folder.mkdir()
    made = run(folder, "syslog", address, **({"syslog_format": form} if form else {}))
    made.log(1, b"out\n\n")
    made.log(2, b"err\n")
    found = receiver.wait(b"err\n").decode()
    wanted = pattern.format(
        stamp=STAMP,
        iso=r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
        zone=r"(?:Z|[+-]\d\d:\d\d)",
        host=re.escape(socket.gethostname()),
        id=made.source.id[:12],
        pid=os.getpid(),
    )
    assert re.fullmatch(wanted, found), found
    assert made.text() == b"out\n\nerr\n"  # an empty line is in the copy alone
    if scheme in ("udp", "unixgram"):
        assert len(receiver.came) == 2


def test_tags_and_facilities_of_syslog(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    made = run(tmp_path, "syslog", f"tcp://127.0.0.1:{receiver.port}", tag="{{.Name}}", syslog_facility="local7")
    made.log(1, b"text\n")
    assert re.match(rb"<190>.{15} web\[\d+\]: text\n", receiver.wait(b"text\n"))
    for facility, good in (("23", True), ("0", True), ("24", False), ("x", False), ("-1", False), ("authpriv", True)):
        options = {"syslog-facility": facility}
        if good:
            registry.check("syslog", options)
        else:
            with pytest.raises(BadRequest, match="facility"):
                registry.check("syslog", options)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1", "unsupported scheme"),
        ("127.0.0.1:514", "unsupported scheme"),
        ("unix:///not/there", "no such file"),
        ("tcp://127.0.0.1:99999", "syslog-address"),
    ],
)
def test_addresses_that_syslog_does_not_have(address: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        registry.check("syslog", {"syslog-address": address})


def test_without_an_address_it_is_the_hosts_own_syslog(
    listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = listen("unixgram", tmp_path / "log")
    monkeypatch.setattr(syslog, "LOCAL_SOCKETS", (str(tmp_path / "away"), str(tmp_path / "log")))
    folder = tmp_path / "c"
    folder.mkdir()
    made = logs.Run(folder, "syslog", {"syslog-address": ""})
    made.log(1, b"text\n")
    assert re.fullmatch(rf"<30>{STAMP} {made.source.id[:12]}\[\d+\]: text\n".encode(), receiver.wait(b"text"))
    monkeypatch.setattr(syslog, "LOCAL_SOCKETS", (str(tmp_path / "away"),))
    with pytest.raises(EngineError, match="no syslog on this host"):
        logs.Run(folder, "syslog", {"syslog-address": ""}).driver.open()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate of 127.0.0.1 and of a client by it."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{name}.pem", "-days", "2", "-extfile", "names"),
        )
    return folder


def tls(folder: Path, clients: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if clients:
        context.load_verify_locations(folder / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("form", ["", "rfc5424"])
def test_syslog_over_tls(form: str, listen: Listen, certificates: Path, tmp_path: Path) -> None:
    receiver = listen(context=tls(certificates, clients=True))
    made = run(
        tmp_path,
        "syslog",
        f"tcp+tls://127.0.0.1:{receiver.port}",
        syslog_format=form,
        syslog_tls_ca_cert=str(certificates / "ca.pem"),
        syslog_tls_cert=str(certificates / "client.pem"),
        syslog_tls_key=str(certificates / "client.key"),
    )
    made.driver.open()
    made.log(1, b"secret\n")
    found = receiver.wait(b"secret\n")
    if form:
        length, _, rest = found.partition(b" ")
        assert int(length) == len(rest) and rest.startswith(b"<30>1 ")
    else:
        assert found.startswith(b"<30>")


def test_a_receiver_that_nobody_vouches_for_is_refused(listen: Listen, certificates: Path, tmp_path: Path) -> None:
    receiver = listen(context=tls(certificates))
    address = f"tcp+tls://127.0.0.1:{receiver.port}"
    with pytest.raises(EngineError, match="failed to initialize logging driver syslog"):
        run(tmp_path, "syslog", address).driver.open()
    made = run(tmp_path, "syslog", address, syslog_tls_skip_verify="true")
    made.driver.open()
    made.log(1, b"text\n")
    receiver.wait(b"text\n")


def test_a_container_does_not_start_without_its_receiver(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for kind in ("syslog", "fluentd", "gelf"):
        with pytest.raises(EngineError, match=f"logging driver {kind}: Connection refused"):
            run(tmp_path, kind, f"tcp://127.0.0.1:{port}").driver.open()
    run(tmp_path, "fluentd", f"tcp://127.0.0.1:{port}", fluentd_async="true").driver.open()
    run(tmp_path, "gelf", f"udp://127.0.0.1:{port}").driver.open()
    run(tmp_path, "syslog", f"udp://127.0.0.1:{port}").driver.open()


def test_syslog_connects_again_once(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    made = run(tmp_path, "syslog", f"tcp://127.0.0.1:{receiver.port}")
    made.log(1, b"first\n")
    receiver.wait(b"first\n")
    receiver.close()
    receiver.listen()
    made.log(1, b"second\n")
    receiver.wait(b"second\n")
    receiver.close()
    made.log(1, b"third\n")  # nobody is there: it is dropped, and in the copy
    assert made.text() == b"first\nsecond\nthird\n"
    assert made.driver._dropped.lines == 1  # type: ignore[attr-defined]


# -- fluentd -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("acknowledged", ["false", "true"])
@pytest.mark.parametrize("precise", ["false", "true"])
def test_events_of_fluentd(precise: str, acknowledged: str, listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    receiver.acknowledges = acknowledged == "true"
    made = run(
        tmp_path,
        "fluentd",
        f"127.0.0.1:{receiver.port}",
        tag="docker.{{.Name}}",
        labels="l",
        env="A",
        fluentd_sub_second_precision=precise,
        fluentd_request_ack=acknowledged,
    )
    began = time.time()
    made.log(1, b"one\n\n" + 300 * b"two" + b"\n")
    made.log(2, b"\xff err\n")
    receiver.wait(b" err")
    until(lambda: len(unpacked(receiver.all())) == 4)
    events = unpacked(receiver.all())
    base = {"container_id": made.source.id, "container_name": "/web", "l": 'v"', "A": "1"}
    assert [event[2] for event in events] == [
        {**base, "source": "stdout", "log": "one"},
        {**base, "source": "stdout", "log": ""},
        {**base, "source": "stdout", "log": 300 * "two"},
        {**base, "source": "stderr", "log": "\udcff err"},
    ]
    for tag, moment, _, option in events:
        assert tag == "docker.web"
        whole = moment[0] + moment[1] / 1e9 if precise == "true" else moment
        assert began - 1 <= whole <= time.time()
        assert set(option) == ({"chunk"} if acknowledged == "true" else set())


def test_parts_of_a_long_line_belong_together(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    made = run(tmp_path, "fluentd", f"tcp://127.0.0.1:{receiver.port}")
    line = (2 * LINE_LIMIT + 100) * b"x"
    made.log(1, line + b"\nshort\n")
    receiver.wait(b"short")
    *parts, last = [event[2] for event in unpacked(receiver.all())]
    assert "".join(part["log"] for part in parts) == line.decode()
    assert len({part["partial_id"] for part in parts}) == 1
    assert [(part["partial_ordinal"], part["partial_last"]) for part in parts] == [
        ("1", "false"),
        ("2", "false"),
        ("3", "true"),
    ]
    assert last["log"] == "short" and "partial_id" not in last


def test_what_was_not_acknowledged_comes_again(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    made = run(
        tmp_path,
        "fluentd",
        f"tcp://127.0.0.1:{receiver.port}",
        fluentd_request_ack="true",
        fluentd_read_timeout="100ms",
        fluentd_retry_wait="10ms",
    )
    done = threading.Event()
    threading.Thread(target=lambda: (made.log(1, b"important\n"), done.set()), daemon=True).start()
    until(lambda: len(receiver.came) > 2)
    assert not done.is_set() and made.text() == b""
    receiver.acknowledges = True
    assert done.wait(logs.SECONDS)
    assert made.text() == b"important\n"


def test_fluentd_gives_up_after_its_tries(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    made = run(
        tmp_path, "fluentd", f"tcp://127.0.0.1:{receiver.port}", fluentd_max_retries="2", fluentd_retry_wait="1ms"
    )
    receiver.close()
    made.log(1, b"one\ntwo\n")
    assert made.text() == b"one\ntwo\n"
    assert made.driver._dropped.lines == 2  # type: ignore[attr-defined]


def test_output_waits_for_a_receiver_that_is_away(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    port = receiver.port
    receiver.close()
    made = run(tmp_path, "fluentd", f"tcp://127.0.0.1:{port}", fluentd_retry_wait="10ms")
    for _ in range(20):
        assert made.driver.write(1, b"text\n", False, Marker(None)) == 0 and made.driver.stalled
        time.sleep(0.005)
    receiver.listen()
    assert made.log(1, b"text\n") == 5
    receiver.wait(b"text")


def test_fluentd_async_never_waits(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    port = receiver.port
    receiver.close()
    made = run(
        tmp_path,
        "fluentd",
        f"tcp://127.0.0.1:{port}",
        fluentd_async="true",
        fluentd_buffer_limit="3",
        fluentd_retry_wait="10ms",
    )
    assert made.driver.write(1, b"1\n2\n3\n4\n", False, Marker(None)) == 8 and not made.driver.stalled
    receiver.listen()
    receiver.wait(b"\xa3log\xa13")
    assert [event[2]["log"] for event in unpacked(receiver.all())] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "options",
    [
        {"fluentd-address": "udp://127.0.0.1:1"},
        {"fluentd-address": "tcp://127.0.0.1:1/path"},
        {"fluentd-address": "unix://"},
        {"fluentd-async": "maybe"},
        {"fluentd-async-reconnect-interval": "50ms"},
        {"fluentd-async-reconnect-interval": "11s"},
        {"fluentd-buffer-limit": "much"},
        {"fluentd-max-retries": "-1"},
        {"fluentd-max-retries": "4294967296"},
        {"fluentd-read-timeout": "-1s"},
        {"fluentd-write-timeout": "soon"},
        {"fluentd-retry-wait": "x"},
        {"fluentd-request-ack": "2"},
        {"fluentd-sub-second-precision": "yes"},
    ],
    ids=str,
)
def test_options_that_fluentd_does_not_have(options: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        registry.check("fluentd", options)


# -- gelf --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "zlib", "none", ""])
@pytest.mark.parametrize("scheme", ["udp", "tcp"])
def test_messages_of_gelf(scheme: str, compression: str, listen: Listen, tmp_path: Path) -> None:
    receiver = listen(scheme)
    wanted = {"gelf_compression_type": compression} if compression and scheme == "udp" else {}
    made = run(tmp_path, "gelf", f"{scheme}://127.0.0.1:{receiver.port}", labels="l", env="A", **wanted)
    long = "".join(f"{number} ü " for number in range(2000)).encode()
    made.log(1, b'say "hello"\n\n')
    made.log(1, long + b"\n")
    made.log(2, b"\xff\n")
    until(lambda: len(gelf_messages(receiver)) == 3)
    messages = gelf_messages(receiver)
    for message, text, level in zip(messages, ('say "hello"', long.decode(), "\ufffd"), (6, 6, 3), strict=True):
        assert abs(message.pop("timestamp") - time.time()) < 60
        assert message == {
            "version": "1.1",
            "host": socket.gethostname(),
            "short_message": text,
            "level": level,
            "_container_id": made.source.id,
            "_container_name": "web",
            "_image_id": made.source.image_id,
            "_image_name": "busybox",
            "_command": "sh -c true",
            "_tag": made.source.id[:12],
            "_created": "2026-01-02T03:04:05.000000006Z",
            "_l": 'v"',
            "_A": "1",
        }
    if scheme == "udp":
        mark = {"zlib": b"x", "none": b"{"}.get(compression, b"\x1f\x8b")
        assert receiver.came[0].startswith(mark)
        assert any(datagram.startswith(b"\x1e\x0f") for datagram in receiver.came)
        assert max(map(len, receiver.came)) <= 1420


def test_a_message_of_too_many_datagrams_is_dropped(listen: Listen, tmp_path: Path) -> None:
    receiver = listen("udp")
    made = run(tmp_path, "gelf", f"udp://127.0.0.1:{receiver.port}", gelf_compression_type="none", labels="l")
    made.source.labels["l"] = "x" * 200_000
    again = registry.create(made.source)
    assert again is not None
    made.driver = again
    made.log(1, b"text\n")
    assert made.text() == b"text\n" and not receiver.came
    assert again._dropped.lines == 1  # type: ignore[attr-defined]


def test_gelf_over_tcp_connects_again(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    options = {"gelf_tcp_max_reconnect": "50", "gelf_tcp_reconnect_delay": "0"}
    made = run(tmp_path, "gelf", f"tcp://127.0.0.1:{receiver.port}", **options)
    made.log(1, b"first\n")
    receiver.wait(b"first")
    receiver.close()
    receiver.listen()
    made.log(1, b"second\n")
    receiver.wait(b"second")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gelf-address": "http://127.0.0.1:1"},
        {"gelf-address": "udp://127.0.0.1"},
        {"gelf-address": "tcp://127.0.0.1:1", "gelf-compression-type": "gzip"},
        {"gelf-address": "udp://127.0.0.1:1", "gelf-compression-type": "lzma"},
        {"gelf-address": "udp://127.0.0.1:1", "gelf-compression-level": "10"},
        {"gelf-address": "udp://127.0.0.1:1", "gelf-tcp-max-reconnect": "1"},
        {"gelf-address": "tcp://127.0.0.1:1", "gelf-tcp-reconnect-delay": "-1"},
    ],
    ids=str,
)
def test_options_that_gelf_does_not_have(options: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        registry.check("gelf", options)


# -- what they have in common ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind, driver in registry.DRIVERS.items() if driver.remote])
def test_without_a_copy_there_is_nothing_to_read(kind: str, listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    made = run(tmp_path, kind, f"tcp://127.0.0.1:{receiver.port}", cache_disabled="true")
    made.log(1, b"text\n")
    receiver.wait(b"text")
    assert not registry.readable(made.source)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadRequest, match="does not support reading"):
        made.text()


def test_the_copy_is_rotated_as_asked(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    made = run(
        tmp_path,
        "syslog",
        f"tcp://127.0.0.1:{receiver.port}",
        cache_max_size="4k",
        cache_max_file="2",
        cache_compress="false",
    )
    for number in range(400):
        made.log(1, b"line %d\n" % number)
    found = made.text().splitlines()
    assert found[-1] == b"line 399" and 40 < len(found) < 300
    assert len(list(tmp_path.iterdir())) == 2 and max(path.stat().st_size for path in tmp_path.iterdir()) <= 4096
    receiver.wait(b"line 399\n")
    assert receiver.all().count(b"\n") == 400
    for options in ({"cache-max-size": "x"}, {"cache-disabled": "x"}, {"cache-max-file": "0"}, {"cache-compress": "x"}):
        with pytest.raises(BadRequest):
            registry.check("syslog", options)


def test_a_run_that_ends_lets_go_and_the_next_one_connects(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    before = threading.enumerate()
    made = run(tmp_path, "syslog", f"tcp://127.0.0.1:{receiver.port}")
    for turn in (b"one", b"two"):
        made.driver.open()
        made.log(1, turn + b"\n")
        receiver.wait(turn)
        made.driver.flush()
    assert len(receiver.came) == 2
    until(lambda: not [each for each in threading.enumerate() if each.name == "log-sender" and each not in before])


def test_an_end_does_not_wait_for_a_receiver_that_does_not_read(listen: Listen, tmp_path: Path) -> None:
    receiver = listen()
    receiver.reads = False
    made = run(tmp_path, "syslog", f"tcp://127.0.0.1:{receiver.port}")
    made.driver.open()
    line = 16000 * b"x" + b"\n"
    moved = time.monotonic()
    while time.monotonic() - moved < 0.3:  # until the kernel takes no more for the receiver
        if made.driver.write(1, line, False, Marker(None)):
            moved = time.monotonic()
        time.sleep(0.0002)
    assert made.driver.stalled
    began = time.monotonic()
    made.driver.flush()
    assert time.monotonic() - began < 1
    receiver.reads = True
    made.log(1, b"next run\n")
    receiver.wait(b"next run\n")
    assert made.text(tail=1) == b"next run\n"


def test_what_was_sent_is_noted_before_it_is_taken(listen: Listen, tmp_path: Path) -> None:
    """As the hub finds it after a kill: how much need not come again."""
    receiver = listen()
    folder = tmp_path / "c"
    folder.mkdir()
    for options in ({"cache_disabled": "true"}, {}):
        made = run(folder, "syslog", f"tcp://127.0.0.1:{receiver.port}", **options)
        marker = Marker(str(tmp_path / "position"))
        deadline = time.monotonic() + logs.SECONDS
        while not made.driver.write(1, b"one\ntwo\nhal", False, marker):
            assert marker.get(1) == (0, 0, 0) and time.monotonic() < deadline
        assert marker.get(1)[1:] == (8, zlib.crc32(b"one\ntwo\n"))
        marker.set(1, 0, 0, 0)
        marker.close()


def test_an_end_without_a_newline_is_a_part(listen: Listen, tmp_path: Path) -> None:
    """As docker marks it."""
    receiver = listen()
    made = run(tmp_path, "fluentd", f"tcp://127.0.0.1:{receiver.port}")
    made.log(1, b"unfinished", final=True)
    receiver.wait(b"partial_last")
    (event,) = unpacked(receiver.all())
    assert event[2]["partial_ordinal"] == "1" and event[2]["partial_last"] == "false"
    made.driver.flush()
    made.log(1, b"next run\n")
    receiver.wait(b"next run")
    assert "partial_id" not in unpacked(receiver.all())[1][2]
    assert made.text() == b"unfinishednext run\n"
