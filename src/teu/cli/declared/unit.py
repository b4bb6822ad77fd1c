# SPDX-License-Identifier: Apache-2.0
"""teu-unit: what the units of declared files run. Called by systemd alone, see translate.py.

    container OPTIONS -- IMAGE [COMMAND...]   makes the container, starts it, is the unit's main process until it ends
    pod OPTIONS                               the same with a container that only holds namespaces
    network, volume, image OPTIONS -- NAME    makes it, or finds it made
    remove NAME                               removes a container that a killed teu-unit has left

Options are those of `teu run` and the like, and OWN below. How a container is one with its unit:

- It stands in the unit's cgroup (HostConfig.CgroupParent is the path of that), so the unit's limits hold for it, and
  `systemctl status` shows its processes.  This process steps aside into teu-unit/ there.
- READY=1 is told when it runs, when it is healthy, or when it says so itself: then it talks to a socket of ours, and we
  hand on to systemd what a service may say.  What names processes (MAINPID=) is not handed on: inside it is root.
- Sockets that systemd listens on are passed by an annotation that says where they are (teu.runc.descriptors).
- Credentials are in /run/secrets. They are copies in /run/teu/units/UNIT, which is in memory and goes with the unit.
- SIGTERM, which is `systemctl stop`, becomes the container's own stop signal and its time.  Restarts are systemd's.
"""

from __future__ import annotations

import os
import sys

from teu.cli import createspec, runflags
from teu.cli.command import GLOBAL_FLAGS, Cli, load
from teu.cli.declared.watch import Asked, Watch, wake
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.cli.http import DEFAULT_HOST
from teu.cli.options import Options, Usage, parse, parse_table
from teu.cli.readiness import INSIDE as NOTIFY_INSIDE
from teu.cli.readiness import LABEL, notify
from teu.linux import cgroup_files
from teu.oci import jsontext
from teu.oci.defaults import DOCKER_MASKED_PATHS, READONLY_PATHS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, NoReturn
else:
    import _signal

OWN = """
   --device-if-there   list        Give access to a device if the host has it
   --env-host          bool        Copy the unit's environment
   --http-proxy        bool        Copy the proxy variables of the unit's environment
   --mask              list        Hide these paths as well, between colons
   --notify            string=started  Ready when it is started, healthy, or says so (container)
   --read-only-tmpfs   bool=true   With --read-only, tmpfs on /run, /tmp and /var/tmp
   --retry             int=3       So many further attempts to pull
   --retry-delay       duration=2s Time between them
   --secret            list        NAME[,type=mount|env][,target=…][,uid=…][,gid=…][,mode=…]
   --tz                string      Time zone, or local
   --unit              string      The unit
   --unmask            list        Do not hide these paths, between colons, or ALL
"""
NETWORK = "\n   --unit  string  The unit\n"
VOLUME = """
   --owner        string  User who owns a new volume
   --owner-group  string  Group that owns a new volume
   --unit         string  The unit
"""
IMAGE = """
   --all-tags     bool         All tags of the repository
   --authfile     string       File with passwords, as ~/.docker/config.json
   --creds        string       USER[:PASSWORD]
   --platform     string       Platform of the image
   --retry        int=3        So many further attempts
   --retry-delay  duration=2s  Time between them
   --unit         string       The unit
"""
REMOVE = NETWORK
TABLES = {
    "container": runflags.FLAGS + OWN,
    "pod": runflags.FLAGS + OWN,
    "network": load("network create").table + NETWORK,
    "volume": load("volume create").table + VOLUME,
    "image": IMAGE,
    "remove": REMOVE,
}

DESCRIPTORS = "io.teu.listen-fds"  # an annotation for teu-runc
FOLDER = "/run/teu/units"
SECRETS = "/run/secrets"
POD_IMAGE, POD_ARCHIVE = "busybox:latest", "/usr/share/teu/images/busybox.oci.tar"
# How long systemd is asked to wait for more while a pull makes progress, and how often.
PATIENCE_USEC, PATIENCE_SECONDS = 120_000_000, 20
# What the unit's environment has for teu-unit alone.
PRIVATE = frozenset(
    (
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "SYSTEMD_EXEC_PID",
        "CREDENTIALS_DIRECTORY",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
        "FDSTORE",
        "PATH",
        "LANG",
    )
)
TAR = {"Content-Type": "application/x-tar"}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")


# -- the request --


