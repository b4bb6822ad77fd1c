# SPDX-License-Identifier: Apache-2.0
"""Containers that are declared in files, and are services of systemd: teu-containers(7).

    files.py      reads the files, their drop-ins and instances
    keys.py       every key of podman's Quadlet: what it becomes, or why it is refused
    translate.py  a file becomes a unit
    generator.py  teu-system-generator: systemd runs it at boot and at daemon-reload, so it imports next to nothing
    validate.py   `teu system validate`: the same, for a person to read
    unit.py       teu-unit: what the units run; makes and starts things over the Engine API, and stays with a container
    autoupdate.py `teu system auto-update`: new images, and back where a unit does not start with one
    written.py    `teu generate unit`: the file of a container that is there

The files' language is that of podman-systemd.unit(5) of podman 5, so that files go from there to here.
"""
