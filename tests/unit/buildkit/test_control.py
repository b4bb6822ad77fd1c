# SPDX-License-Identifier: Apache-2.0
"""The builder's front door, by gRPC: builds, progress, frontends in clients, the history; over folders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from unit.buildkit.rig import Rig, until
from unit.buildkit.tunnel import client

from teu.api.buildkit import control_pb2, errdefs_pb2, gateway_pb2, ops_pb2, policy_pb2, policysession_pb2
from teu.api.rpc import status_pb2
from teu.api.services.content.v1 import content_pb2
from teu.buildkit.control import builds, requests
from teu.buildkit.core import errors
from teu.buildkit.frontends.bridge import Result
from teu.buildkit.llb import build
from teu.buildkit.session import verifier

BUSYBOX = "docker.io/library/busybox:latest"
IMAGE = control_pb2.Exporter(Type="image", Attrs={"name": "app"})


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def problem(error: grpc.RpcError) -> errors.Error:
    """What the client sees, details included."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return errors.from_status(status_pb2.Status.FromString(value))
    return errors.BY_CODE.get(error.code().value[0], errors.Error)(error.details())


def failed(call: Any) -> errors.Error:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return problem(caught.value)


def vertexes(rig: Rig, ref: str) -> dict[str, Any]:
    return {one.name: one for response in rig.status(ref) for one in response.vertexes}


def asked(ref: str) -> dict[str, Any]:
    return {"metadata": [("buildkit-controlapi-buildid", ref)], "timeout": 60}


# Builds


def test_a_definition_is_built_and_exported(rig: Rig) -> None:
    definition = build.image(BUSYBOX).run(("make",)).root.definition()
    answer = rig.solve("one", Definition=definition, Exporters=[IMAGE]).result()
    assert answer.ExporterResponse["image.name"] == "app"
    ((result, materials),) = rig.results
    assert result.parts[""].snapshot.path.joinpath("etc/hello").read_text() == "made"
    assert materials == [BUSYBOX]
    seen = vertexes(rig, "one")  # it has ended: this is the history's
    assert {"make", "exporting to image"} < set(seen)
    assert all(one.HasField("completed") and not one.error for one in seen.values())


def test_the_built_in_frontend(rig: Rig) -> None:
    answer = rig.solve("one", Frontend="dockerfile.v0", Exporters=[IMAGE]).result()
    assert answer.ExporterResponse["image.name"] == "app"
    result, materials = rig.results[0]
    assert b'"Env":["PATH=/bin"]' in result.metadata["containerimage.config"]
    assert "[2/2] RUN make" in vertexes(rig, "one")
    assert f"{BUSYBOX}@sha256:" + "0" * 64 in materials


def test_the_image_of_docker_s_frontend_is_the_built_in_one(rig: Rig) -> None:
    options = {"source": "docker/dockerfile:1.7"}
    rig.solve("one", Frontend="gateway.v0", FrontendAttrs=options, Exporters=[IMAGE]).result()
    assert rig.results


def test_a_failed_step_says_which_and_where(rig: Rig) -> None:
    rig.__class__.dockerfile = 'FROM busybox\nRUN ["false"]\n'
    try:
        error = failed(rig.solve("one", Frontend="dockerfile.v0").result)
    finally:
        rig.__class__.dockerfile = "FROM busybox\nRUN make\n"
    assert "exit code: 1" in error.message
    source = next(one for one in error.details if isinstance(one, errdefs_pb2.Source))
    assert source.info.filename == "Dockerfile" and source.ranges[0].start.line == 2
    assert any(isinstance(one, errdefs_pb2.Vertex) for one in error.details)
    assert not any(isinstance(one, errdefs_pb2.Frontend) for one in error.details), "the frontend had ended before"
    logs = b"".join(one.msg for response in rig.status("one") for one in response.logs)
    assert logs == b"it does not work\n"


