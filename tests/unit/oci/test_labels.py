# SPDX-License-Identifier: Apache-2.0
"""The labels by which clients and the garbage collector understand each other."""

from __future__ import annotations

import calendar
import time

import pytest

from teu.oci import labels


def test_moments() -> None:
    (key, value), *more = labels.expiring(3600).items()
    assert (key, more) == ("containerd.io/gc.expire", [])
    ends = calendar.timegm(time.strptime(value, "%Y-%m-%dT%H:%M:%SZ"))
    assert ends == pytest.approx(time.time() + 3600, abs=5)
    assert list(labels.rooted()) == ["containerd.io/gc.root"]


def test_what_an_index_and_a_manifest_keep() -> None:
    one, two, three = ({"digest": f"sha256:{number}"} for number in range(3))
    assert labels.keeping(manifests=[one, two]) == {
        "containerd.io/gc.ref.content.m.0": "sha256:0",
        "containerd.io/gc.ref.content.m.1": "sha256:1",
    }
    assert labels.keeping(config=one, layers=[two, three]) == {
        "containerd.io/gc.ref.content.config": "sha256:0",
        "containerd.io/gc.ref.content.l.0": "sha256:1",
        "containerd.io/gc.ref.content.l.1": "sha256:2",
    }
    assert labels.keeping() == {}