def for_run(options: Options) -> Options:
    """The options as `teu run` has them: entry point and check may be lists in JSON here, which `body` sets."""
    plain = Options()
    plain.update(options)
    plain.changed = options.changed
    for name in ("entrypoint", "health-cmd"):
        if plain[name].startswith("["):
            listed(plain[name], name)
            plain[name] = "true" if name == "health-cmd" else ""
    return plain


def listed(text: str, name: str) -> list[str]:
    try:
        found = jsontext.loads(text.encode())
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError(f"--{name}={text} is no list of words in JSON")
    return found


def paths(values: list[str]) -> list[str]:
    return [path for value in values for path in value.split(":") if path]


def body(options: Options, image: str, command: list[str]) -> dict[str, Any]:
    """The body of POST /containers/create, but for what depends on the unit."""
    for device in options["device-if-there"]:
        if os.path.exists(device.partition(":")[0]):
            options["device"].append(device)
    request = createspec.build(for_run(options), image, command)
    host = request["HostConfig"]
    if options["entrypoint"].startswith("["):
        request["Entrypoint"] = listed(options["entrypoint"], "entrypoint")
    if options["health-cmd"].startswith("["):
        request["Healthcheck"]["Test"] = ["CMD", *listed(options["health-cmd"], "health-cmd")]
    if options["mask"] or options["unmask"]:
        open_ones = paths(options["unmask"])
        everything = "ALL" in open_ones or "all" in open_ones
        masked = [] if everything else [path for path in DOCKER_MASKED_PATHS if path not in open_ones]
        host["MaskedPaths"] = masked + paths(options["mask"])
        host["ReadonlyPaths"] = [] if everything else [path for path in READONLY_PATHS if path not in open_ones]
    if options["tz"]:
        zone = os.path.realpath(
            "/etc/localtime" if options["tz"] == "local" else f"/usr/share/zoneinfo/{options['tz']}"
        )
        if not zone.startswith("/usr/share/zoneinfo/") or not os.path.isfile(zone):
            raise ValueError(f"there is no time zone {options['tz']} in /usr/share/zoneinfo")
        bind(request, zone, "/etc/localtime")
    if options["read-only"] and options["read-only-tmpfs"]:
        taken = {mount.get("Target") for mount in host.get("Mounts") or ()}
        taken |= {one.split(":")[1] for one in host.get("Binds") or ()} | set(host.get("Tmpfs") or ())
        for place in ("/run", "/tmp", "/var/tmp"):
            if place not in taken:
                host["Tmpfs"] = {**(host.get("Tmpfs") or {}), place: "rw,nosuid,nodev"}
    return request


def bind(request: dict[str, Any], source: str, target: str, options: str = "ro") -> None:
    host = request["HostConfig"]
    host["Binds"] = [*(host.get("Binds") or ()), f"{source}:{target}:{options}"]


def variable(request: dict[str, Any], name: str, value: str, *, weak: bool = False) -> None:
    """Set a variable of the container; a weak one only where there is none of that name."""
    known = request.get("Env") or []
    if not weak or not any(one.partition("=")[0] == name for one in known):
        request["Env"] = [*known, f"{name}={value}"]


# -- one with its unit --


def own_cgroup() -> str:
    """The unit's cgroup, as a path below the hierarchy; this process steps aside there. CommandError outside of one."""
    path = cgroup_files.in_listing(cgroup_files.text("/proc/self", "cgroup"))
    if not path or path == "/" or not path.endswith((".service", "/teu-unit")):
        raise CommandError("teu-unit is started by systemd, for a declared container: see teu-containers(7)")
    path = path.removesuffix("/teu-unit")
    aside = f"{cgroup_files.place() or cgroup_files.HYBRID}{path}/teu-unit"
    try:
        os.makedirs(aside, exist_ok=True)
        with open(aside + "/cgroup.procs", "wb", 0) as file:
            file.write(b"0")
    except OSError as error:
        raise CommandError(
            f"cannot use the unit's cgroup {path}: {error.strerror}: it must have Delegate=yes"
        ) from None
    return path


def runtime_folder(unit: str) -> str:
    """The unit's own folder in /run, empty."""
    if not unit or "/" in unit or unit.startswith("."):
        raise CommandError("teu-unit needs --unit=UNIT")
    folder = f"{FOLDER}/{unit}"
    forget(folder)
    os.makedirs(FOLDER, 0o700, exist_ok=True)
    os.mkdir(folder, 0o700)
    return folder


