# SPDX-License-Identifier: Apache-2.0
"""Platforms: os[(version)]/architecture[/variant], as containerd writes and normalizes them."""

from __future__ import annotations

import re
from typing import NamedTuple

from teu.oci import image_spec

_COMPONENT = re.compile(r"[A-Za-z0-9_.-]+\Z")
_OS = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?\Z")
_SYSTEMS = (
    *("aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd"),
    *("openbsd", "plan9", "solaris", "windows", "zos"),
)
_ARCHITECTURES = (
    *("386", "amd64", "amd64p32", "arm", "armbe", "arm64", "arm64be", "ppc64", "ppc64le", "loong64", "mips", "mipsle"),
    *("mips64", "mips64le", "mips64p32", "mips64p32le", "ppc", "riscv", "riscv64", "s390", "s390x", "sparc"),
    *("sparc64", "wasm"),
)


class PlatformError(ValueError):
    """A text is no platform; the message is containerd's."""


class Platform(NamedTuple):
    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Without the version of the operating system."""
        if not self.os:
            return "unknown"
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def full(self) -> str:
        """With the version, in parentheses after the operating system."""
        if not self.os:
            return "unknown"
        features = "".join("+" + feature for feature in self.os_features)
        inner = f"({self.os_version}{features})" if self.os_version or features else ""
        return "/".join(part for part in (self.os + inner, self.architecture, self.variant) if part)


def normalized(platform: Platform) -> Platform:
    """The platform by its usual names: x86_64 is amd64, arm64/v8 is arm64, arm without a variant is arm/v7."""
    system = platform.os.lower()
    if system == "macos":
        system = "darwin"
    architecture, variant = _architecture(platform.architecture.lower(), platform.variant.lower())
    return platform._replace(os=system, architecture=architecture, variant=variant)


def _architecture(name: str, variant: str) -> tuple[str, str]:
    if name == "i386":
        return "386", ""
    if name in ("x86_64", "x86-64", "amd64"):
        return "amd64", "" if variant == "v1" else variant
    if name in ("aarch64", "arm64"):
        return "arm64", "" if variant in ("8", "v8", "v8.0") else variant
    if name == "armhf":
        return "arm", "v7"
    if name == "armel":
        return "arm", "v6"
    if name == "arm":
        return "arm", "v7" if variant in ("", "7") else "v" + variant if variant in ("5", "6", "8") else variant
    return name, variant


def host() -> Platform:
    return normalized(Platform(*image_spec.host_platform()))


def parse(text: str) -> Platform:
    """Raises PlatformError."""
    parts = text.split("/")
    if len(parts) > 3:
        raise PlatformError(f'"{text}": cannot parse platform specifier: invalid argument')
    match = _OS.match(parts[0])
    wrong = next((part for part in parts[1:] if not _COMPONENT.match(part)), None)
    if match is None or wrong is not None or (match[1] == "" and len(parts) > 1):
        wrong = parts[0] if match is None else wrong
        raise PlatformError(
            f'"{wrong}" is an invalid component of "{text}": platform specifier component must match '
            f'"^[A-Za-z0-9_.-]+$": invalid argument'
        )
    system = normalized(Platform(match[1], "")).os
    version = match[2] or ""
    features = tuple(part for part in (match[3] or "").split("+") if part)
    if len(parts) > 1:
        return normalized(Platform(system, parts[1], "".join(parts[2:]), version, features))
    if system in _SYSTEMS:
        mine = host()
        variant = mine.variant if mine.architecture == "arm" and mine.variant != "v7" else ""
        return normalized(Platform(system, mine.architecture, variant, version, features))
    architecture, variant = _architecture(parts[0].lower(), "")
    if architecture in _ARCHITECTURES:
        return normalized(Platform("linux", architecture, variant))
    raise PlatformError(f'"{text}": unknown operating system or architecture: invalid argument')
