# SPDX-License-Identifier: Apache-2.0
"""The managed plugins: found, made, enabled, changed and removed, as docker does it, and brought back by each engine.

An enabled plugin runs: one that ends is started again, after a pause that grows where it ends soon; one that does not
come to listen is disabled. It outlives an engine that dies; after a boot it is started before the containers that run
again. A plugin is in use while there is a volume or a network of its, or a container runs whose log goes there; the
records of those are asked, so no count of users can be lost.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from teu.engine.backend import containerd, content, tasks
from teu.engine.backend.containerd import Client
from teu.engine.containers import runtimes
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.core.filters import flag_filter
from teu.engine.core.managed import AUTHORIZATION, KNOWN, LOGS, METRICS, VOLUMES, Managed
from teu.engine.plugins import config as configuration
from teu.engine.plugins.record import ID, Plugin, PluginRecord, read
from teu.linux import trees
from teu.oci import image_spec, reference
from teu.oci.labels import rooted
from teu.systemd import host

if TYPE_CHECKING:
    from teu.config import Settings
    from teu.engine.containers.boot import Boot
    from teu.engine.containers.store import Containers
    from teu.engine.core.departure import Departure
    from teu.engine.core.events import Events
    from teu.engine.images.transfer import Message
    from teu.engine.networks.manager import Networks
    from teu.engine.plugins.collectors import Collectors, Serve
    from teu.engine.plugins.config import Config, Privilege
    from teu.engine.plugins.runner import Runner
    from teu.engine.volumes.store import Volumes
    from teu.oci.archive import Stream
    from teu.oci.image_spec import Manifest
    from teu.oci.reference import Reference

log = logging.getLogger("teu.engine")

NAMESPACE = "plugins.teu"
FILTERS = ("capability", "enabled")
AGAIN_FIRST, AGAIN_LONGEST = 0.1, 60.0
SETTLED_SECONDS = 10.0  # who ran this long is started again without a pause


class Plugins:
    """All of them. Its verbs raise EngineError in docker's words."""

    def __init__(
        self,
        settings: Settings,
        around: tuple[str, str],
        users: tuple[Containers, Volumes, Networks],
        events: Events,
        boot: Boot,
        stopping: threading.Event,
    ) -> None:
        """`around`: the engine's folders, for what stays and for what a reboot ends. `users`: where those are looked
        for that have something of a plugin's."""
        self._settings = settings
        self._data_root, self._exec_root = around
        self._containers, self._volumes, self._networks = users
        self._events = events
        self._boot = boot
        self._stopping = stopping
        self._plugins: dict[str, Plugin] = {}
        self._lock = threading.Lock()  # of the dict; nothing is waited for with it
        self._making = threading.RLock()  # of what becomes a plugin's, or is nobody's
        self._made: Runner | None = None
        self.client = Client(settings["containerd"], NAMESPACE)
        self.withdrawn: set[str] = set()
        """Those that were disabled by a user since the engine has started: they are asked for no authorization."""
        self.serve_figures: Serve = _nothing
        """Answer with the figures at a socket (collectors.Collectors); from who starts the engine."""
        self.started = threading.Event()
        """Those that were enabled when the engine started run, or do not come to."""
        self.started.set()

    @property
    def _runner(self) -> Runner:
        if self._made is None:
            from teu.engine.plugins.runner import Runner  # 2 ms, where there are plugins

            shim = runtimes.find("", self._settings).shim
            self._made = Runner(self.client, self._snapshotter, shim, self._stopping, self._collectors)
        return self._made

    @functools.cached_property
    def _collectors(self) -> Collectors:
        from teu.engine.plugins.collectors import Collectors  # 3 ms, as above

        return Collectors(self.serve_figures)

    @property
    def _folder(self) -> str:
        return f"{self._data_root}/plugins"

    # -- at the start of the engine -------------------------------------------------------------

    def load(self) -> None:
        """Read the records, before the containers'."""
        try:
            entries = sorted(entry.name for entry in os.scandir(self._folder))
        except FileNotFoundError:
            return
        for name in entries:
            if not ID.match(name):
                continue
            try:
                plugin = Plugin(read(f"{self._folder}/{name}"), self._data_root, self._exec_root)
            except FileNotFoundError:
                continue  # its removal was interrupted
            except EngineError as error:
                log.error("a plugin is left alone: %s", error)
                continue
            self._plugins[plugin.id] = plugin
            self._boot.keep(plugin.id, plugin.enabled)
        self._tell()

    def _tell(self) -> None:
        KNOWN.tell(self._managed, lambda: [plugin.managed() for plugin in self._all()])

    def recover(self) -> None:
        """Take over those that run, and start the others that are enabled, in the background. Raises Unavailable."""
        if not os.path.isdir(self._folder):
            return
        self.client.ensure_namespace()
        known = tasks.list_tasks(self.client)
        adopted, missing = [], []
        for plugin in self._all():
            task = known.get(plugin.id)
            with plugin.lock:
                if task is not None and plugin.enabled and (task.unknown or task.status == "RUNNING"):
                    if not plugin.starts or not (task.unknown or plugin.pid == task.pid):
                        self._adopt(plugin, task)
                        adopted.append(plugin)
                elif plugin.enabled or task is not None:
                    missing.append(plugin)
        self.started.clear()
        threading.Thread(target=self._rest, args=(adopted, missing), name="plugins", daemon=True).start()

    def _adopt(self, plugin: Plugin, task: tasks.Task) -> None:
        try:
            self._runner.adopt(plugin, task)
        except OSError as error:
            log.error("plugin %s goes on without all that it is given: %s", plugin.name, error)

    def _rest(self, adopted: list[Plugin], missing: list[Plugin]) -> None:
        try:
            for plugin in adopted:
                threading.Thread(target=self._collectors.begin, args=(plugin,), name="plugin", daemon=True).start()
            workers = [threading.Thread(target=self._revive, args=(one,), name="plugin") for one in missing]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            self.started.set()
            self.sweep()
        except containerd.Error as error:
            log.warning("what was left of plugins is not removed yet: %s", error)
        finally:
            self.started.set()

    def sweep(self) -> None:
        """Remove what no plugin stands for. Raises containerd's errors."""
        if not os.path.isdir(self._folder):
            return
        from teu.engine.plugins import bundles  # 25 ms: registries and archives, for hosts with plugins

        with self._making:
            records = [plugin.record for plugin in self._all()]
            damaged = any(os.path.exists(f"{self._folder}/{name}/plugin.json") for name in self._strangers())
            if damaged:
                return  # it may be that one's
            made, _ = tasks.list_containers(self.client)
            for identity in made:
                if identity not in self._plugins:
                    tasks.discard(self.client, identity)
            bases, manifests = {record.base for record in records}, {record.manifest for record in records}
            bundles.sweep(self.client, self._settings["storage-driver"], bases, manifests)
            for name in self._strangers():
                self._discard(name)

    def _strangers(self) -> list[str]:
        """Folders of plugins that are none."""
        found: set[str] = set()
        for top in (self._folder, f"{self._exec_root}/plugins", f"{self._exec_root}/plugin-streams"):
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(top) if ID.match(entry.name))
        return sorted(found - set(self._plugins))

    def _discard(self, identity: str) -> None:
        for place in reversed(trees.mounts_below(f"{self._folder}/{identity}")):
            with contextlib.suppress(OSError):
                trees.unmount(place)
        for top in (self._folder, f"{self._exec_root}/plugins", f"{self._exec_root}/plugin-streams"):
            trees.discard_tree(f"{top}/{identity}")

    def close(self) -> None:
        """The engine goes; plugins stay, and those that collect its figures are told."""
        if self._plugins:
            if collecting := self.names(METRICS):
                self._collectors.end(collecting)
            KNOWN.forget()
        self.client.close()

    # -- those that there are ---------------------------------------------------------------------

    def _all(self) -> list[Plugin]:
        with self._lock:
            return sorted(self._plugins.values(), key=lambda plugin: plugin.name)

    def _managed(self, name: str) -> Managed | None:
        found = self._named(name)
        return found.managed() if found is not None else None

    def _named(self, name: str) -> Plugin | None:
        try:
            whole = _whole(name)
        except EngineError:
            return None
        return next((plugin for plugin in self._all() if plugin.name == whole), None)

    def get(self, text: str) -> Plugin:
        """By its name, its id, or the beginning of that. Raises NotFound, BadRequest."""
        with self._lock:
            if ID.match(text):
                if text in self._plugins:
                    return self._plugins[text]
                raise NotFound(f'plugin "{text}" not found')
        found = self._named(text)
        if found is not None:
            return found
        fitting = [plugin for plugin in self._all() if text and plugin.id.startswith(text)]
        if len(fitting) > 1:
            raise BadRequest(f'multiple plugins found for "{text}"')
        if not fitting:
            raise NotFound(f'plugin "{text}" not found')
        return fitting[0]

    def listing(self, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        """GET /plugins. Raises BadRequest."""
        for name in filters:
            if name not in FILTERS:
                raise BadRequest(f"invalid filter '{name}'")
        enabled, wanted = flag_filter(filters, "enabled"), filters.get("capability", [])
        rows = []
        for plugin in self._all():
            if enabled is not None and plugin.enabled != enabled:
                continue
            if wanted and not plugin.has_only(wanted):
                continue
            rows.append(plugin.shown())
        return rows

    def needs_engine(self) -> bool:
        """Whether one is enabled: it is started again from here, and its output is read here."""
        return any(plugin.enabled for plugin in self._all())

    def names(self, capability: str) -> list[str]:
        """Of those that are enabled, and implement something."""
        return [plugin.name for plugin in self._all() if plugin.enabled and plugin.implements(capability)]

    def users(self, plugin: Plugin) -> list[str]:
        """What is there of a plugin's, in words."""
        found: list[str] = []
        if plugin.implements(VOLUMES):
            names = self._volumes.names()
            found += [f"volume {name}" for name in names if self._is(plugin, self._volumes.driver(name))]
        for network in self._networks.all():
            if network.damage:
                continue
            if self._is(plugin, network.driver) or self._is(plugin, network.record.ipam_driver):
                found.append(f"network {network.name}")
        if plugin.implements(LOGS):
            everyone = self._containers.all()
            found += [f"container {one.name}" for one in everyone if one.running and self._is(plugin, one.log_type)]
        return found

    def _is(self, plugin: Plugin, name: str) -> bool:
        named = self._named(name)
        return named is plugin

    # -- enabled and disabled -----------------------------------------------------------------------

    def enable(self, text: str, seconds: int) -> None:
        """POST /plugins/{name}/enable. `seconds`: for its answers, 0 as for any plugin's."""
        plugin = self.get(text)
        with self._changing(plugin):
            if plugin.enabled:
                raise Conflict(f"plugin already enabled: plugin {plugin.name} is enabled")
            self.client.ensure_namespace()
            self._boot.keep(plugin.id, True)
            try:
                self._runner.start(plugin)
                plugin.record.at_once(enabled=True, seconds=seconds)
                plugin.save()
            except BaseException:
                self._boot.keep(plugin.id, False)
                raise
            plugin.pause = 0.0
            self.withdrawn.discard(plugin.name)
        self._collectors.begin(plugin)
        self._event("enable", plugin.id, text)

    def disable(self, text: str, force: bool) -> None:
        """POST /plugins/{name}/disable; forced, also one that is in use."""
        plugin = self.get(text)
        with self._changing(plugin):
            self._check_unused(plugin, force)
            if not plugin.enabled:
                raise Conflict(f"plugin is already disabled: plugin {plugin.name} found but disabled")
            self._disable(plugin)
            if plugin.implements(AUTHORIZATION):
                self.withdrawn.add(plugin.name)
        self._event("disable", plugin.id, text)

    def _check_unused(self, plugin: Plugin, force: bool) -> None:
        if not force and self.users(plugin):
            raise Conflict(f"plugin {plugin.name} is in use")

    def _disable(self, plugin: Plugin) -> None:
        plugin.record.enabled = False
        plugin.save()
        self._boot.keep(plugin.id, False)
        self._runner.stop(plugin)

    @contextlib.contextmanager
    def _changing(self, plugin: Plugin) -> Iterator[None]:
        with plugin.lock:
            if plugin.removed:
                raise NotFound(f'plugin "{plugin.name}" not found')
            try:
                yield
            except OSError as error:
                raise EngineError(f"plugin {plugin.name}: {error}") from error

    # -- ends that nobody asked for --------------------------------------------------------------------

    def ended(self, identity: str) -> None:
        """containerd says that a plugin has ended."""
        with self._lock:
            plugin = self._plugins.get(identity)
        if plugin is not None:
            threading.Thread(target=self._revive, args=(plugin,), name="plugin", daemon=True).start()

    def look(self) -> None:
        """Whether all run that should. Any time, after events may have been lost. Raises containerd's errors."""
        enabled = [plugin for plugin in self._all() if plugin.enabled]
        if not enabled or not self.started.is_set():
            return
        known = tasks.list_tasks(self.client)
        for plugin in enabled:
            task = known.get(plugin.id)
            if task is None or task.status == "STOPPED":
                self.ended(plugin.id)

    def _revive(self, plugin: Plugin) -> None:
        """Start one that is enabled and does not run; take away what is left of one that is not enabled."""
        if plugin.enabled and self._stopping.wait(plugin.pause):
            return
        with plugin.lock:
            if plugin.removed or self._stopping.is_set() or host.is_going_down():
                return
            try:
                task = tasks.get(self.client, plugin.id)
                if task is not None and plugin.enabled and (task.unknown or task.status == "RUNNING"):
                    return
                if not plugin.enabled:
                    self._runner.clear(plugin)
                    return
                began = time.monotonic()
                log.info("plugin %s is started again", plugin.name)
                self._runner.start(plugin)
            except containerd.Unavailable as error:
                log.info("plugin %s is not started yet: %s", plugin.name, error)
                return
            except Exception as error:
                if self._stopping.is_set():
                    return
                log.error("plugin %s is disabled, for it cannot be started: %s", plugin.name, error)
                with contextlib.suppress(OSError, EngineError):
                    self._disable(plugin)
                return
            long_ago = began - plugin.began > SETTLED_SECONDS
            plugin.pause = AGAIN_FIRST if long_ago else min(max(plugin.pause, AGAIN_FIRST) * 2, AGAIN_LONGEST)
            plugin.began = time.monotonic()
        self._collectors.begin(plugin)

    # -- settings, removal ---------------------------------------------------------------------------

    def set(self, text: str, words: list[str]) -> None:
        """POST /plugins/{name}/set: all of NAME[.FIELD]=VALUE, or nothing."""
        plugin = self.get(text)
        with self._changing(plugin):
            if plugin.enabled:
                raise EngineError("cannot set on an active plugin, disable plugin before setting")
            changed, settings = configuration.change(plugin.record.config, plugin.record.settings, words)
            plugin.record.at_once(config=changed, settings=settings)
            plugin.save()

    def remove(self, text: str, force: bool) -> None:
        """DELETE /plugins/{name}; forced, also one that is enabled, or in use."""
        plugin = self.get(text)
        with self._changing(plugin):
            self._check_unused(plugin, force)
            if plugin.enabled and not force:
                raise Conflict(f"plugin {plugin.name} is enabled")
            if plugin.enabled:
                self._disable(plugin)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{plugin.folder}/plugin.json")
            plugin.removed = True
            with self._lock:
                del self._plugins[plugin.id]
            self._discard(plugin.id)
            try:
                self.sweep()
            except containerd.Error as error:
                log.warning("what is left of plugin %s is removed later: %s", plugin.name, error)
                self.client.untidy.set()
        self._event("remove", plugin.id, text)

    # -- made and pulled -------------------------------------------------------------------------------

    def create(self, text: str, stream: Stream, departure: Departure) -> None:
        """POST /plugins/create: of an archive with config.json and rootfs/."""
        from teu.engine.plugins import bundles  # as above

        wanted = _parsed(text)
        if wanted.digest:
            raise EngineError("canonical references are not permitted")
        name = wanted.with_default_tag().familiar()
        self._check_name(name, Conflict)
        base = uuid.uuid4().hex
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self.client.ensure_namespace()
        with self.client.making(base), self.client.lease() as lease:
            config, digest, manifest = bundles.store(self.client, stream, lease, departure)
            with self.client.making(digest):
                for _ in bundles.unpacked(self.client, self._snapshotter, manifest, base, lease, departure):
                    pass
                plugin = self._add(name, name, config, digest, manifest, base)
        self._event("create", plugin.id, name)

    @property
    def _snapshotter(self) -> str:
        return str(self._settings["storage-driver"])

    def _check_name(self, name: str, kind: type[EngineError] = BadRequest) -> None:
        if any(plugin.name == name for plugin in self._all()):
            raise kind(f"plugin {name} already exists")

    def _add(self, name: str, shown: str, config: Config, digest: str, manifest: Manifest, base: str) -> Plugin:
        record = PluginRecord(
            id=secrets.token_hex(32),
            name=name,
            reference=shown,
            config=config,
            settings=configuration.defaults(config),
            manifest=digest,
            layers=[layer["digest"] for layer in manifest["layers"]],
            base=base,
        )
        plugin = Plugin(record, self._data_root, self._exec_root)
        with self._making:
            self._check_name(name)
            content.label(self.client, digest, rooted())
            plugin.save()
            with self._lock:
                self._plugins[plugin.id] = plugin
            self._tell()
        return plugin

    def privileges(self, remote: str, auth: str, departure: Departure) -> list[dict[str, Any]] | None:
        """GET /plugins/privileges: what a plugin of a registry wants; None for nothing."""
        from teu.engine.plugins import bundles  # as above

        wanted, _ = _remote(remote)
        with bundles.source(self._settings, wanted, auth, departure) as registry:
            found = bundles.look(self._settings, registry, wanted)
        return [configuration.PRIVILEGE.write(one) for one in configuration.privileges(found.config)] or None

    def name_of(self, remote: str, name: str) -> str:
        """What a plugin of a registry is to be called here. Raises BadRequest, EngineError."""
        wanted, tag = _remote(remote)
        if not name:
            plain = wanted._replace(digest="", tag=tag or wanted.tag)
            return plain.with_default_tag().familiar()
        local = _parsed(name)
        if local.digest:
            raise EngineError("cannot use digest in plugin tag")
        return local.with_default_tag().familiar()

    def pull(
        self, remote: str, name: str, auth: str, granted: list[Privilege], departure: Departure
    ) -> Iterator[Message]:
        """POST /plugins/pull: a plugin of a registry, where exactly what it wants was granted."""
        from teu.engine.plugins import bundles  # as above

        wanted, _ = _remote(remote)
        self._check_name(name)
        base = uuid.uuid4().hex
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self.client.ensure_namespace()
        with self.client.making(base), self.client.lease() as lease:
            with bundles.source(self._settings, wanted, auth, departure) as registry:
                found = bundles.look(self._settings, registry, wanted)
                yield from bundles.download(self.client, registry, wanted, found, lease, granted, departure)
            digest = found.target["digest"]
            with self.client.making(digest):
                yield from bundles.unpacked(self.client, self._snapshotter, found.manifest, base, lease, departure)
                self._events.publish("plugin", "pull", wanted.familiar(), {"name": name})
                self._add(name, str(wanted), found.config, digest, found.manifest, base)

    def upgrade(
        self, text: str, remote: str, auth: str, granted: list[Privilege], departure: Departure
    ) -> Iterator[Message]:
        """POST /plugins/{name}/upgrade: another version in its place; what a user has set stays."""
        from teu.engine.plugins import bundles  # as above

        plugin = self.get(text)
        wanted, _ = _remote(remote)
        base = uuid.uuid4().hex
        with self._changing(plugin):
            if plugin.enabled:
                raise Conflict(f"plugin must be disabled before upgrading: plugin {plugin.name} is enabled")
            with self.client.making(base), self.client.lease() as lease:
                with bundles.source(self._settings, wanted, auth, departure) as registry:
                    found = bundles.look(self._settings, registry, wanted)
                    yield from bundles.download(self.client, registry, wanted, found, lease, granted, departure)
                digest = found.target["digest"]
                with self.client.making(digest):
                    yield from bundles.unpacked(self.client, self._snapshotter, found.manifest, base, lease, departure)
                    self._events.publish("plugin", "pull", wanted.familiar(), {"name": text})
                    with self._making:
                        content.label(self.client, digest, rooted())
                        layers = [layer["digest"] for layer in found.manifest["layers"]]
                        plugin.record.at_once(
                            config=found.config, manifest=digest, layers=layers, base=base, reference=str(wanted)
                        )
                        plugin.save()
            self.sweep()

    def push(self, text: str, auth: str, departure: Departure) -> Iterator[Message]:
        """POST /plugins/{name}/push: to where its name says."""
        from teu.engine.plugins import bundles  # as above

        plugin = self.get(text)
        wanted = _parsed(plugin.name)
        try:
            yield from bundles.push(self.client, self._settings, wanted, plugin.record.manifest, auth, departure)
        except image_spec.SpecError as error:
            raise EngineError(f"error reading plugin manifest: {error}") from None

    def _event(self, action: str, identity: str, name: str) -> None:
        self._events.publish("plugin", action, identity, {"name": name})


def _nothing(_listener: socket.socket) -> Callable[[], None]:
    return lambda: None


def _parsed(text: str) -> Reference:
    try:
        return reference.parse(text)
    except reference.ReferenceError_ as error:
        raise BadRequest(f"failed to parse reference {text}: {error}") from None


def _whole(text: str) -> str:
    """A plugin's name with its tag, in docker's short form. Raises BadRequest."""
    found = _parsed(text)
    if found.digest:
        raise BadRequest("canonical references cannot be resolved")
    return found.with_default_tag().familiar()


def _remote(text: str) -> tuple[Reference, str]:
    """What is asked of a registry; and the tag that stands beside a digest. Raises BadRequest."""
    try:
        found = reference.parse(text)
    except reference.ReferenceError_ as error:
        raise BadRequest(str(error)) from None
    if found.digest:
        return found._replace(tag=""), found.tag
    return found.with_default_tag(), ""
