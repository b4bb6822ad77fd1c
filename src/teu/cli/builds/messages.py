# SPDX-License-Identifier: Apache-2.0
"""BuildKit's messages as tables for the codec (teu.ttrpc.codec), by their full names; what nobody needs here is left
out.

A map of anything but texts is a list of its entries, as it is on the wire. tests/unit/cli compares all of it with
protos/.
"""

from __future__ import annotations

from teu.ttrpc import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.ttrpc.codec import Message, Tables

CONTROL = "moby.buildkit.v1."
POLICY = "moby.buildkit.v1.sourcepolicy."
BRIDGE = "moby.buildkit.v1.frontend."
STAMP = "google.protobuf.Timestamp"
CONTENT = "containerd.services.content.v1."

TABLES: Tables = {
    STAMP: {1: ("seconds", "int64"), 2: ("nanos", "int32")},
    "google.protobuf.Any": {1: ("type_url", "string"), 2: ("value", "bytes")},
    "google.rpc.Status": {1: ("code", "int32"), 2: ("message", "string"), 3: ("details", "*google.protobuf.Any")},
    "pb.Platform": {1: ("Architecture", "string"), 2: ("OS", "string"), 3: ("Variant", "string")},
    "pb.ProgressGroup": {1: ("id", "string"), 2: ("name", "string"), 3: ("weak", "bool")},
    "pb.Position": {1: ("line", "int32"), 2: ("character", "int32")},
    "pb.Range": {1: ("start", "pb.Position"), 2: ("end", "pb.Position")},
    "pb.SourceInfo": {1: ("filename", "string"), 2: ("data", "bytes"), 4: ("language", "string")},
    "errdefs.Source": {1: ("info", "pb.SourceInfo"), 2: ("ranges", "*pb.Range")},
    CONTROL + "SolveRequest": {
        1: ("Ref", "string"),
        3: ("ExporterDeprecated", "string"),
        4: ("ExporterAttrsDeprecated", "map"),
        5: ("Session", "string"),
        6: ("Frontend", "string"),
        7: ("FrontendAttrs", "map"),
        8: ("Cache", CONTROL + "CacheOptions"),
        9: ("Entitlements", "*string"),
        11: ("Internal", "bool"),
        12: ("SourcePolicy", POLICY + "Policy"),
        13: ("Exporters", "*" + CONTROL + "Exporter"),
    },
    POLICY + "Policy": {1: ("version", "int64"), 2: ("rules", "*" + POLICY + "Rule")},
    POLICY + "Rule": {1: ("action", "enum"), 2: ("selector", POLICY + "Selector"), 3: ("updates", POLICY + "Update")},
    POLICY + "Update": {1: ("identifier", "string"), 2: ("attrs", "map")},
    POLICY + "Selector": {
        1: ("identifier", "string"),
        2: ("match_type", "enum"),
        3: ("constraints", "*" + POLICY + "AttrConstraint"),
    },
    POLICY + "AttrConstraint": {1: ("key", "string"), 2: ("value", "string"), 3: ("condition", "enum")},
    CONTROL + "CacheOptions": {
        4: ("Exports", "*" + CONTROL + "CacheOptionsEntry"),
        5: ("Imports", "*" + CONTROL + "CacheOptionsEntry"),
    },
    CONTROL + "CacheOptionsEntry": {1: ("Type", "string"), 2: ("Attrs", "map")},
    CONTROL + "Exporter": {1: ("Type", "string"), 2: ("Attrs", "map")},
    CONTROL + "SolveResponse": {1: ("ExporterResponse", "map")},
    CONTROL + "StatusRequest": {1: ("Ref", "string")},
    CONTROL + "StatusResponse": {
        1: ("vertexes", "*" + CONTROL + "Vertex"),
        2: ("statuses", "*" + CONTROL + "VertexStatus"),
        3: ("logs", "*" + CONTROL + "VertexLog"),
        4: ("warnings", "*" + CONTROL + "VertexWarning"),
    },
    CONTROL + "Vertex": {
        1: ("digest", "string"),
        2: ("inputs", "*string"),
        3: ("name", "string"),
        4: ("cached", "bool"),
        5: ("started", STAMP),
        6: ("completed", STAMP),
        7: ("error", "string"),
        8: ("progressGroup", "pb.ProgressGroup"),
    },
    CONTROL + "VertexStatus": {
        1: ("ID", "string"),
        2: ("vertex", "string"),
        3: ("name", "string"),
        4: ("current", "int64"),
        5: ("total", "int64"),
        6: ("timestamp", STAMP),
        7: ("started", STAMP),
        8: ("completed", STAMP),
    },
    CONTROL + "VertexLog": {
        1: ("vertex", "string"),
        2: ("timestamp", STAMP),
        3: ("stream", "int64"),
        4: ("msg", "bytes"),
    },
    CONTROL + "VertexWarning": {
        1: ("vertex", "string"),
        2: ("level", "int64"),
        3: ("short", "bytes"),
        4: ("detail", "*bytes"),
        5: ("url", "string"),
        6: ("info", "pb.SourceInfo"),
        7: ("ranges", "*pb.Range"),
    },
    CONTROL + "BytesMessage": {1: ("data", "bytes")},
    CONTROL + "DiskUsageRequest": {1: ("filter", "*string")},
    CONTROL + "DiskUsageResponse": {1: ("record", "*" + CONTROL + "UsageRecord")},
    CONTROL + "UsageRecord": {
        1: ("ID", "string"),
        2: ("Mutable", "bool"),
        3: ("InUse", "bool"),
        4: ("Size", "int64"),
        5: ("Parent", "string"),
        6: ("CreatedAt", STAMP),
        7: ("LastUsedAt", STAMP),
        8: ("UsageCount", "int64"),
        9: ("Description", "string"),
        10: ("RecordType", "string"),
        11: ("Shared", "bool"),
        12: ("Parents", "*string"),
    },
    CONTROL + "PruneRequest": {
        1: ("filter", "*string"),
        2: ("all", "bool"),
        3: ("keepDuration", "int64"),
        4: ("reservedSpace", "int64"),
        5: ("maxUsedSpace", "int64"),
        6: ("minFreeSpace", "int64"),
    },
    CONTROL + "ListWorkersRequest": {1: ("filter", "*string")},
    CONTROL + "ListWorkersResponse": {1: ("record", "*" + CONTROL + "types.WorkerRecord")},
    CONTROL + "InfoRequest": {},
    CONTROL + "InfoResponse": {1: ("buildkitVersion", CONTROL + "types.BuildkitVersion")},
    CONTROL + "types.BuildkitVersion": {1: ("package", "string"), 2: ("version", "string"), 3: ("revision", "string")},
    CONTROL + "types.WorkerRecord": {
        1: ("ID", "string"),
        2: ("Labels", "map"),
        3: ("platforms", "*pb.Platform"),
        4: ("GCPolicy", "*" + CONTROL + "types.GCPolicy"),
        5: ("BuildkitVersion", CONTROL + "types.BuildkitVersion"),
        6: ("CDIDevices", "*" + CONTROL + "types.CDIDevice"),
    },
    CONTROL + "types.CDIDevice": {
        1: ("Name", "string"),
        2: ("AutoAllow", "bool"),
        3: ("Annotations", "map"),
        4: ("OnDemand", "bool"),
    },
    CONTROL + "types.GCPolicy": {
        1: ("all", "bool"),
        2: ("keepDuration", "int64"),
        3: ("reservedSpace", "int64"),
        4: ("filters", "*string"),
        5: ("maxUsedSpace", "int64"),
        6: ("minFreeSpace", "int64"),
    },
    CONTROL + "BuildHistoryRequest": {
        1: ("ActiveOnly", "bool"),
        2: ("Ref", "string"),
        3: ("EarlyExit", "bool"),
        4: ("Filter", "*string"),
        5: ("Limit", "int32"),
    },
    CONTROL + "BuildHistoryEvent": {1: ("type", "enum"), 2: ("record", CONTROL + "BuildHistoryRecord")},
    CONTROL + "BuildHistoryRecord": {
        1: ("Ref", "string"),
        2: ("Frontend", "string"),
        3: ("FrontendAttrs", "map"),
        4: ("Exporters", "*" + CONTROL + "Exporter"),
        5: ("error", "google.rpc.Status"),
        6: ("CreatedAt", STAMP),
        7: ("CompletedAt", STAMP),
        8: ("logs", CONTROL + "Descriptor"),
        9: ("ExporterResponse", "map"),
        10: ("Result", CONTROL + "BuildResultInfo"),
        11: ("Results", "*" + CONTROL + "BuildHistoryRecord.ResultsEntry"),
        14: ("pinned", "bool"),
        15: ("numCachedSteps", "int32"),
        16: ("numTotalSteps", "int32"),
        17: ("numCompletedSteps", "int32"),
        18: ("externalError", CONTROL + "Descriptor"),
        19: ("numWarnings", "int32"),
    },
    CONTROL + "BuildHistoryRecord.ResultsEntry": {1: ("key", "string"), 2: ("value", CONTROL + "BuildResultInfo")},
    CONTROL + "BuildResultInfo": {
        1: ("ResultDeprecated", CONTROL + "Descriptor"),
        2: ("Attestations", "*" + CONTROL + "Descriptor"),
        3: ("Results", "*" + CONTROL + "BuildResultInfo.ResultsEntry"),
    },
    CONTROL + "BuildResultInfo.ResultsEntry": {1: ("key", "int64"), 2: ("value", CONTROL + "Descriptor")},
    CONTROL + "Descriptor": {
        1: ("media_type", "string"),
        2: ("digest", "string"),
        3: ("size", "int64"),
        5: ("annotations", "map"),
    },
    CONTROL + "UpdateBuildHistoryRequest": {1: ("Ref", "string"), 2: ("Pinned", "bool"), 3: ("Delete", "bool")},
    BRIDGE + "SolveRequest": {
        2: ("Frontend", "string"),
        3: ("FrontendOpt", "map"),
        5: ("allowResultReturn", "bool"),
        6: ("allowResultArrayRef", "bool"),
        12: ("CacheImports", "*" + BRIDGE + "CacheOptionsEntry"),
    },
    BRIDGE + "CacheOptionsEntry": {1: ("Type", "string"), 2: ("Attrs", "map")},
    BRIDGE + "SolveResponse": {1: ("ref", "string"), 3: ("result", BRIDGE + "Result")},
    BRIDGE + "Result": {10: ("metadata", "*" + BRIDGE + "Result.MetadataEntry")},
    BRIDGE + "Result.MetadataEntry": {1: ("key", "string"), 2: ("value", "bytes")},
    BRIDGE + "PingRequest": {},
    BRIDGE + "PongResponse": {
        1: ("FrontendAPICaps", "*moby.buildkit.v1.apicaps.APICap"),
        2: ("LLBCaps", "*moby.buildkit.v1.apicaps.APICap"),
    },
    "moby.buildkit.v1.apicaps.APICap": {1: ("ID", "string"), 2: ("Enabled", "bool")},
    BRIDGE + "ReturnRequest": {1: ("result", BRIDGE + "Result"), 2: ("error", "google.rpc.Status")},
    "grpc.health.v1.HealthCheckResponse": {1: ("status", "enum")},
    "moby.filesync.v1.CredentialsRequest": {1: ("Host", "string")},
    "moby.filesync.v1.CredentialsResponse": {1: ("Username", "string"), 2: ("Secret", "string")},
    "moby.filesync.v1.FetchTokenRequest": {
        1: ("ClientID", "string"),
        2: ("Host", "string"),
        3: ("Realm", "string"),
        4: ("Service", "string"),
        5: ("Scopes", "*string"),
    },
    "moby.filesync.v1.FetchTokenResponse": {
        1: ("Token", "string"),
        2: ("ExpiresIn", "int64"),
        3: ("IssuedAt", "int64"),
    },
    "moby.filesync.v1.GetTokenAuthorityRequest": {1: ("Host", "string"), 2: ("Salt", "bytes")},
    "moby.filesync.v1.GetTokenAuthorityResponse": {1: ("PublicKey", "bytes")},
    "moby.filesync.v1.VerifyTokenAuthorityRequest": {
        1: ("Host", "string"),
        2: ("Payload", "bytes"),
        3: ("Salt", "bytes"),
    },
    "moby.filesync.v1.VerifyTokenAuthorityResponse": {1: ("Signed", "bytes")},
    "moby.filesync.v1.BytesMessage": {1: ("data", "bytes")},
    "moby.buildkit.secrets.v1.GetSecretRequest": {1: ("ID", "string")},
    "moby.buildkit.secrets.v1.GetSecretResponse": {1: ("data", "bytes")},
    "moby.sshforward.v1.BytesMessage": {1: ("data", "bytes")},
    "moby.sshforward.v1.CheckAgentRequest": {1: ("ID", "string")},
    "moby.upload.v1.BytesMessage": {1: ("data", "bytes")},
    "teu.fsutil.Stat": {
        1: ("path", "bytes"),
        2: ("mode", "uint32"),
        3: ("uid", "uint32"),
        4: ("gid", "uint32"),
        5: ("size", "int64"),
        6: ("modTime", "int64"),
        7: ("linkname", "bytes"),
        8: ("devmajor", "int64"),
        9: ("devminor", "int64"),
        10: ("xattrs", "*teu.fsutil.Stat.XattrsEntry"),
    },
    "teu.fsutil.Stat.XattrsEntry": {1: ("key", "string"), 2: ("value", "bytes")},
    "teu.fsutil.Packet": {
        1: ("type", "enum"),
        2: ("stat", "teu.fsutil.Stat"),
        3: ("ID", "uint32"),
        4: ("data", "bytes"),
    },
    CONTENT + "Info": {
        1: ("digest", "string"),
        2: ("size", "int64"),
        3: ("created_at", STAMP),
        4: ("updated_at", STAMP),
        5: ("labels", "map"),
    },
    CONTENT + "InfoRequest": {1: ("digest", "string")},
    CONTENT + "InfoResponse": {1: ("info", CONTENT + "Info")},
    CONTENT + "UpdateRequest": {1: ("info", CONTENT + "Info")},
    CONTENT + "UpdateResponse": {1: ("info", CONTENT + "Info")},
    CONTENT + "DeleteContentRequest": {1: ("digest", "string")},
    CONTENT + "ReadContentRequest": {1: ("digest", "string"), 2: ("offset", "int64"), 3: ("size", "int64")},
    CONTENT + "ReadContentResponse": {1: ("offset", "int64"), 2: ("data", "bytes")},
    CONTENT + "StatusRequest": {1: ("ref", "string")},
    CONTENT + "AbortRequest": {1: ("ref", "string")},
    CONTENT + "WriteContentRequest": {
        1: ("action", "enum"),
        2: ("ref", "string"),
        3: ("total", "int64"),
        4: ("expected", "string"),
        5: ("offset", "int64"),
        6: ("data", "bytes"),
        7: ("labels", "map"),
    },
    CONTENT + "WriteContentResponse": {
        1: ("action", "enum"),
        2: ("started_at", STAMP),
        3: ("updated_at", STAMP),
        4: ("offset", "int64"),
        5: ("total", "int64"),
        6: ("digest", "string"),
    },
}


def encode(name: str, **fields: Any) -> bytes:
    """A message of that full name; its fields by their own names."""
    return codec.encode_table(TABLES, TABLES[name], fields)


def decode(name: str, data: bytes) -> Message:
    """The fields of a message; ValueError for what is none."""
    return codec.decode_table(TABLES, TABLES[name], data)


def seconds(stamp: Message | None) -> float:
    """A Timestamp as seconds since 1970; 0 where there is none."""
    return stamp["seconds"] + stamp["nanos"] / 1e9 if stamp else 0.0
