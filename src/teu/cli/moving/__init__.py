# SPDX-License-Identifier: Apache-2.0
"""`teu system import-docker`: an existing dockerd's or podman's belongings become Teu's. Theirs are read and never
changed; Teu's come to be by its API alone, volumes' files aside, which are copied to where the API says they are.

    importing   the command: what is here, what is done with it, in which order
    daemonfile  /etc/docker/daemon.json, key by key
    things      what can be taken over: images, volumes, networks, containers
    dockerstore those of a stopped dockerd, from its folder
    containerdstore  images that dockerd keeps in containerd
podmanstore those of podman, by its own command line
    layers      an image as an archive, with a container's changes as a further layer
    tarsplit    a layer's tar, put together again
    boltdb      the databases of dockerd
"""
