# SPDX-License-Identifier: Apache-2.0
"""Digests of trees: what counts and what does not, what is selected, what is read again, and what stays inside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from teu.buildkit.cache.contenthash import NOTHING, NotInTree, Selection, TooManyLinks, Tree

Root = tuple[Path, int]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    top = tmp_path / "root"
    top.mkdir()
    os.chmod(top, 0o755)
    descriptor = os.open(top, os.O_PATH | os.O_DIRECTORY)
    yield top, descriptor
    os.close(descriptor)


def put(path: Path, text: str = "", mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.chmod(path, mode)


def digest(root: Root, path: str = "/", **how: object) -> str:
    return Tree().checksum(root[1], Selection(path, **how))  # type: ignore[arg-type]


def context(root: Root) -> None:
    put(root[0] / "a.go", "package a")
    put(root[0] / "src/b.go", "package b")
    put(root[0] / "src/deep/c.go", "package c")
    put(root[0] / "src/deep/c.txt", "text")
    put(root[0] / "docs/README.md", "read")
    os.symlink("src/deep", root[0] / "link")
    os.symlink("/docs/README.md", root[0] / "absolute")
    os.symlink("../../../../etc/passwd", root[0] / "out")


@pytest.mark.skipif(os.getuid() != 0, reason="the digest has the owner in it")
def test_the_digest_of_a_file_is_the_one_of_buildkit(root: Root) -> None:
    """Of its own test's file: content data0, mode 0644, root's."""
    put(root[0] / "foo", "data0")
    assert digest(root, "foo") == "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b"


def test_times_and_names_of_the_root_do_not_count(root: Root) -> None:
    context(root)
    before = digest(root)
    for path in [*root[0].rglob("*"), root[0]]:
        os.utime(path, (1, 1), follow_symlinks=False)
    assert digest(root) == before


def test_what_counts(root: Root) -> None:
    context(root)
    seen = {digest(root)}

    def differs(why: str) -> None:
        now = digest(root)
        assert now not in seen, why
        seen.add(now)

    os.chmod(root[0] / "a.go", 0o755)
    differs("mode")
    os.chmod(root[0] / "a.go", 0o4755)
    differs("set-user-id")
    put(root[0] / "a.go", "package x")
    differs("content")
    os.rename(root[0] / "a.go", root[0] / "z.go")
    differs("name")
    os.unlink(root[0] / "link")
    os.symlink("src", root[0] / "link")
    differs("target")
    os.chmod(root[0] / "src", 0o700)
    differs("mode of a folder")
    os.mkdir(root[0] / "empty")
    differs("an empty folder")
    os.mkfifo(root[0] / "pipe")
    differs("a pipe")
    os.chmod(root[0], 0o711)
    differs("mode of the root")
    if os.getuid() == 0:
        os.chown(root[0] / "z.go", 5, 6)
        differs("owner")
        os.lchown(root[0] / "link", 5, 6)
        differs("owner of a link")
        os.setxattr(root[0] / "z.go", "trusted.x", b"1")
        differs("extended attributes")


@pytest.mark.skipif(os.getuid() != 0, reason="needs devices")
def test_numbers_of_devices_count_and_nobody_opens_them(root: Root) -> None:
    try:
        os.mknod(root[0] / "device", 0o20600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no devices can be made here")
    before = digest(root)
    os.unlink(root[0] / "device")
    os.mknod(root[0] / "device", 0o20600, os.makedev(1, 5))
    assert digest(root) != before


def test_hard_links_are_files(root: Root) -> None:
    put(root[0] / "a", "same")
    os.link(root[0] / "a", root[0] / "b")
    before = digest(root)
    os.unlink(root[0] / "b")
    put(root[0] / "b", "same")
    assert digest(root) == before


def test_a_bare_root_does_not_count(root: Root) -> None:
    context(root)
    before = Tree(bare=True).checksum(root[1], Selection())
    os.chmod(root[0], 0o700)
    assert Tree(bare=True).checksum(root[1], Selection()) == before


def test_paths_go_through_links_inside_the_root(root: Root) -> None:
    context(root)
    assert digest(root, "link/c.go") == digest(root, "src/deep/c.go")
    assert digest(root, "absolute", follow=True) == digest(root, "docs/README.md")
    assert digest(root, "absolute") != digest(root, "docs/README.md")
    assert digest(root, "../../src/../src/b.go") == digest(root, "src/b.go")
    assert digest(root, "/") == digest(root, "")


def test_links_do_not_lead_out(root: Root) -> None:
    context(root)
    with pytest.raises(NotInTree):
        digest(root, "out", follow=True)
    put(root[0] / "etc/passwd", "inside")
    assert digest(root, "out", follow=True) == digest(root, "etc/passwd")


def test_links_in_circles(root: Root) -> None:
    os.symlink("b", root[0] / "a")
    os.symlink("a", root[0] / "b")
    with pytest.raises(TooManyLinks):
        digest(root, "a", follow=True)
    assert digest(root, "a") != digest(root, "b")


def test_what_is_not_there(root: Root) -> None:
    context(root)
    for path in ("none", "src/none/x", "a.go/x"):
        with pytest.raises(NotInTree):
            digest(root, path)
    assert digest(root, "none*", wildcard=True) == NOTHING


def test_only_what_is_selected_counts(root: Root) -> None:
    context(root)
    go = digest(root, "/", include=("**/*.go",))
    wild = digest(root, "/src/*", wildcard=True)
    text = digest(root, "/", exclude=("**/*.go",))
    put(root[0] / "src/deep/c.txt", "other")
    assert digest(root, "/", include=("**/*.go",)) == go
    assert digest(root, "/src/*", wildcard=True) != wild
    assert digest(root, "/", exclude=("**/*.go",)) != text
    wild, text = digest(root, "/src/*", wildcard=True), digest(root, "/", exclude=("**/*.go",))
    put(root[0] / "a.go", "package other")
    assert digest(root, "/", include=("**/*.go",)) != go
    assert digest(root, "/src/*", wildcard=True) == wild
    assert digest(root, "/", exclude=("**/*.go",)) == text


def test_an_exception_brings_its_folders(root: Root) -> None:
    context(root)
    before = digest(root, "/", include=("src/deep/c.go",))
    os.chmod(root[0] / "src", 0o700)
    assert digest(root, "/", include=("src/deep/c.go",)) != before
    assert digest(root, "/", exclude=("src", "!src/b.go")) != digest(root, "/", exclude=("src",))


def test_one_file_by_a_wildcard_is_that_file(root: Root) -> None:
    context(root)
    assert digest(root, "/src/b.go", wildcard=True) == digest(root, "/src/b.go")
    assert digest(root, "/src/b.*", wildcard=True) != digest(root, "/src/b.go")


def test_a_wildcard_follows_links_before_it_and_the_last(root: Root) -> None:
    context(root)
    assert digest(root, "/link/*.go", wildcard=True) == digest(root, "/src/deep/*.go", wildcard=True)
    before = digest(root, "/abs*", wildcard=True, follow=True)
    put(root[0] / "docs/README.md", "other")
    assert digest(root, "/abs*", wildcard=True, follow=True) != before


def test_required_paths(root: Root) -> None:
    context(root)
    assert digest(root, "/", include=("src",), required=("/src",))
    with pytest.raises(NotInTree):
        digest(root, "/", include=("src",), required=("/docs",))


def test_a_mount_or_swap_meanwhile_shows_nothing_of_the_host(root: Root, tmp_path: Path) -> None:
    """The tree knows a folder; somebody puts a link there before it is read."""
    context(root)
    tree = Tree()
    tree.checksum(root[1], Selection("/a.go"))  # the root is listed: src is a folder
    shutil.rmtree(root[0] / "src")
    secret = tmp_path / "secret"
    put(secret / "b.go", "secret")
    os.symlink(secret, root[0] / "src")
    with pytest.raises(OSError):
        tree.checksum(root[1], Selection("/src"))
    with pytest.raises(OSError):
        tree.checksum(root[1], Selection("/src/b.go"))


def test_only_what_changed_is_read_again(root: Root) -> None:
    for number in range(20):
        put(root[0] / f"folder{number % 4}/file{number}", str(number))
    tree = Tree()
    tree.checksum(root[1], Selection())
    assert tree.hashed == 20 + 4 + 1
    assert tree.checksum(root[1], Selection()) == digest(root) and tree.hashed == 25
    put(root[0] / "folder1/file1", "new")
    tree.changed("folder1/file1")
    assert tree.checksum(root[1], Selection()) == digest(root)
    assert tree.hashed == 26
    os.unlink(root[0] / "folder2/file2")
    put(root[0] / "folder2/new/file", "x")
    tree.changed("/folder2/file2")
    tree.changed("/folder2/new")
    assert tree.checksum(root[1], Selection()) == digest(root)
    assert tree.hashed == 28


def test_it_is_kept(root: Root) -> None:
    context(root)
    tree = Tree()
    whole = tree.checksum(root[1], Selection())
    again = Tree.load(tree.dump())
    assert again.checksum(root[1], Selection()) == whole and again.hashed == 0
    assert again.checksum(root[1], Selection("/link/c.go")) == digest(root, "src/deep/c.go")
    for cut in range(0, len(tree.dump()) - 1, 7):
        with pytest.raises(ValueError):
            Tree.load(tree.dump()[:cut])
    bare = Tree.load(Tree(bare=True).dump())
    assert bare.checksum(root[1], Selection()) == Tree(bare=True).checksum(root[1], Selection())


def test_what_is_made_of_a_tree_knows_what_that_knew(root: Root) -> None:
    context(root)
    tree = Tree()
    before = tree.checksum(root[1], Selection())
    fork = tree.fork()
    put(root[0] / "a.go", "changed")
    fork.changed("a.go")
    assert fork.checksum(root[1], Selection()) == digest(root) != before
    assert fork.hashed == 1
    assert tree.checksum(root[1], Selection()) == before


def test_random_changes_that_are_told(root: Root) -> None:
    """A tree that is told what happened says always what a fresh one says."""
    random = Random(7)
    tree = Tree()
    names = ["a", "b", "c"]
    for _ in range(150):
        parts = [random.choice(names) for _ in range(random.randint(1, 4))]
        path = root[0].joinpath(*parts)
        what = random.randint(0, 3)
        for above in list(path.relative_to(root[0]).parents)[-2::-1]:
            place = root[0] / above
            if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
                place.unlink()
                tree.changed(str(above))
            if not place.exists():
                place.mkdir()
                tree.changed(str(above))
        if os.path.lexists(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if what == 0:
            path.mkdir()
        elif what == 1:
            path.symlink_to(random.choice(names))
        elif what == 2:
            put(path, str(random.random()))
        tree.changed("/".join(parts))
        if random.random() < 0.5:
            chosen = random.choice([Selection(), Selection("/a*", wildcard=True), Selection("/", include=("**/b",))])
            assert tree.checksum(root[1], chosen) == Tree().checksum(root[1], chosen)


def test_several_selections_are_one_key(root: Root) -> None:
    context(root)
    tree = Tree()
    both = tree.checksums(root[1], [Selection("/a.go"), Selection("/docs")])
    assert both != tree.checksums(root[1], [Selection("/docs"), Selection("/a.go")])
    assert tree.checksums(root[1], []) == tree.checksums(root[1], [Selection()])


def test_a_tower_of_folders_costs_no_stack_and_no_path(root: Root) -> None:
    here = os.open(root[0], os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(600):
        os.mkdir("folder-in-folder", dir_fd=here)
        below = os.open("folder-in-folder", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    tree = Tree()
    whole = tree.checksum(root[1], Selection())
    assert Tree.load(tree.dump()).checksum(root[1], Selection()) == whole
    deep = "folder-in-folder/" * 600 + "file"
    assert Tree().checksum(root[1], Selection(deep)) == tree.checksum(root[1], Selection(deep))
    assert Tree().checksum(root[1], Selection("/", include=("**/file",)))
    from teu.linux.trees import remove_tree

    remove_tree(str(root[0] / "folder-in-folder"))