def forget(folder: str) -> None:
    """Remove a unit's folder; it is flat but for secrets/."""
    for place in (folder + SECRETS, folder + "/run", folder):
        try:
            for name in os.listdir(place):
                path = f"{place}/{name}"
                if not os.path.isdir(path):
                    os.unlink(path)
            os.rmdir(place)
        except (FileNotFoundError, NotADirectoryError):
            pass


class Secret:
    """One --secret."""

    def __init__(self, text: str) -> None:
        self.name, *options = text.split(",")
        fields = {"type": "mount", "target": "", "uid": "0", "gid": "0", "mode": "0444"}
        for option in options:
            key, equals, value = option.partition("=")
            if key not in fields or not equals:
                raise ValueError(f"--secret={text}: {option} is no option of a secret")
            fields[key] = value
        if fields["type"] not in ("mount", "env"):
            raise ValueError(f"--secret={text}: a secret has the type mount or env")
        self.variable = fields["target"] or self.name if fields["type"] == "env" else ""
        target = fields["target"] or self.name
        self.target = target if target.startswith("/") else f"{SECRETS}/{target}"
        self.mode = int(fields["mode"], 8)
        self.uid, self.gid = int(fields["uid"]), int(fields["gid"])


def add_secrets(request: dict[str, Any], values: list[str], folder: str) -> None:
    """Credentials of the unit, as variables and in files that the container sees."""
    source = os.environ.get("CREDENTIALS_DIRECTORY", "")
    there = set(os.listdir(source)) if source else set()
    wanted = [Secret(value) for value in values]
    named = {secret.name for secret in wanted}
    wanted += [Secret(name) for name in sorted(there - named)]
    inside = folder + SECRETS
    for number, secret in enumerate(wanted):
        if secret.name not in there:
            raise CommandError(
                f"the unit has no credential {secret.name}: give LoadCredential={secret.name}:PATH in [Service], or put"
                " it into /etc/credstore"
            )
        with open(f"{source}/{secret.name}", "rb", 0) as file:
            content = file.read()
        if secret.variable:
            variable(request, secret.variable, os.fsdecode(content))
            continue
        os.makedirs(inside, 0o755, exist_ok=True)
        own = secret.target.rpartition("/")[0] == SECRETS
        place = f"{inside}/{secret.target.rpartition('/')[2]}" if own else f"{folder}/secret-{number}"
        put(place, content, secret)
        if not own:
            bind(request, place, secret.target)
    if os.path.isdir(inside):
        bind(request, inside, SECRETS)
        variable(request, "CREDENTIALS_DIRECTORY", SECRETS)


def put(path: str, content: bytes, secret: Secret) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
        os.fchown(fd, secret.uid, secret.gid)
        os.fchmod(fd, secret.mode)
    finally:
        os.close(fd)


def add_descriptors(request: dict[str, Any]) -> None:
    """Sockets of the unit's .socket units: say where teu-runc finds them. They are closed here after the start."""
    environment = os.environ
    count = environment.get("LISTEN_FDS", "0")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or count == "0":
        return
    with open("/proc/self/stat", "rb", 0) as file:
        began = file.read().rpartition(b")")[2].split()[19].decode("ascii", "replace")
    annotations = request["HostConfig"].setdefault("Annotations", {})
    annotations[DESCRIPTORS] = f"{os.getpid()}:{began}:{count}"
    if environment.get("LISTEN_FDNAMES"):
        variable(request, "LISTEN_FDNAMES", environment["LISTEN_FDNAMES"])


def add_environment(request: dict[str, Any], options: Options) -> None:
    for name, value in os.environ.items():
        wanted = options["env-host"] or (options["http-proxy"] and name.upper() in PROXIES)
        if wanted and name not in PRIVATE:
            variable(request, name, value, weak=True)


# -- images --


