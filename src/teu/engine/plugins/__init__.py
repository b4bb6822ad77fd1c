# SPDX-License-Identifier: Apache-2.0
"""Docker's managed plugins: those that the engine itself pulls, runs and removes (docker's "plugin config v0").

    config      what a plugin says of itself: its records, the privileges that it wants, its settings
    record      a plugin and its file in DATA_ROOT/plugins
    bundles     its artifacts in containerd's namespace plugins.teu: from a registry, from a client, to a registry
    spec        from its configuration to a runtime specification
    collectors  the figures of the engine, for those that collect them
    runner      its mounts and its task
    store       all of them, and the verbs

It knows who has something of a plugin's: volumes, networks, containers. Those know core/managed.py alone.
"""
