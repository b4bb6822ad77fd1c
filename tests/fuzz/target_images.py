# SPDX-License-Identifier: Apache-2.0
"""Image documents and registries: manifests, indexes and configurations changed, and a registry with odd statuses,
headers, redirects, short and long bodies, and slow ones."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

from fuzz import apiwire
from fuzz.frame import Run, target

SLOW_SECONDS = 90


@target("image-documents", "pulls of changed manifests, indexes and configurations from a registry that answers oddly")
def fuzz(run: Run) -> None:
    import images

    from fuzz.oddregistry import OddRegistry, documents

    images.need_busybox()
    known = {row["Id"] for row in _images()}

    def clean() -> None:
        for row in _images():
            if row["Id"] not in known:
                apiwire.call("DELETE", f"/images/{urllib.parse.quote(row['Id'])}?force=1")
        apiwire.call("POST", "/images/prune")  # layers that broke off are kept, for a pull that goes on

    def first(each: str) -> bool:
        """What the first container of a boot leaves for those after it."""
        return each.endswith("runtime folder /run/teu/engine/mounts")

    with OddRegistry(run.random) as registry, run.watched(clean=clean, ignore=first):
        while run.going():
            registry.blobs.clear()
            registry.manifests.clear()
            registry.told.clear()
            registry.odd = run.random.choice((0.0, 0.0, 0.15, 0.5))
            repository = f"fuzz{run.random.randrange(3)}"
            offered = documents(run.random, registry, repository)
            name = f"{registry.address}/{repository}"
            form = run.random.randrange(10)
            path = f"/images/create?fromImage={name}&tag=1"
            if form == 0:
                path += "&platform=" + urllib.parse.quote(
                    run.random.choice(("linux/amd64", "linux/arm64/v8", "linux/amd64/v²", "windows"))
                )
            elif form == 1:
                path = f"/distribution/{name}:1/json"
            method = "GET" if form == 1 else "POST"
            run.trying(f"{method} {path}\n{offered}"[:20000])
            try:
                status, body, seconds = apiwire.call(method, path)
            except OSError as error:
                run.finding(f"pull: no answer: {type(error).__name__}: {error}", f"{path}\n{offered}\n{registry.told}")
                continue
            case = f"{method} {path} -> {status}\n{offered}\nodd answers {registry.told}"
            if wrong := apiwire.wrong(status, body):
                run.finding(f"pull: {wrong}"[:300], case)
            if seconds > SLOW_SECONDS:
                run.finding(f"a pull took longer than {SLOW_SECONDS} s", case)
            if status == 200 and method == "POST" and b'"error"' not in body:
                for path in (
                    f"/images/{name}:1/json",
                    f"/images/{name}:1/history",
                    "/images/json?manifests=1",
                    f"/images/{name}:1/get",
                ):
                    status, body, _ = apiwire.call("GET", path)
                    if wrong := "" if path.endswith("get") and status == 200 else apiwire.wrong(status, body):
                        run.finding(f"GET {path.rpartition('/')[2]} of what was pulled: {wrong}"[:300], case)
                status, body, _ = apiwire.call(
                    "POST",
                    "/containers/create?name=fuzz-image",
                    {"Image": f"{name}:1", "HostConfig": {"NetworkMode": "none"}},
                )
                if wrong := apiwire.wrong(status, body):
                    run.finding(f"create of what was pulled: {wrong}"[:300], case)
                apiwire.call("DELETE", "/containers/fuzz-image?force=1&v=1")
            if run.random.random() < 0.3:
                clean()


def _images() -> list[dict[str, Any]]:
    status, body, _ = apiwire.call("GET", "/images/json?all=1")
    assert status == 200, body
    rows: list[dict[str, Any]] = json.loads(body)
    return rows
