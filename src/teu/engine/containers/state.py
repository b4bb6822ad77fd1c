# SPDX-License-Identifier: Apache-2.0
"""What engine.db has of a container: one record, as JSON, and the records in it.

    id, name, created, path, args, image_id, chain_id
    image_manifest   ManifestDescriptor
    config           Config       as asked for, over the image's (core/fields.py)
    host_config      HostConfig
    state            State        and in it Health, where there are checks
    network_settings NetworkSettings (network_settings.py)
    mounts           MountPoint   each, with its Options
    restart_count, manually_stopped, started_once, apparmor_profile, ended, pid_started

SAVED is the encoder; the decoder is records.py, for anything may have happened to a database.
"""

from __future__ import annotations

from teu.engine.containers.network_settings import NetworkSettings
from teu.engine.core.fields import CONFIG, HOST_CONFIG, Config, HostConfig
from teu.engine.core.kinds import (
    FLAG,
    INT64,
    NOTHING,
    TEXT,
    WORD_LIST,
    ListOf,
    MapOf,
    Record,
    RecordOf,
    member,
)
from teu.engine.core.times import NEVER


class Probe(Record):
    """One run of a health check."""

    start: str = member("Start", TEXT, "")
    end: str = member("End", TEXT, "")
    exit_code: int = member("ExitCode", INT64, 0)
    output: str = member("Output", TEXT, "")


class Health(Record):
    status: str = member("Status", TEXT, "none")
    failing_streak: int = member("FailingStreak", INT64, 0)
    log: list[Probe] = member("Log", ListOf(RecordOf(Probe)), [])


class State(Record):
    """The API's State."""

    status: str = member("Status", TEXT, "created")
    running: bool = member("Running", FLAG, False)
    paused: bool = member("Paused", FLAG, False)
    restarting: bool = member("Restarting", FLAG, False)
    oom_killed: bool = member("OOMKilled", FLAG, False)
    dead: bool = member("Dead", FLAG, False)
    pid: int = member("Pid", INT64, 0)
    exit_code: int = member("ExitCode", INT64, 0)
    error: str = member("Error", TEXT, "")
    started_at: str = member("StartedAt", TEXT, NEVER)
    finished_at: str = member("FinishedAt", TEXT, NEVER)
    health: Health | None = member("Health", RecordOf(Health))

    def runs(self, pid: int, since: str) -> None:
        """It has just been started."""
        self.at_once(
            status="running",
            running=True,
            paused=False,
            restarting=False,
            oom_killed=False,
            dead=False,
            pid=pid,
            exit_code=0,
            error="",
            started_at=since,
        )

    def goes_on(self, pid: int, paused: bool) -> None:
        """It has been running all the while."""
        status = "paused" if paused else "running"
        self.at_once(status=status, running=True, paused=paused, restarting=False, pid=pid)

    def ends(self, exit_code: int, finished_at: str, oom_killed: bool) -> None:
        self.at_once(
            status="exited",
            running=False,
            paused=False,
            restarting=False,
            pid=0,
            exit_code=exit_code,
            finished_at=finished_at,
            oom_killed=oom_killed,
        )

    def fails(self, status: str, exit_code: int, error: str, finished_at: str) -> None:
        """It could not be started."""
        self.at_once(
            status=status,
            running=False,
            restarting=False,
            pid=0,
            exit_code=exit_code,
            error=error,
            finished_at=finished_at,
        )

    def waits(self) -> None:
        """It is to be started again."""
        self.at_once(status="restarting", running=True, restarting=True, pid=0)

    def rests(self) -> None:
        """It is not to be started again; how it ended is left as it is."""
        self.at_once(status="exited", running=False, restarting=False, pid=0)

    def pauses(self, paused: bool) -> None:
        self.at_once(status="paused" if paused else "running", paused=paused)

    def dies(self, reason: str) -> None:
        """It cannot be looked after any more."""
        self.at_once(status="dead", dead=True, running=False, paused=False, restarting=False, error=reason)


class MountOptions(Record):
    """What only we need of a mount point."""

    copy_image: bool = member("copy", FLAG, False)  # what the image has there goes into a new volume
    anonymous: bool = member("anonymous", FLAG, False)
    create: bool = member("create", FLAG, False)  # the source of a bind mount, where it is missing
    nonrecursive: bool = member("nonrecursive", FLAG, False)
    # Read-only without what is mounted below; None in records that were made when there was nothing else.
    shallow: bool | None = member("shallow", FLAG)
    deep: bool = member("deep", FLAG, False)
    subpath: str = member("subpath", TEXT, "")
    tmpfs: list[str] | None = member("tmpfs", WORD_LIST)
    where_possible: bool = member("where-possible", FLAG, False)  # the propagation
    chain: str = member("chain", TEXT, "")  # the layers of an image, by the chain id of the top one


class MountPoint(Record):
    """One of the API's Mounts of a container, and how it is made."""

    type: str = member("Type", TEXT, "")  # bind, volume, tmpfs or image
    name: str | None = member("Name", TEXT)  # of a volume, as is the driver; of an image
    source: str = member("Source", TEXT, "")  # a path of the host; the id of an image
    destination: str = member("Destination", TEXT, "")
    driver: str | None = member("Driver", TEXT)
    mode: str = member("Mode", TEXT, "")
    rw: bool = member("RW", FLAG, True)
    propagation: str = member("Propagation", TEXT, "")
    options: MountOptions = member("Options", RecordOf(MountOptions), MountOptions())


HEALTH, STATE, MOUNT_POINT = RecordOf(Health), RecordOf(State), RecordOf(MountPoint)


class ManifestDescriptor(Record):
    """Which manifest a container's image is of: OCI's descriptor, with the platform."""

    media_type: str = member("mediaType", TEXT, "")
    digest: str = member("digest", TEXT, "")
    size: int = member("size", INT64, 0)
    platform: dict[str, str] | None = member("platform", MapOf(TEXT))


MANIFEST_DESCRIPTOR = RecordOf(ManifestDescriptor)


class Saved(Record):
    """The record of a container."""

    id: str = member("id", TEXT, "")
    name: str = member("name", TEXT, "")
    created: str = member("created", TEXT, NEVER)
    path: str = member("path", TEXT, "")
    args: list[str] = member("args", WORD_LIST, [])
    image_id: str = member("image_id", TEXT, "")
    chain_id: str = member("chain_id", TEXT, "")
    # None of a container that an older teud has made.
    image_manifest: ManifestDescriptor | None = member("image_manifest", MANIFEST_DESCRIPTOR)
    config: Config = member("config", CONFIG, Config())
    host_config: HostConfig = member("host_config", HOST_CONFIG, HostConfig())
    state: State = member("state", STATE, State())
    # Read and written by network_settings.py.
    network_settings: NetworkSettings | None = member("network_settings", NOTHING)
    mounts: list[MountPoint] = member("mounts", ListOf(MOUNT_POINT), [])
    restart_count: int = member("restart_count", INT64, 0)
    manually_stopped: bool = member("manually_stopped", FLAG, False)
    started_once: bool = member("started_once", FLAG, False)
    apparmor_profile: str = member("apparmor_profile", TEXT, "")
    # Exit code and moment (nanoseconds) while the exit is being handled: the engine may die before that is done.
    ended: tuple[int, int] | None = member("ended", ListOf(INT64))
    pid_started: int = member("pid_started", INT64, 0)  # see proc.py


SAVED = RecordOf(Saved, nulls=True)