class Puller:
    """Pulls images, and asks systemd for more time while it gets on."""

    def __init__(self, cli: Cli, options: Options) -> None:
        self.cli = cli
        self.options = options

    def pull(self, image: str) -> None:
        """Pull an image, and again for as often as --retry says. CommandError or APIError, that of the last attempt."""
        import time  # 0.3 ms, and only where something is pulled

        for attempt in range(max(0, self.options["retry"]), -1, -1):
            try:
                self._pull(image)
                return
            except (APIError, CommandError) as error:
                if not attempt or (isinstance(error, APIError) and error.status in (400, 404)):
                    raise
                self.cli.warn(f"{error}; trying again")
            time.sleep(self.options["retry-delay"] / 1e9)

    def _pull(self, image: str) -> None:
        import time  # as above

        from teu.cli.config import registry_of  # it is loaded already
        from teu.cli.registry import check_reference, split_tag  # 0.9 ms, as above

        check_reference(image)
        repository, tag = split_tag(image)
        if "@" in image:
            repository, _, tag = image.partition("@")
            repository = split_tag(repository)[0]
        every = self.options.get("all-tags")
        query = {"fromImage": repository, "tag": "" if every else tag or "latest", "platform": self.options["platform"]}
        self.cli.warn(f"pulling {image}")
        header = self.header(registry_of(image))
        asked = 0.0
        response = self.cli.client.open("POST", "/images/create", query, headers=header)
        for message in response.messages():
            if message.get("error") or message.get("errorDetail"):
                raise CommandError(str((message.get("errorDetail") or {}).get("message") or message.get("error")))
            if time.monotonic() - asked > PATIENCE_SECONDS:
                asked = time.monotonic()
                notify(f"EXTEND_TIMEOUT_USEC={PATIENCE_USEC}", f"STATUS=Pulling {image}")
        self.cli.client.done(response)

    def header(self, server: str) -> dict[str, str]:
        """The password for a registry: that of --creds or --authfile, else that of root's own file."""
        from teu.cli.config import ConfigFile, auth_header  # it is loaded already

        config = self.cli.config
        creds, file = self.options.get("creds"), self.options.get("authfile")
        if creds or file:
            config = ConfigFile("/nonexistent")
        if creds:
            import binascii  # 0.2 ms, for --creds alone

            config.values = {"auths": {server: {"auth": binascii.b2a_base64(creds.encode(), newline=False).decode()}}}
        elif file:
            try:
                with open(file, "rb", 0) as stream:
                    config.values = jsontext.loads(stream.read())
            except (OSError, ValueError) as error:
                raise CommandError(f"cannot read the passwords in {file}: {error}") from None
        return auth_header(config, server)


def create(cli: Cli, options: Options, request: dict[str, Any]) -> str:
    """Create the container in place of the unit's last one; its id."""
    puller, image, wanted = Puller(cli, options), request["Image"], options["pull"]
    if wanted == "always":
        puller.pull(image)
    elif wanted == "newer":
        try:
            puller.pull(image)
        except (APIError, CommandError) as error:
            cli.warn(f"{error}; the image that is here is taken")
    remove(cli, options["name"], options["unit"])
    query = {"name": options["name"], "platform": options["platform"]}
    try:
        answer = cli.client.call("POST", "/containers/create", query, request)
    except APIError as error:
        if error.status != 404 or "image" not in error.message.lower() or wanted != "missing":
            raise
        puller.pull(image)
        answer = cli.client.call("POST", "/containers/create", query, request)
    for warning in answer.get("Warnings") or ():
        cli.warn("WARNING: " + warning)
    return str(answer["Id"])


def remove(cli: Cli, name: str, unit: str) -> None:
    """Remove the container that an earlier run of the unit has left. CommandError if the name is another's."""
    try:
        found = cli.client.get(f"/containers/{name}/json")
        if (found["Config"].get("Labels") or {}).get(LABEL) != unit:
            raise CommandError(f"the name {name} is taken by a container that is not of {unit}: remove or rename that")
        cli.client.call("DELETE", "/containers/" + found["Id"], {"force": True, "v": True})
    except APIError as error:
        if error.status not in (404, 409):  # it is not there, or just being removed
            raise


# -- commands --


def container(cli: Cli, options: Options, operands: list[str]) -> int:
    """Run a container as this unit, to its end. The exit code is the container's; 0 if it ended as it was asked to."""
    if not operands:
        raise CommandError("teu-unit container needs an IMAGE")
    request = body(options, operands[0], operands[1:])
    unit = options["unit"]
    folder = runtime_folder(unit)
    request["HostConfig"]["CgroupParent"] = own_cgroup()
    labels = request.setdefault("Labels", {})
    labels[LABEL] = unit
    if options["log-driver"] == "journald":
        show_in_the_journal(request, unit)
    add_environment(request, options)
    add_secrets(request, options["secret"], folder)
    add_descriptors(request)
    watch = Watch(cli, options, folder)
    if options["notify"] == "container":
        watch.listen()
        bind(request, folder + "/notify", NOTIFY_INSIDE, "rw")
        variable(request, "NOTIFY_SOCKET", NOTIFY_INSIDE)
        if os.environ.get("WATCHDOG_USEC"):
            variable(request, "WATCHDOG_USEC", os.environ["WATCHDOG_USEC"])
    try:
        watch.start(create(cli, options, request))
        code = watch.until_the_end()
    except Asked:
        code = 0
    remove(cli, options["name"], unit)
    forget(folder)
    return code


