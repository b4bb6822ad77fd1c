# SPDX-License-Identifier: Apache-2.0
"""Networks: ls, create, rm, connect, disconnect."""

from __future__ import annotations

from teu.cli import table
from teu.cli.command import Cli, Command
from teu.cli.errors import APIError, CommandError
from teu.cli.options import Options, filters, key_values, split_csv
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RAW = ("network_id ID", "name Name", "driver Driver", "scope Scope")
HEADINGS = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "IPv6": "IPV6",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
}


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts `net2` before `net10`."""
    parts: list[tuple[int, int, str]] = []
    word = ""
    for letter in text:
        if word and letter.isdecimal() != word[0].isdecimal():
            parts.append((0, int(word), "") if word.isdecimal() else (1, 0, word))
            word = ""
        word += letter
    parts.append((0, int(word), "") if word.isdecimal() else (1, 0, word))
    return parts


def created_at(text: str) -> str:
    try:
        seconds, nano = units.parse_time(text)
    except ValueError:
        return text
    return units.local_time(seconds, nano)


def list_networks(cli: Cli, options: Options, operands: list[str]) -> int:
    whole = options["no-trunc"]
    found = cli.client.get("/networks", {"filters": filters(options["filter"]) or None})
    found.sort(key=lambda network: natural_key(network["Name"]))
    view = {
        "ID": lambda n: n["Id"] if whole else n["Id"][:12],
        "Name": lambda n: n["Name"],
        "Driver": lambda n: n["Driver"],
        "Scope": lambda n: n["Scope"],
        "IPv6": lambda n: "true" if n.get("EnableIPv6") else "false",
        "Internal": lambda n: "true" if n.get("Internal") else "false",
        "Labels": lambda n: table.labels_text(n.get("Labels")),
        "LabelMap": lambda n: n.get("Labels") or {},
        "CreatedAt": lambda n: created_at(n.get("Created", "")),
    }
    form = options["format"] or ("" if options["quiet"] else cli.setting("networksFormat") or "")
    quiet = "ID" if options["quiet"] else ""
    table.print_list(found, view, HEADINGS, ["ID", "Name", "Driver", "Scope"], form, quiet=quiet, raw=RAW)
    return 0


def address_pools(options: Options) -> list[dict[str, Any]]:
    """--subnet, --ip-range, --gateway and --aux-address as IPAM pools."""
    subnets, ranges, gateways = (
        [part for value in options[name] for part in value.split(",")] for name in ("subnet", "ip-range", "gateway")
    )
    if len(ranges) > len(subnets) or len(gateways) > len(subnets):
        raise CommandError("every ip-range or gateway must have a corresponding subnet")
    pools = Pools(subnets)
    for text in ranges:
        pool = pools.owner(text, "range")
        if "IPRange" in pool:
            raise CommandError(f"cannot configure multiple ranges ({text}, {pool['IPRange']}) on the same subnet")
        pool["IPRange"] = text
    for text in gateways:
        pool = pools.owner(text, "gateway")
        if "Gateway" in pool:
            raise CommandError(f"cannot configure multiple gateways ({text}, {pool['Gateway']}) for the same subnet")
        pool["Gateway"] = text
    for key, address in key_values(options["aux-address"]).items():
        pools.owner(address, "aux-address").setdefault("AuxiliaryAddresses", {})[key] = address
    return list(pools.by_subnet.values())


class Pools:
    """The IPAM pools of some subnets, which must not overlap."""

    def __init__(self, subnets: list[str]) -> None:
        import ipaddress  # 4 ms, which of the commands here only create needs

        self.by_subnet: dict[str, dict[str, Any]] = {}
        self.networks: dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network] = {}
        self.interface = ipaddress.ip_interface
        for text in subnets:
            self.by_subnet[text] = {"Subnet": text}
            try:
                network = ipaddress.ip_network(text, strict=False)
            except ValueError:
                continue  # the daemon says what is wrong with it
            if any(other.version == network.version and other.overlaps(network) for other in self.networks.values()):
                raise CommandError("multiple overlapping subnet configuration is not supported")
            self.networks[text] = network

    def owner(self, address: str, what: str) -> dict[str, Any]:
        """The pool that an address, or a range, is in."""
        try:
            start = self.interface(address).ip
        except ValueError:
            raise CommandError(f"invalid address: {address}") from None
        for text, network in self.networks.items():
            if start in network:
                return self.by_subnet[text]
        raise CommandError(f"no matching subnet for {what} {address}")


def create(cli: Cli, options: Options, operands: list[str]) -> int:
    if options["config-only"] and "driver" in options.changed:
        raise CommandError("the --config-only and --driver options cannot be used together")
    body: dict[str, Any] = {
        "Name": operands[0],
        "CheckDuplicate": True,
        "Driver": options["driver"],
        "Options": key_values(options["opt"]),
        "IPAM": {
            "Driver": options["ipam-driver"],
            "Config": address_pools(options),
            "Options": key_values(options["ipam-opt"]),
        },
        "Internal": options["internal"],
        "Attachable": options["attachable"],
        "Ingress": options["ingress"],
        "Scope": options["scope"],
        "ConfigOnly": options["config-only"],
        "Labels": key_values(options["label"]),
    }
    # What is not said is for the daemon's default-network-opts to say.
    for name, key in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if name in options.changed:
            body[key] = options[name]
    if options["config-from"]:
        body["ConfigFrom"] = {"Network": options["config-from"]}
    answer = cli.client.call("POST", "/networks/create", None, body)
    if answer.get("Warning"):
        cli.warn("WARNING: " + answer["Warning"])
    cli.print(answer["Id"])
    return 0


def remove(cli: Cli, options: Options, operands: list[str]) -> int:
    status = 0
    for name in operands:
        try:
            cli.client.call("DELETE", "/networks/" + name)
        except APIError as error:
            if options["force"] and error.status == 404:
                continue
            cli.warn(str(error))
            status = 1
        else:
            cli.print(name)
    if status:
        cli.warn(f"exit status {status}")
    return status


def connect(cli: Cli, options: Options, operands: list[str]) -> int:
    endpoint: dict[str, Any] = {}
    addresses = {
        "IPv4Address": options["ip"],
        "IPv6Address": options["ip6"],
        "LinkLocalIPs": [part for value in options["link-local-ip"] for part in value.split(",")],
    }
    addresses = {key: value for key, value in addresses.items() if value}
    if addresses:
        endpoint["IPAMConfig"] = addresses
    if options["link"]:
        endpoint["Links"] = options["link"]
    if options["alias"]:
        endpoint["Aliases"] = [part for value in options["alias"] for part in value.split(",")]
    if options["driver-opt"]:
        # Fields of a list, as all "strings" are: a comma within one is in double quotes.
        endpoint["DriverOpts"] = key_values([part for value in options["driver-opt"] for part in split_csv(value)])
    if options["gw-priority"]:
        endpoint["GwPriority"] = options["gw-priority"]
    body = {"Container": operands[1], "EndpointConfig": endpoint}
    cli.client.call("POST", f"/networks/{operands[0]}/connect", None, body)
    return 0


def disconnect(cli: Cli, options: Options, operands: list[str]) -> int:
    body = {"Container": operands[1], "Force": options["force"]}
    cli.client.call("POST", f"/networks/{operands[0]}/disconnect", None, body)
    return 0


COMMANDS = {
    "network ls": Command(
        list_networks,
        "[OPTIONS]",
        0,
        0,
        """
