# SPDX-License-Identifier: Apache-2.0
"""The Container Runtime Interface, version 1: what kubelet and crictl ask for, over the stores and tasks of
containerd's own API. Loaded only where /etc/teu/containerd.yaml has `cri: {enabled: true}`.

A pod is a sandbox of the runtime: a shim that is there before its containers. It has no process of its own: its
namespaces are held by mounts, and only a pod whose containers see each other's processes gets a small init.

All of it is in the namespace k8s.io, where `ctr -n k8s.io` sees it. What a pod or a container was asked to be is an
extension of its record there; the rest is in files:

    STATE/cri/POD/              hosts, hostname, resolv.conf, shm (a tmpfs); ipc, uts and user (namespaces)
    STATE/cri/POD/images/ID     an image that containers of the pod mount
    STATE/cri/CONTAINER/        FIFOs: stdin, and those of commands under way; attach, a socket of the shim; see `shims`
    ROOT/cri/CONTAINER/         volumes of the image
    /run/netns/cni-UUID         a pod's network namespace

A field that is not implemented is refused, see `checks`. The modules, from the roof down: `service` and `image_service`
(the wire), `streaming` (HTTP for exec, attach and port-forward) over `spdy`, `websocket` and `pipes`; `pods`, `attach`,
`execs`, `forward`, `plugged` and `adjust` (for plugins of the Node Resource Interface), `resize`, `leftovers`,
`containers`, `nri`, `cadvisor`, `podstats`, `checkpoint`, `stats`, `imagevolumes`, `images`, `network`, `template`,
`rootfs`, `shims`, `spec`, `handlers`, `namespaces`, `files`, `events`, `records`, `checks`, `users`.
"""
