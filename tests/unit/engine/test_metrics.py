# SPDX-License-Identifier: Apache-2.0
"""Figures for Prometheus: the page, and who serves it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import engine_parts as parts
import pytest

from teu import config as configuration
from teu.engine.api import router
from teu.engine.api.metrics import Metrics, page
from teu.engine.api.server import ACTIONS
from teu.engine.config import KEYS
from teu.engine.core.figures import Figures

SAMPLE = re.compile(r'[a-z_]+(\{[a-z_]+="(?:[^"\\]|\\.)*"(?:,[a-z_]+="(?:[^"\\]|\\.)*")*\})? [-+.0-9e]+')


def test_every_line_is_of_the_format(tmp_path: Path) -> None:
    engine = parts.engine(tmp_path)
    parts.container(engine)
    engine.figures.took("create", 0.02)
    engine.figures.took("create", 99)
    engine.figures.checked(True)
    engine.figures.checked(False)
    engine.figures.check_started(0.3)
    text = page(engine)
    lines = text.splitlines()
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or SAMPLE.fullmatch(line), line
    assert 'engine_daemon_container_states_containers{state="stopped"} 1' in lines
    assert 'engine_daemon_container_states_containers{state="running"} 0' in lines
    assert 'engine_daemon_container_actions_seconds_bucket{action="create",le="0.025"} 1' in lines
    assert 'engine_daemon_container_actions_seconds_bucket{action="create",le="+Inf"} 2' in lines
    assert 'engine_daemon_container_actions_seconds_count{action="create"} 2' in lines
    assert 'engine_daemon_health_check_start_duration_seconds_bucket{le="0.5"} 1' in lines
    assert "engine_daemon_health_check_start_duration_seconds_sum 0.3" in lines
    assert {"engine_daemon_health_checks_total 2", "engine_daemon_health_checks_failed_total 1"} <= set(lines)
    assert f'daemon_id="{engine.id}"' in text
    assert any(re.fullmatch(r"process_network_receive_bytes_total [1-9][0-9.e+]*", line) for line in lines)
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_what_is_timed_is_a_route() -> None:
    router.load()
    for method, pattern in ACTIONS:
        _, found, _ = router.find(method, re.sub(r"\{[^}]*\}", "x", pattern))
        assert found == pattern


def test_figures_by_many() -> None:
    figures = Figures()
    for seconds in (0.001, 0.005, 0.2):
        figures.took("start", seconds)
    durations = figures.actions()["start"]
    assert durations.counts[0] == 2 and sum(durations.counts) == 3 and durations.seconds == pytest.approx(0.206)


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[[bytes], bytes]]:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    engine = parts.engine(tmp_path)
    Metrics(engine, [listener]).start()

    def asked(request: bytes) -> bytes:
        with socket.create_connection(address, 10) as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while part := client.recv(65536):
                answer += part
            return answer

    yield asked
    engine.stopping.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_it_is_served_at_one_place(ask: Callable[[bytes], bytes]) -> None:
    head, _, body = ask(b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"version=0.0.4" in head
    assert f"Content-Length: {len(body)}".encode() in head and b"engine_daemon_engine_info{" in body
    assert ask(b"HEAD /metrics HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
    assert ask(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    assert ask(b"POST /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    assert ask(b"GET /met").startswith(b"HTTP/1.1 400 ")
    assert ask(b"\xff\x00" * 100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metrics-addr: 9323\n", "give HOST:PORT"),
        ("metrics-addr: '127.0.0.1'\n", "give HOST:PORT"),
        ("metrics-addr: 'a:b'\n", "give HOST:PORT"),
        ("features: {cdi: false}\n", "cdi: true"),
        ("features: {more: true}\n", "or leave it out"),
    ],
)
def test_bad_keys(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "teud.yaml").write_text(text)
    with pytest.raises(configuration.ConfigError, match=says):
        configuration.load(tmp_path / "teud.yaml", KEYS)
    (tmp_path / "teud.yaml").write_text("metrics-addr: '[::1]:9323'\nfeatures: {cdi: true}\n")
    configuration.load(tmp_path / "teud.yaml", KEYS)
