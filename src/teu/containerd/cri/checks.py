# SPDX-License-Identifier: Apache-2.0
"""What a request may say: a field that is not implemented is refused by its name, never passed over. What has no
meaning on this host (a label of SELinux without SELinux) is taken, as kubelet sends it everywhere."""

from __future__ import annotations

from typing import Any

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import InvalidArgument, Unimplemented
from teu.containerd.cri import users
from teu.linux import selinux


def _refuse(where: str, message: Any, *names: str) -> None:
    """Each of the named fields that the message has."""
    present = {descriptor.name for descriptor, _ in message.ListFields()}
    for name in names:
        if name in present:
            raise Unimplemented(f"{where}.{name} is not implemented")


def _labels(where: str, options: Any) -> None:
    if any((options.user, options.role, options.type, options.level)) and selinux.enabled():
        raise Unimplemented(f"{where}.selinux_options is not implemented")


def _user_namespace(where: str, options: Any) -> None:
    if users.maps_of(options) is None:
        return
    for kind in ("pid", "ipc"):
        if getattr(options, kind) == cri.NODE:
            raise Unimplemented(f"{where}: a user namespace with the host's {kind} is not implemented")


def pod(config: Any) -> None:
    """A PodSandboxConfig. Raises InvalidArgument and Unimplemented."""
    if not config.HasField("metadata"):
        raise InvalidArgument("sandbox config must include metadata")
    _refuse("config", config, "windows")
    security = config.linux.security_context
    options = security.namespace_options
    _labels("config.linux.security_context", security.selinux_options)
    _user_namespace("config.linux.security_context.namespace_options", options)
    for kind in ("network", "ipc"):
        if getattr(options, kind) not in (cri.POD, cri.NODE):
            mode = cri.NamespaceMode.Name(getattr(options, kind))
            raise InvalidArgument(f"namespace_options.{kind} of a pod is POD or NODE, and not {mode}")
    if options.pid == cri.TARGET:
        raise InvalidArgument("namespace_options.pid of a pod is POD, CONTAINER or NODE, and not TARGET")
    for mapping in config.port_mappings:
        if mapping.host_port < 0 or mapping.host_port > 65535 or not 0 <= mapping.container_port <= 65535:
            raise InvalidArgument(f"port mapping {mapping.container_port}:{mapping.host_port} is none")


def _mapped(where: str, mount: Any) -> None:
    if bool(mount.uidMappings) != bool(mount.gidMappings):
        raise InvalidArgument(f"{where}: uidMappings and gidMappings go together")
    for one in (*mount.uidMappings, *mount.gidMappings):
        if one.length < 1:
            raise InvalidArgument(f"{where}: invalid mapping length: {one.length}")


def _image_volume(where: str, mount: Any) -> None:
    if not mount.HasField("image"):
        if mount.image_sub_path:
            raise InvalidArgument(f"{where}.image_sub_path is given without an image")
        return
    if not mount.image.image:
        raise InvalidArgument(f"{where}.image must name what is to be mounted")
    if mount.host_path:
        raise InvalidArgument(f"{where}.host_path must be empty where an image is mounted")
    if not mount.readonly:
        raise InvalidArgument(f"{where}.readonly must be true where an image is mounted")


def container(config: Any) -> None:
    """A ContainerConfig. Raises InvalidArgument and Unimplemented."""
    if not config.HasField("metadata"):
        raise InvalidArgument("container config must include metadata")
    _refuse("config", config, "windows")
    for number, mount in enumerate(config.mounts):
        where = f"config.mounts[{number}]"
        _image_volume(where, mount)
        _mapped(where, mount)
        if mount.selinux_relabel and selinux.enabled():
            raise Unimplemented(f"{where}.selinux_relabel is not implemented")
    security = config.linux.security_context
    _labels("config.linux.security_context", security.selinux_options)
    if security.HasField("run_as_group") and not (security.HasField("run_as_user") or security.run_as_username):
        raise InvalidArgument(f'user group "{security.run_as_group.value}" is specified without user')
