# SPDX-License-Identifier: Apache-2.0
"""The command line of docker 28 (tests/recorded) on a dockerd of its age and on teud in turns, as in
test_engine_recorded.py."""

from __future__ import annotations

from collections.abc import Iterator

import engine
import peers
import pytest
import whole
from recorded import docker_cli
from test_engine_recorded import Places, compared

pytestmark = [pytest.mark.needs("docker", "dockerd", "trixie", "namespace", "newer-docker"), pytest.mark.timeout(300)]

ROOT = "/opt/newer-docker"


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    engine.need_busybox()
    whole.remove_everything()
    with peers.dockerd(network=True, path=f"{ROOT}/usr/sbin:{ROOT}/usr/bin") as daemon:
        daemon.load_busybox()
        yield Places(engine.SOCKET, str(daemon.socket), "")
    whole.eventually("the host is clean at the end", lambda: not whole.leftovers(), timeout=30)


def test_both_answer_alike(places: Places) -> None:
    compared(docker_cli.STORY, places.ours, places.theirs)
