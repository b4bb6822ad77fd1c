# SPDX-License-Identifier: Apache-2.0
"""Daemons killed at a random moment of a pull: what was pulled is whole, what was not leaves nothing, and the next
pull does the rest."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import images
import pytest
import whole
from lab_kind import PATIENCE
from scripted_registry import ScriptedRegistry, tar
from whole import teu

BLOBS = Path("/var/lib/teu/containerd/content/blobs/sha256")


def verify_content() -> None:
    """Every blob in the store has the digest that it is named by."""
    for path in BLOBS.iterdir():
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        assert hashlib.sha256(data).hexdigest() == path.name


@pytest.mark.timeout(600)
def test_killed_while_pulling(rounds: Callable[[int], int]) -> None:
    images.need_busybox()
    before = images.baseline()
    counts: dict[str, Counter[str]] = {death: Counter() for death in whole.DEATHS}
    seed = int(os.environ.get("TEU_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    chance = random.Random(seed)
    print(f"seed: TEU_SEED={seed}")
    with ScriptedRegistry() as registry:
        registry.hook = lambda _method, path: time.sleep(0.02 if "/blobs/" in path else 0)
        layers = [tar((f"file{n}", chance.randbytes(400_000))) for n in range(3)]
        registry.image("app", "1", *layers)
        name = f"{registry.address}/app:1"
        started = time.monotonic()
        teu("pull", name)
        usual = time.monotonic() - started
        teu("rmi", name)
        for death in whole.deaths(rounds(10), chance):
            victims = whole.DEATHS[death].aim()
            client = subprocess.Popen(["teu", "pull", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(chance.uniform(0, usual * 1.1))
            whole.DEATHS[death].strike(victims)
            finished = client.wait(60 * PATIENCE) == 0
            counts[death]["acknowledged" if finished else "interrupted"] += 1
            if finished:
                teu("image", "inspect", name)
            else:
                teu("pull", name)
            verify_content()
            teu("rmi", name)
    images.settle(before)
    print("deaths while pulling; every image whole, nothing left")
    for death, count in counts.items():
        print(f"    {death}: {dict(count)}")