def show_in_the_journal(request: dict[str, Any], unit: str) -> None:
    """Have `journalctl -u UNIT` and `systemctl status UNIT` show the output, though it is teud that writes it: they
    take root's word in this field."""
    request["Labels"]["OBJECT_SYSTEMD_UNIT"] = unit
    options = request["HostConfig"]["LogConfig"]["Config"]
    options["labels"] = ",".join(filter(None, (options.get("labels"), "OBJECT_SYSTEMD_UNIT")))


def pod(cli: Cli, options: Options, operands: list[str]) -> int:
    """Run the container that holds the namespaces of a pod."""
    try:
        cli.client.get(f"/images/{POD_IMAGE}/json")
    except APIError as error:
        if error.status != 404:
            raise
        with open(POD_ARCHIVE, "rb", 0) as file:
            pieces = iter(lambda: file.read(1 << 16), b"")
            response = cli.client.open("POST", "/images/load", {"quiet": True}, pieces, headers=TAR)
            response.read()
            cli.client.done(response)
    options["ipc"] = options["ipc"] or "shareable"
    options["stop-signal"] = "SIGKILL"
    options["log-driver"] = options["log-driver"] or "none"
    return container(cli, options, [POD_IMAGE, "sleep", "2147483647"])


def network(cli: Cli, options: Options, operands: list[str]) -> int:
    try:
        cli.client.get("/networks/" + operands[0])
    except APIError as error:
        if error.status != 404:
            raise
        options["label"].append(f"{LABEL}={options['unit']}")
        load("network create").function(cli, options, operands)
    return 0


def volume(cli: Cli, options: Options, operands: list[str]) -> int:
    name = operands[0]
    try:
        cli.client.get("/volumes/" + name)
        return 0
    except APIError as error:
        if error.status != 404:
            raise
    uid, gid = owner(options["owner"], "user"), owner(options["owner-group"], "group")
    options["label"].append(f"{LABEL}={options['unit']}")
    load("volume create").function(cli, options, operands)
    if (uid, gid) != (-1, -1):
        place = cli.client.get("/volumes/" + name)["Mountpoint"]
        os.chown(place, uid, gid)
    return 0


def owner(name: str, what: str) -> int:
    """The number of a user or group of the host; -1 for none."""
    if not name or name.isdecimal():
        return int(name or -1)
    import grp  # 0.2 ms, for volumes with an owner alone
    import pwd  # as above

    try:
        return pwd.getpwnam(name).pw_uid if what == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise CommandError(f"the host has no {what} {name}") from None


def image(cli: Cli, options: Options, operands: list[str]) -> int:
    Puller(cli, options).pull(operands[0])
    return 0


def remove_what_is_left(cli: Cli, options: Options, operands: list[str]) -> int:
    forget(f"{FOLDER}/{options['unit']}")
    wake()
    try:
        remove(cli, operands[0], options["unit"])
    except CommandError:
        pass  # the name is another's, as the start has told
    return 0


COMMANDS = {
    "container": container,
    "pod": pod,
    "network": network,
    "volume": volume,
    "image": image,
    "remove": remove_what_is_left,
}


def main() -> NoReturn:
    """bin/teu-unit. Exit status: the container's; 125 where it could not be made or started; 2 for a wrong use."""
    code = 125
    try:
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        if name not in COMMANDS:
            raise CommandError(f"usage: teu-unit {{{'|'.join(COMMANDS)}}} ...: see teu-containers(7)", 2)
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
        _signal.signal(_signal.SIGTERM, Asked.stop)
        try:
            options, operands = parse(parse_table(TABLES[name]), sys.argv[2:], interspersed=False)
        except Usage as error:
            raise CommandError(str(error), 2) from None
        # Not the context that root has chosen for its own commands: the daemon of this host, or the unit's variable.
        start = parse(parse_table(GLOBAL_FLAGS), ["--host", os.environ.get("TEU_HOST") or DEFAULT_HOST])[0]
        code = COMMANDS[name](Cli(start), options, operands)
    except CommandError as error:
        code = 125 if error.code == 1 else error.code
        sys.stderr.write(f"{error.text}\n")
    except (APIError, ConnectError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
    except Asked:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