def test_what_fails_in_a_frontend_says_in_which(rig: Rig) -> None:
    error = failed(rig.solve("one", Frontend="dockerfile.v0", FrontendAttrs={"target": "none"}).result)
    assert error.details[-1] == errdefs_pb2.Frontend(name="dockerfile.v0")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"Ref": ""}, "invalid build reference"),
        ({"Ref": "../x"}, "invalid build reference"),
        ({"Ref": "a", "Frontend": "gateway.v0"}, "no source specified for gateway"),
        ({"Ref": "a", "Frontend": "other.v0"}, "invalid frontend"),
        (
            {"Ref": "a", "Frontend": "dockerfile.v0", "Exporters": [control_pb2.Exporter(Type="x")]},
            "could not be found",
        ),
        ({"Ref": "a", "Frontend": "dockerfile.v0", "Entitlements": ["all"]}, "unknown entitlement all"),
        (
            {"Ref": "a", "Frontend": "dockerfile.v0", "Entitlements": ["security.insecure"]},
            "not allowed by build daemon",
        ),
        ({"Ref": "a", "Frontend": "dockerfile.v0", "ProxyNetwork": True}, "no recording proxy"),
        (
            {"Ref": "a", "Frontend": "dockerfile.v0", "CompatibilityVersion": 20},
            "unsupported compatibility-version 20 (supported: [30])",
        ),
        (
            {
                "Ref": "a",
                "Frontend": "dockerfile.v0",
                "Cache": control_pb2.CacheOptions(
                    Exports=[control_pb2.CacheOptionsEntry(Type="local", Attrs={"dest": "x"})] * 2
                ),
            },
            "duplicate cache exports",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(rig: Rig, fields: dict[str, Any], text: str) -> None:
    assert text in failed(lambda: rig.control.Solve(control_pb2.SolveRequest(**fields), timeout=60)).message
    assert rig.solver.idle and not rig.builds.count


def test_results_as_a_version_of_buildkit_makes_them() -> None:
    exporters = [control_pb2.Exporter(Type=kind) for kind in ("image", "local")]
    exporters.append(control_pb2.Exporter(Type="docker", Attrs={"oci-mediatypes": "false"}))
    asked = requests.solve(control_pb2.SolveRequest(Ref="a", CompatibilityVersion=30, Exporters=exporters))
    assert [dict(given) for _, given in asked.exporters] == [
        {"oci-mediatypes": "true", "oci-artifact": "true"},
        {},
        {"oci-mediatypes": "false", "oci-artifact": "false"},
    ]
    assert not requests.solve(control_pb2.SolveRequest(Ref="a", Exporters=exporters[:1])).exporters[0][1]


def test_host_network_needs_the_client_s_consent(rig: Rig) -> None:
    definition = build.image(BUSYBOX).with_(network="host").run(("make",)).root.definition()
    assert "network.host is not allowed" in failed(rig.solve("one", Definition=definition).result).message
    rig.solve("two", Definition=definition, Entitlements=["network.host"]).result()


def test_a_policy_holds_for_definitions_and_for_what_frontends_look_at(rig: Rig) -> None:
    rule = policy_pb2.Rule(action=policy_pb2.DENY, selector=policy_pb2.Selector(identifier="docker-image://*"))
    policy = policy_pb2.Policy(version=1, rules=[rule])
    definition = build.image(BUSYBOX).definition()
    assert "denied by policy" in failed(rig.solve("one", Definition=definition, SourcePolicy=policy).result).message
    assert "denied" in failed(rig.solve("two", Frontend="dockerfile.v0", SourcePolicy=policy).result).message
    assert "source" not in rig.ran[1:]


class Verifying:
    """A client that decides about each source of its build."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []

    def methods(self) -> Any:
        def answer(request: Any, context: Any) -> Any:
            self.asked.append(request)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

        kinds = policysession_pb2.CheckPolicyRequest, policysession_pb2.CheckPolicyResponse
        return {verifier.METHOD: (False, False, *kinds, answer)}


def decided(action: int, **more: Any) -> Any:
    return policysession_pb2.CheckPolicyResponse(
        decision=policysession_pb2.DecisionResponse(action=action, **more),
    )


def wants_to_know(identifier: str, **attributes: str) -> Any:
    source = ops_pb2.SourceOp(identifier=identifier, attrs=attributes)
    return policysession_pb2.CheckPolicyResponse(request=gateway_pb2.ResolveSourceMetaRequest(Source=source))


def test_a_client_decides_about_each_source(rig: Rig) -> None:
    """SourcePolicySession: it is told of a source, may ask what that is now, and allows it or puts another there."""
    pinned = ops_pb2.SourceOp(identifier=f"docker-image://docker.io/library/busybox@sha256:{'4' * 64}")
    client_of = Verifying(
        wants_to_know(f"docker-image://{BUSYBOX}"),
        decided(policy_pb2.CONVERT, update=pinned),
        decided(policy_pb2.ALLOW),
    )
    definition = build.image(BUSYBOX).definition()
    with client(client_of.methods(), rig.sessions, "one"):
        rig.solve("one", Definition=definition, SourcePolicySession="one").result()
    first, second, third = client_of.asked
    assert first.Source.Source.identifier == second.Source.Source.identifier == f"docker-image://{BUSYBOX}"
    assert second.Source.Image.Digest == "sha256:" + "0" * 64 and not first.Source.HasField("Image")
    assert third.Source.Source.identifier == pinned.identifier
    assert pinned.identifier in vertexes(rig, "one")


def test_a_client_that_denies_a_source(rig: Rig) -> None:
    why = [policysession_pb2.DenyMessage(message="it is not signed")]
    client_of = Verifying(decided(policy_pb2.DENY, denyMessages=why))
    with client(client_of.methods(), rig.sessions, "one"):
        for ref, fields in (("one", {"Definition": build.image(BUSYBOX).definition()}), ("two", {})):
            fields = fields or {"Frontend": "dockerfile.v0"}
            error = failed(rig.solve(ref, SourcePolicySession="one", **fields).result)
            assert "not allowed by policy: action DENY" in error.message and isinstance(error, errors.PermissionDenied)
            (detail,) = [one for one in error.details if isinstance(one, policysession_pb2.DecisionResponse)]
            assert [one.message for one in detail.denyMessages] == ["it is not signed"]
    assert not rig.ran


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (policysession_pb2.CheckPolicyResponse(), "no decision in policy response"),
        (decided(policy_pb2.CONVERT), "convert action requires updated source"),
        (decided(7), "action 7"),
        (wants_to_know("docker-image://docker.io/library/other:latest"), "different source identifier"),
        (wants_to_know(f"docker-image://{BUSYBOX}", a="b"), "different source attrs"),
        (wants_to_know(f"docker-image://{BUSYBOX}"), "too many policy requests"),
        (decided(policy_pb2.CONVERT, update=ops_pb2.SourceOp(identifier=f"docker-image://{BUSYBOX}")), "too many"),
    ],
)
def test_a_client_whose_word_about_a_source_is_none(rig: Rig, answer: Any, words: str) -> None:
    client_of = Verifying(answer)
    with client(client_of.methods(), rig.sessions, "one"):
        asked = rig.solve("one", Definition=build.image(BUSYBOX).definition(), SourcePolicySession="one")
        assert words in failed(asked.result).message
    assert not rig.ran and len(client_of.asked) < 50


def test_a_client_that_cannot_be_asked_about_sources(rig: Rig) -> None:
    """It wanted to be asked: nothing is built without its word."""
    definition = build.image(BUSYBOX).definition()
    with client({}, rig.sessions, "one"):
        failed(rig.solve("one", Definition=definition, SourcePolicySession="one").result)
    failed(rig.solve("two", Definition=definition, SourcePolicySession="gone").result)
    assert not rig.ran


def test_one_reference_is_one_build(rig: Rig) -> None:
    running = rig.solve("one", Definition=build.image(BUSYBOX).run(("sleep",)).root.definition())
    until(lambda: "sleep" in rig.ran)
    again = failed(rig.solve("one", Definition=build.image(BUSYBOX).definition()).result)
    assert isinstance(again, errors.AlreadyExists)
    running.cancel()
    until(lambda: rig.solver.idle)


def test_a_client_that_vanishes_ends_its_build_within_a_second(rig: Rig) -> None:
    running = rig.solve("one", Definition=build.image(BUSYBOX).run(("sleep",)).root.definition())
    until(lambda: "sleep" in rig.ran)
    begun = time.monotonic()
    running.cancel()
    until(lambda: rig.solver.idle and not rig.builds.count)
    assert time.monotonic() - begun < 1.0
    assert rig.history.record("one").error.code == errors.Cancelled.code


def test_a_build_that_others_wait_for_goes_on(rig: Rig) -> None:
    definition = build.image(BUSYBOX).run(("sleep",)).root.definition()
    first, second = rig.solve("one", Definition=definition), rig.solve("two", Definition=definition)
    until(lambda: "sleep" in rig.ran and rig.builds.count == 2)
    time.sleep(0.1)
    first.cancel()
    time.sleep(0.3)
    assert rig.ran.count("sleep") == 1 and not second.done()
    second.cancel()
    until(lambda: rig.solver.idle)


def test_progress_may_be_asked_for_first(rig: Rig) -> None:
    responses = rig.control.Status(control_pb2.StatusRequest(Ref="one"), timeout=60)
    time.sleep(0.2)
    rig.solve("one", Definition=build.image(BUSYBOX).definition()).result()
    names = [one.name for response in responses for one in response.vertexes]
    assert f"docker-image://{BUSYBOX}" in names
    assert dict(responses.initial_metadata())["buildkit-current-timestamp"].endswith("Z")


def test_a_build_that_ends_at_once_is_not_missed(rig: Rig) -> None:
    """Who asks for its progress may be woken when it has ended already."""
    definition = build.image(BUSYBOX).definition()
    for number in range(20):
        for internal in (False, True):
            ref = f"b{number}-{internal}"
            responses = rig.control.Status(control_pb2.StatusRequest(Ref=ref), timeout=3)
            rig.solve(ref, Definition=definition, Internal=internal).result()
            assert [one.name for response in responses for one in response.vertexes]
    rig.solve("late", Definition=definition, Internal=True).result()
    assert vertexes(rig, "late")


# Frontends in clients


def test_a_frontend_in_the_client(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As buildx does it: a Solve that waits, and the bridge meanwhile."""
    solving = rig.solve("one", Exporters=[IMAGE])
    pong = rig.bridge.Ping(gateway_pb2.PingRequest(), **asked("one"))
    caps = {cap.ID for cap in pong.FrontendAPICaps if cap.Enabled}
    assert {"proto.refarray", "gateway.solve.evaluate", "source.metaresolver"} < caps
    assert {cap.ID for cap in pong.LLBCaps} > {"file.base", "exec.mount.cache"}
    assert pong.Workers[0].ID == "w1"
    request = gateway_pb2.SolveRequest(
        Frontend="dockerfile.v0", allowResultReturn=True, allowResultArrayRef=True, Evaluate=True
    )
    answer = rig.bridge.Solve(request, **asked("one"))
    ref = answer.result.ref
    assert ref.id and getattr(ref.definition if hasattr(ref, "definition") else getattr(ref, "def"), "def")
    read = gateway_pb2.ReadFileRequest(Ref=ref.id, FilePath="/etc/hello")
    assert rig.bridge.ReadFile(read, **asked("one")).Data == b"made"
    listed = rig.bridge.ReadDir(
        gateway_pb2.ReadDirRequest(Ref=ref.id, DirPath="etc", IncludePattern="h*"), **asked("one")
    )
    assert [entry.path for entry in listed.entries] == ["hello"]
    stat = rig.bridge.StatFile(gateway_pb2.StatFileRequest(Ref=ref.id, Path="/etc"), **asked("one")).stat
    assert stat.path == "etc" and stat.mode & 1 << 31
    missing = gateway_pb2.ReadFileRequest(Ref=ref.id, FilePath="/etc/nothing")
    assert "no such file" in failed(lambda: rig.bridge.ReadFile(missing, **asked("one"))).message
    assert not solving.done()
    rig.bridge.Return(gateway_pb2.ReturnRequest(result=answer.result), **asked("one"))
    assert solving.result().ExporterResponse["image.name"] == "app"
    assert rig.history.record("one").Frontend == "dockerfile.v0"
    monkeypatch.setattr(builds, "FIND_SECONDS", 0.2)
    assert isinstance(failed(lambda: rig.bridge.Ping(gateway_pb2.PingRequest(), **asked("one"))), errors.NotFound)


def test_the_error_of_a_frontend_in_the_client(rig: Rig) -> None:
    solving = rig.solve("one")
    told = errors.to_status(errors.Unimplemented("not today", [errdefs_pb2.Subrequest(name="x")]))
    rig.bridge.Return(gateway_pb2.ReturnRequest(error=told), **asked("one"))
    error = failed(solving.result)
    assert isinstance(error, errors.Unimplemented) and error.message == "not today"
    assert isinstance(error.details[0], errdefs_pb2.Subrequest)


def test_results_are_known_to_their_build_alone(rig: Rig) -> None:
    solvings = [rig.solve(ref) for ref in ("one", "two")]
    request = gateway_pb2.SolveRequest(Definition=build.image(BUSYBOX).definition(), allowResultReturn=True)
    request.allowResultArrayRef = True
    ref = rig.bridge.Solve(request, **asked("one")).result.ref.id
    other = failed(lambda: rig.bridge.Evaluate(gateway_pb2.EvaluateRequest(Ref=ref), **asked("two")))
    assert isinstance(other, errors.NotFound)
    assert "no buildid found" in failed(lambda: rig.bridge.Ping(gateway_pb2.PingRequest(), timeout=60)).message
    for one in solvings:
        one.cancel()
    until(lambda: not rig.builds.count)


def test_a_build_whose_history_cannot_be_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as it ends, and is not shown as one under way for ever."""

    def broken(*arguments: Any) -> Any:
        raise ValueError("this cannot be packed")

    monkeypatch.setattr(builds, "pack_logs", broken)
    definition = build.image(BUSYBOX).run(("false",)).root.definition()
    assert failed(rig.solve("one", Definition=definition).result).message == "exit code: 1"
    request = control_pb2.BuildHistoryRequest(EarlyExit=True)
    assert not list(rig.control.ListenBuildHistory(request, timeout=60))


def test_the_empty_result_is_nothing_to_look_into(rig: Rig) -> None:
    """As with BuildKit: it has no reference, and no reference is none that there is; to return it is fine."""
    solving = rig.solve("one")
    request = gateway_pb2.SolveRequest(allowResultReturn=True, allowResultArrayRef=True, Evaluate=True)
    answer = rig.bridge.Solve(request, **asked("one"))
    assert answer.result.WhichOneof("result") == "ref" and not answer.result.ref.id
    for method, message in (
        ("Evaluate", gateway_pb2.EvaluateRequest()),
        ("ReadFile", gateway_pb2.ReadFileRequest(FilePath="/x")),
        ("ReadDir", gateway_pb2.ReadDirRequest(DirPath="/")),
        ("StatFile", gateway_pb2.StatFileRequest(Path="/")),
    ):
        call = getattr(rig.bridge, method)
        error = failed(lambda call=call, message=message: call(message, **asked("one")))
        assert error.message == "no such ref: " and not error.details
    rig.bridge.Return(gateway_pb2.ReturnRequest(result=answer.result), **asked("one"))
    solving.result()


@pytest.mark.parametrize("when", ["Solve", "Evaluate", "ReadFile"])
def test_a_failed_step_tells_its_frontend_all_details(rig: Rig, when: str) -> None:
    solving = rig.solve("one")
    definition = build.image(BUSYBOX).run(("false",)).root.definition()
    request = gateway_pb2.SolveRequest(Definition=definition, allowResultReturn=True, Evaluate=when == "Solve")
    request.allowResultArrayRef = True
    if when == "Solve":
        error = failed(lambda: rig.bridge.Solve(request, **asked("one")))
    else:
        ref = rig.bridge.Solve(request, **asked("one")).result.ref.id
        call = getattr(rig.bridge, when)
        message = gateway_pb2.ReadFileRequest if when == "ReadFile" else gateway_pb2.EvaluateRequest
        error = failed(lambda: call(message(Ref=ref), **asked("one")))
    assert error.message == "exit code: 1"
    exited, vertex, *places, solve = error.details
    assert exited == gateway_pb2.ExitMessage(Code=1)
    assert isinstance(vertex, errdefs_pb2.Vertex) and vertex.digest.startswith("sha256:")
    assert all(isinstance(one, errdefs_pb2.Source) for one in places)
    assert isinstance(solve, errdefs_pb2.Solve) and list(solve.op.exec.meta.args) == ["false"]
    # What the step stood on and what it has made of it may be mounted, by the frontend of this build.
    (given,), (made,) = solve.inputIDs, solve.mountIDs
    assert given != made
    for identifier in (given, made):
        container = gateway_pb2.NewContainerRequest(ContainerID=identifier)
        container.Mounts.add(dest="/", resultID=identifier)
        rig.bridge.NewContainer(container, **asked("one"))
    assert [one.id for (one,) in rig.placed] == [given, made]
    other = gateway_pb2.NewContainerRequest(ContainerID="other")
    other.Mounts.add(dest="/", resultID="none")
    assert "return reference none not found" in failed(lambda: rig.bridge.NewContainer(other, **asked("one"))).message
    solving.cancel()
    until(lambda: not rig.builds.count)
    until(rig.solver.close)
    assert [one.held for one in rig.left] == [0, 0]


def test_paths_stay_in_the_result(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    solving = rig.solve("one")
    request = gateway_pb2.SolveRequest(Definition=build.image(BUSYBOX).definition(), allowResultReturn=True)
    request.allowResultArrayRef = True
    request.Evaluate = True
    ref = rig.bridge.Solve(request, **asked("one")).result.ref.id
    root = next(tmp_path.glob("*/etc")).parent
    (root / "out").symlink_to(f"../../../../../../{tmp_path}/secret")
    (root / "absolute").symlink_to(tmp_path / "secret")
    (root / "pipe").unlink(missing_ok=True)
    import os

    os.mkfifo(root / "pipe")
    for path in ("/../secret", "out", "absolute", f"../../..{tmp_path}/secret"):
        asked_for = gateway_pb2.ReadFileRequest(Ref=ref, FilePath=path)
        assert isinstance(
            failed(lambda asked_for=asked_for: rig.bridge.ReadFile(asked_for, **asked("one"))), errors.NotFound
        )
    pipe = gateway_pb2.ReadFileRequest(Ref=ref, FilePath="pipe")
    assert "not a regular file" in failed(lambda: rig.bridge.ReadFile(pipe, **asked("one"))).message
    solving.cancel()
    until(lambda: not rig.builds.count)


def test_what_a_source_is(rig: Rig) -> None:
    solving = rig.solve("one")
    asked_for = gateway_pb2.ResolveImageConfigRequest(Ref=BUSYBOX, LogName="looking")
    answer = rig.bridge.ResolveImageConfig(asked_for, **asked("one"))
    assert answer.Ref == BUSYBOX and answer.Digest == "sha256:" + "0" * 64 and b"PATH" in answer.Config
    meta = gateway_pb2.ResolveSourceMetaRequest(Source=ops_pb2.SourceOp(identifier="docker-image://" + BUSYBOX))
    assert rig.bridge.ResolveSourceMeta(meta, **asked("one")).Image.Digest
    rig.bridge.Warn(gateway_pb2.WarnRequest(digest="sha256:x", short=b"careful", level=1), **asked("one"))
    rig.bridge.Return(gateway_pb2.ReturnRequest(result=gateway_pb2.Result(refDeprecated="")), **asked("one"))
    solving.result()
    assert "looking" in vertexes(rig, "one")
    warnings = [one for response in rig.status("one") for one in response.warnings]
    assert [one.short for one in warnings] == [b"careful"]


# Frontends in images


def test_a_frontend_in_an_image(rig: Rig) -> None:
    seen: list[Any] = []

    def run(bridge: Any, program: Any, request: Any) -> Result:
        seen.append((program, request))
        from teu.buildkit.frontends.bridge import Request

        return Result({"": bridge.solve(Request(build.image(BUSYBOX).run(("make",)).root.definition())).trees[""]})

    rig.run_frontend = run
    options = {"source": "example.com/frontend:1", "target": "x"}
    rig.solve("one", Frontend="gateway.v0", FrontendAttrs=options, Exporters=[IMAGE]).result()
    program, _ = seen[0]
    assert program.name == "example.com/frontend:1@sha256:" + "0" * 64
    assert program.args == ("/run",) and "BUILDKIT_FRONTEND_OPT_1=target=x" in program.env
    assert any(entry.startswith("BUILDKIT_WORKERS=[") for entry in program.env)
    assert rig.results
    needs = {**options, "frontend.caps": "moby.buildkit.frontend.contexts"}
    error = failed(rig.solve("two", Frontend="gateway.v0", FrontendAttrs=needs).result)
    assert "unsupported frontend capability moby.buildkit.frontend.contexts" in error.message
    assert error.details[-1] == errdefs_pb2.Frontend(name="gateway.v0", source="example.com/frontend:1")


def test_a_hostile_frontend_may_not_use_regular_expressions_nor_go_on_for_ever(rig: Rig) -> None:
    from teu.buildkit.frontends.bridge import Request

    kinds: list[str] = []

    def run(bridge: Any, program: Any, request: Any) -> Result:
        selector = policy_pb2.Selector(identifier="(a+)+$", match_type=policy_pb2.REGEX)
        policy = policy_pb2.Policy(rules=[policy_pb2.Rule(action=policy_pb2.DENY, selector=selector)])
        with pytest.raises(errors.InvalidArgument, match="regular expressions"):
            bridge.solve(Request(build.image(BUSYBOX).definition(), policies=[policy]))
        kinds.append("asked")
        return bridge.solve(Request(None, "gateway.v0", {"source": "example.com/frontend:1"}))  # type: ignore[no-any-return]

    rig.run_frontend = run
    options = {"source": "example.com/frontend:1"}
    error = failed(rig.solve("one", Frontend="gateway.v0", FrontendAttrs=options).result)
    assert "frontends one upon the other" in error.message and len(kinds) == 8


def test_exporters_that_a_session_adds(rig: Rig) -> None:
    told: list[Any] = []

    class Added:
        def find(self, session: str, metadata: Any) -> Any:
            told.append((session, sorted(metadata)))
            return [("image", {"name": "added"})]

        def finish(self, session: str, values: Any) -> None:
            told.append((session, dict(values)))

    object.__setattr__(rig.rooms, "session_exporters", Added())
    definition = build.image(BUSYBOX).definition()
    rig.solve("quiet", Definition=definition, Session="s").result()
    assert not told
    answer = rig.solve("one", Definition=definition, Session="s", EnableSessionExporter=True).result()
    assert answer.ExporterResponse["image.name"] == "added"
    assert told == [("s", []), ("s", {"image.name": "added"})]


# The rest


def test_workers_and_the_cache(rig: Rig) -> None:
    workers = rig.control.ListWorkers(control_pb2.ListWorkersRequest(filter=["labels.a==b"]), timeout=60)
    assert workers.record[0].BuildkitVersion.version.startswith("v0.")
    assert not rig.control.ListWorkers(control_pb2.ListWorkersRequest(filter=["id==x"]), timeout=60).record
    assert rig.control.Info(control_pb2.InfoRequest(), timeout=60).buildkitVersion.dockerfileVersion
    usage = rig.control.DiskUsage(control_pb2.DiskUsageRequest(), timeout=60)
    assert [one.ID for one in usage.record] == ["one"]
    gone = list(rig.control.Prune(control_pb2.PruneRequest(all=True), timeout=60))
    assert [(one.ID, one.Size) for one in gone] == [("one", 10)]
    bad = control_pb2.PruneRequest(filter=["=="])
    assert isinstance(failed(lambda: list(rig.control.Prune(bad, timeout=60))), errors.InvalidArgument)


def test_the_history(rig: Rig) -> None:
    listener = rig.control.ListenBuildHistory(control_pb2.BuildHistoryRequest(), timeout=60)
    until(lambda: rig.history._listeners)
    definition = build.image(BUSYBOX).definition()
    rig.solve("good", Definition=definition, Exporters=[IMAGE]).result()
    failed(rig.solve("bad", Frontend="nothing.v0").result)
    rig.solve("quiet", Definition=definition, Internal=True).result()
    events = [next(listener) for _ in range(4)]
    assert [(event.type, event.record.Ref) for event in events] == [(0, "good"), (1, "good"), (0, "bad"), (1, "bad")]
    listener.cancel()
    good, bad = events[1].record, events[3].record
    assert good.numTotalSteps == 2 and good.numCompletedSteps == 2 and good.ExporterResponse["image.name"] == "app"
    assert good.Result.Results[0].digest == "sha256:" + "1" * 64
    assert bad.error.message and bad.externalError.digest
    kept = good.Result.Attestations[0]
    assert kept.annotations["in-toto.io/predicate-type"].startswith("https://slsa.dev/provenance/")
    assert b'"buildType"' in rig.history.blob(kept.digest).data
    read = rig.channel.unary_stream(
        "/containerd.services.content.v1.Content/Read",
        request_serializer=content_pb2.ReadContentRequest.SerializeToString,
        response_deserializer=content_pb2.ReadContentResponse.FromString,
    )
    data = b"".join(
        one.data for one in read(content_pb2.ReadContentRequest(digest=bad.externalError.digest), timeout=60)
    )
    assert status_pb2.Status.FromString(data).message == bad.error.message
    asked_for = control_pb2.BuildHistoryRequest(EarlyExit=True, Filter=["status==error"])
    assert [event.record.Ref for event in rig.control.ListenBuildHistory(asked_for, timeout=60)] == ["bad"]
    rig.control.UpdateBuildHistory(control_pb2.UpdateBuildHistoryRequest(Ref="bad", Delete=True), timeout=60)
    gone = control_pb2.UpdateBuildHistoryRequest(Ref="bad", Pinned=True)
    assert isinstance(failed(lambda: rig.control.UpdateBuildHistory(gone, timeout=60)), errors.NotFound)


def test_when_the_builder_stops_its_builds_end(rig: Rig) -> None:
    running = rig.solve("one", Definition=build.image(BUSYBOX).run(("sleep",)).root.definition())
    waiting = rig.solve("two")
    until(lambda: "sleep" in rig.ran and rig.builds.count == 2)
    assert rig.activity.idle_seconds() == 0.0
    rig.builds.stop()
    assert isinstance(failed(running.result), errors.Cancelled)
    assert isinstance(failed(waiting.result), errors.Cancelled)
    assert rig.builds.wait(5)
    assert "shutting down" in failed(rig.solve("three", Frontend="dockerfile.v0").result).message
    until(lambda: rig.activity.idle_seconds() > 0)
