# SPDX-License-Identifier: Apache-2.0
"""References: docker's normal form, its familiar form, its refusals."""

from __future__ import annotations

import pytest

from teu.oci import reference
from teu.oci.reference import ReferenceError_

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("docker.io/busybox:1", "docker.io/library/busybox:1", "busybox:1"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("user/app:1.2-x_y", "docker.io/user/app:1.2-x_y", "user/app:1.2-x_y"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest", "localhost:5000/a/b:latest"),
        ("Example.com/a", "Example.com/a:latest", "Example.com/a:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"a.b/c:1@{DIGEST}", f"a.b/c:1@{DIGEST}", f"a.b/c:1@{DIGEST}"),
        ("a__b/c--d/e.f", "docker.io/a__b/c--d/e.f:latest", "a__b/c--d/e.f:latest"),
    ],
)
def test_normal_and_familiar(text: str, full: str, familiar: str) -> None:
    parsed = reference.parse(text).with_default_tag()
    assert str(parsed) == full
    assert parsed.familiar() == familiar
    assert reference.parse(full).with_default_tag() == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        ("UPPER", r"invalid reference format: repository name \(library/UPPER\) must be lowercase"),
        ("a b", "invalid reference format"),
        ("x:y:z", "invalid reference format"),
        ("x:", "invalid reference format"),
        ("-x", "invalid reference format"),
        ("x..y", "invalid reference format"),
        ("x___y", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("../x", "invalid reference format"),
        ("x:" + "t" * 129, "invalid reference format"),
        ("busybox@sha256:beef", "invalid reference format"),
        ("busybox@sha256:" + "a" * 63, "invalid checksum digest length"),
        ("ab" * 32, "cannot specify 64-byte hexadecimal strings"),
        ("a.b/" + "x" * 256, "repository name must not be more than 255 characters"),
        ("busybox\n", "invalid reference format"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ReferenceError_, match=message):
        reference.parse(text)