-f --filter    filter  Show what fits, KEY=VALUE (dangling, driver, id, label, name, scope, type)
   --format    string  `table`, `table TEMPLATE`, `json` or a Go template
   --no-trunc  bool    Do not shorten anything
-q --quiet     bool    Show only the IDs
""",
    ),
    "network create": Command(
        create,
        "[OPTIONS] NETWORK",
        1,
        1,
        """
   --attachable   bool     Let single containers attach (swarm)
   --aux-address  map      Address that is taken already, NAME=ADDRESS
   --config-from  string   Copy the configuration of this network
   --config-only  bool     Make only a configuration for other networks
-d --driver       string=bridge  Driver of the network
   --gateway      strings  Address of the gateway in the subnet
   --ingress      bool     Make the routing mesh's network (swarm)
   --internal     bool     No way to the outside
   --ip-range     strings  Give addresses from this part of the subnet
   --ipam-driver  string=default  Driver that gives addresses
   --ipam-opt     map      Set an option of that driver, KEY=VALUE
   --ipv4         bool=true  Give IPv4 addresses
   --ipv6         bool     Give IPv6 addresses too
   --label        list     Attach a label, KEY=VALUE
-o --opt          map      Set an option of the driver, KEY=VALUE
   --scope        string   Scope of the network
   --subnet       strings  The network's addresses, as 10.1.0.0/16
""",
    ),
    "network rm": Command(
        remove, "NETWORK [NETWORK...]", 1, None, "-f --force  bool  An unknown network is no failure"
    ),
    "network connect": Command(
        connect,
        "[OPTIONS] NETWORK CONTAINER",
        2,
        2,
        """
   --alias          strings  Further name on the network
   --driver-opt     strings  Set an option of the driver, KEY=VALUE
   --gw-priority    int      The network with the highest number gives the default gateway
   --ip             string   IPv4 address
   --ip6            string   IPv6 address
   --link           list     Make another container known, NAME[:ALIAS]
   --link-local-ip  strings  Further link-local address
""",
    ),
    "network disconnect": Command(
        disconnect,
        "[OPTIONS] NETWORK CONTAINER",
        2,
        2,
        "-f --force  bool  Even where the container is not sound",
    ),
}
