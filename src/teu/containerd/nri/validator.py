# SPDX-License-Identifier: Apache-2.0
"""The built-in validator: refuses changes of plugins that the configuration does not let through. Called by `plugins`.

The keys of `nri.default-validator` say what is refused. Pods may name plugins that must have been asked of their
containers by an annotation, for one container or for all: `required-plugins.noderesource.dev[/container.NAME|/pod]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from teu.api.nri.v1alpha1 import nri_pb2 as nri

NAME = "00-default-validator"
REQUIRED = "required-plugins.noderesource.dev"
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


class Rejected(ValueError):
    """The changes are not let through."""


def validate(request: Any, config: Mapping[str, Any]) -> None:
    """Of a ValidateContainerAdjustmentRequest. Raises Rejected."""
    owners = request.owners.owners[request.container.id]
    simple, compound = owners.simple, owners.compound
    if config["reject-oci-hook-adjustment"] and nri.OciHooks in simple:
        raise Rejected(f'plugin(s) "{simple[nri.OciHooks]}" attempted restricted OCI hook injection')
    _check_seccomp(request, simple, config)
    if config["reject-namespace-adjustment"] and nri.Namespace in compound:
        told = ", ".join(
            f'"{plugin}" (namespace "{kind}")' for kind, plugin in sorted(compound[nri.Namespace].owners.items())
        )
        raise Rejected(f"attempted restricted namespace adjustment by plugin(s) {told}")
    if config["reject-sysctl-adjustment"] and nri.Sysctl in compound:
        told = ", ".join(sorted({plugin.removeprefix("-") for plugin in compound[nri.Sysctl].owners.values()}))
        raise Rejected(f"attempted restricted sysctl adjustment by plugin(s) {told}")
    _check_required(request, config)


def _check_seccomp(request: Any, simple: Any, config: Mapping[str, Any]) -> None:
    if nri.SeccompPolicy not in simple:
        return
    linux = request.container.linux
    kind = linux.seccomp_profile.profile_type if linux.HasField("seccomp_profile") else nri.SecurityProfile.UNCONFINED
    key, words = {
        nri.SecurityProfile.UNCONFINED: ("unconfined", "unconfined"),
        nri.SecurityProfile.RUNTIME_DEFAULT: ("runtime-default", "runtime default"),
    }.get(kind, ("custom", "custom"))
    if config[f"reject-{key}-seccomp-adjustment"]:
        plugin = simple[nri.SeccompPolicy]
        raise Rejected(f"plugin {plugin} attempted restricted {words} seccomp policy adjustment")


def _annotation(request: Any, key: str) -> str | None:
    """A pod's annotation, as far as it holds for the container."""
    annotations = request.pod.annotations
    for name in (f"{key}/container.{request.container.name}", f"{key}/pod", key):
        if name in annotations:
            return str(annotations[name])
    return None


def _check_required(request: Any, config: Mapping[str, Any]) -> None:
    required = list(config["required-plugins"])
    tolerate = config["tolerate-missing-plugins-annotation"]
    if tolerate and (text := _annotation(request, tolerate)) is not None:
        if text in _TRUE:
            return
        if text not in _FALSE:
            raise Rejected(f'invalid {tolerate} annotation "{text}": give true or false')
    if (text := _annotation(request, REQUIRED)) is not None:
        try:
            named = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise Rejected(f'invalid {REQUIRED} annotation "{text}": {error}') from None
        if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
            raise Rejected(f'invalid {REQUIRED} annotation "{text}": give a list of names')
        required += named
    asked = {name for one in request.plugins for name in (one.name, f"{one.index}-{one.name}")}
    if missing := [name for name in required if name not in asked]:
        raise Rejected(f'required plugin(s) "{",".join(missing)}" not present')
