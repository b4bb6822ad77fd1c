# SPDX-License-Identifier: Apache-2.0
"""The Node Resource Interface: programs that are told of pods and containers, and may change them. Used by
`teu.containerd.cri`, whose `nri` module knows what pods and containers are here.

Plugins connect to a socket, or are started from a folder; either way a connection has two streams (`teu.ttrpc.mux`): on
one the plugin serves and is asked, on the other it asks. Loaded with the first of them.

    plugins      all of them: who comes, who is asked in which order, who goes
    plugin       one of them: its connection, its registration, its calls
    merge        what several want of one container, and whose wish it was
    validator    the built-in one, which refuses what the configuration says
    names        of plugins and their files
"""
