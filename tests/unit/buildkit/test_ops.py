# SPDX-License-Identifier: Apache-2.0
"""MergeOp, DiffOp and BuildOp, and modes as chmod has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from folders import Asking, FolderWorker, vertex

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import SCRATCH, Scratch
from teu.buildkit.llb.build import scratch
from teu.buildkit.ops import keys, modes
from teu.buildkit.ops.build import BuildOp
from teu.buildkit.ops.diff import DiffOp
from teu.buildkit.ops.file import FileOp
from teu.buildkit.ops.merge import MergeOp


@pytest.mark.parametrize(
    ("text", "before", "folder", "after"),
    [
        ("755", 0o600, False, 0o755),
        ("04755", 0, False, 0o4755),
        ("u+x", 0o644, False, 0o744),
        ("+x", 0o644, False, 0o755),
        ("a-w", 0o666, False, 0o444),
        ("go=", 0o777, False, 0o700),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o600, True, 0o755),
        ("+X", 0o100, False, 0o111),
        ("g=u,o=g", 0o640, False, 0o666),
        ("u+s,g+s", 0o755, False, 0o6755),
        ("u-s", 0o4755, False, 0o755),
        ("+t", 0o755, True, 0o1755),
        ("ug+w-x", 0o555, False, 0o665),
        ("=r", 0o777, False, 0o444),
    ],
)
def test_modes(text: str, before: int, folder: bool, after: int) -> None:
    assert oct(modes.parse(text)(before, folder)) == oct(after)


@pytest.mark.parametrize("text", ["", "8", "77777", "u", "u+q", "x+u", "u+x,", ",u+x", "٣٧٧", "u=rw go=r", "1" * 2000])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(modes.BadMode):
        modes.parse(text)


def test_merge_and_diff_leave_out_empty_trees(tmp_path: Path) -> None:
    worker: Any = FolderWorker(tmp_path)
    context: Any = Asking()
    one, other = worker.tree(a="1"), worker.tree(b="2")
    merge = pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=number) for number in range(3)]))
    (found,) = MergeOp(vertex(merge, 3), worker).execute(context, [one, Scratch(), other])
    assert found.id == SCRATCH
    assert worker.merged == [("merge", [one, None, other])]
    assert MergeOp(vertex(merge, 3), worker).cache_key(context).digest == keys.digests.of(
        b'{"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1},{"input":2}]}}'
    )
    diff = pb.Op(diff=pb.DiffOp(lower=pb.LowerDiffInput(input=-1), upper=pb.UpperDiffInput(input=0)))
    DiffOp(vertex(diff), worker).execute(context, [one])
    assert worker.merged[-1] == ("diff", None, one)
    assert DiffOp(vertex(diff), worker).cache_key(context).digest == keys.digests.of(
        b'{"Type":"buildkit.diff.v0","Diff":{"lower":{"input":-1},"upper":{}}}'
    )


def test_numbers_that_are_none(tmp_path: Path) -> None:
    worker: Any = FolderWorker(tmp_path)
    context: Any = Asking()
    merge = pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=0), pb.MergeInput(input=7)]))
    diff = pb.Op(diff=pb.DiffOp(lower=pb.LowerDiffInput(input=-3), upper=pb.UpperDiffInput(input=0)))
    for op in (MergeOp(vertex(merge), worker), DiffOp(vertex(diff), worker)):
        with pytest.raises(errors.InvalidArgument, match="invalid input index"):
            op.execute(context, [Scratch()])
    nothing = FileOp(vertex(pb.Op(file=pb.FileOp(actions=[pb.FileAction()]))), worker)
    with pytest.raises(errors.InvalidArgument, match="invalid action type"):
        nothing.cache_key(context)
    with pytest.raises(errors.InvalidArgument, match="invalid action type"):
        nothing.execute(context, [Scratch()])
    assert not worker.live


def test_a_definition_that_a_step_wrote(tmp_path: Path) -> None:
    worker: Any = FolderWorker(tmp_path)
    context: Any = Asking()
    context.answer = Scratch()
    from teu.buildkit.llb.actions import Mkdir

    definition = scratch().file([Mkdir("/a", 0o755)]).definition()
    tree = worker.tree(llb=definition.SerializeToString(), broken=b"\xff\xff")
    os.symlink("/etc/passwd", tree.path / "link")

    def op(name: str) -> BuildOp:
        build = pb.BuildOp(builder=-1, attrs={"llbbuild.filename": name})
        build.inputs["buildkit.llb.definition"].input = 0
        return BuildOp(vertex(pb.Op(build=build)), worker)

    assert op("llb").execute(context, [tree]) == [context.answer]
    assert len(context.graphs) == 1
    for name, words in (("broken", "unmarshal"), ("link", "no such file"), ("none", "no such file")):
        with pytest.raises(errors.Error, match=words):
            op(name).execute(context, [tree])
    with pytest.raises(errors.NotFound):
        op("llb").execute(context, [Scratch()])
    assert len(context.graphs) == 1


def test_a_definition_that_a_step_wrote_gets_no_rights_by_that(tmp_path: Path) -> None:
    worker: Any = FolderWorker(tmp_path)
    context: Any = Asking()
    definition = scratch().with_(network="host").run(("true",)).root.definition()
    tree = worker.tree(llb=definition.SerializeToString())
    build = pb.BuildOp(builder=-1, attrs={"llbbuild.filename": "llb"})
    build.inputs["buildkit.llb.definition"].input = 0
    with pytest.raises(errors.PermissionDenied, match="network.host is not allowed"):
        BuildOp(vertex(pb.Op(build=build)), worker).execute(context, [tree])
    assert not context.graphs
