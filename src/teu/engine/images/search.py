# SPDX-License-Identifier: Apache-2.0
"""GET /images/search: registries are asked for repositories by words, as docker does it.

That is no part of OCI's distribution-spec: docker.io answers it at index.docker.io, and some others at the same path,
/v1/search. A registry that does not says so with a 404.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.filters import flag_filter
from teu.engine.core.kinds import loads, natural
from teu.engine.images import registries
from teu.oci import distribution

if TYPE_CHECKING:
    from typing import TypedDict

    from teu.config import Settings

    class SearchResult(TypedDict):
        name: str
        description: str
        star_count: int
        is_official: bool
        is_automated: bool


FILTERS = ("is-automated", "is-official", "stars")
DOCKER_IO = "index.docker.io"
LIMIT, LIMIT_MAX = 25, 100
ANSWER_MAX = 4 << 20


def search(settings: Settings, term: str, limit: str, filters: dict[str, list[str]], auth: str) -> list[SearchResult]:
    """Repositories by [HOST/]words, in the registry's order. `limit`: how many, in digits; "" is LIMIT. Raises
    BadRequest, and other EngineErrors where the registry cannot be asked."""
    for name in filters:
        if name not in FILTERS:
            raise BadRequest(f"invalid filter '{name}'")
    official, automated = flag_filter(filters, "is-official"), flag_filter(filters, "is-automated")
    stars = [_number(text, f"invalid filter 'stars={text[:40]}'") for text in filters.get("stars", ())]
    most = _number(limit, f"invalid limit specified: {limit[:40]!r}") if limit else 0
    if most > LIMIT_MAX:
        raise BadRequest(f"limit {most} is outside the range of [1, {LIMIT_MAX}]")
    if automated:
        return []  # nothing is any more, whatever a registry says
    found = _asked(settings, *_split(term), most or LIMIT, auth)
    return [
        one
        for one in found
        if (official is None or one["is_official"] == official) and one["star_count"] >= max(stars, default=0)
    ]


def _number(text: str, wrong: str) -> int:
    value = natural(text)
    if value is None:
        raise BadRequest(wrong)
    return value


def _split(term: str) -> tuple[str, str]:
    """The registry, and what is looked for there."""
    if "://" in term:
        raise BadRequest(f"invalid repository name: repository name ({term[:200]}) should not have a scheme")
    first, slash, rest = term.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost") or first in ("docker.io", DOCKER_IO):
        named = rest if slash and first in ("docker.io", DOCKER_IO) else term
        return DOCKER_IO, named.removeprefix("library/")
    if not registries.DOMAIN.fullmatch(first):
        raise BadRequest(f"invalid repository name: {first[:200]!r} is no registry's address")
    return first, rest


def _asked(settings: Settings, domain: str, words: str, limit: int, auth: str) -> list[SearchResult]:
    path = f"/v1/search?{urlencode({'q': words, 'n': limit})}"
    try:
        with distribution.Registry(domain, registries.credentials(auth), registries.options(settings)) as registry:
            data = registry.request("GET", path).read(ANSWER_MAX)
    except distribution.NotFound:
        raise EngineError(f"{domain} cannot be searched: it answers {path.partition('?')[0]} with status 404") from None
    except distribution.RegistryError as error:
        raise EngineError(str(error)) from None
    try:
        answer = loads(data)
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list):
            raise ValueError("it has no results")
    except ValueError as error:
        raise EngineError(f"the answer of {domain} to a search cannot be read: {error}") from None
    return [_result(one) for one in results if isinstance(one, dict)]


def _result(given: dict[str, object]) -> SearchResult:
    name, description, stars = given.get("name"), given.get("description"), given.get("star_count")
    return {
        "star_count": stars if isinstance(stars, int) else 0,
        "is_official": given.get("is_official") is True,
        "name": name if isinstance(name, str) else "",
        "is_automated": False,
        "description": description if isinstance(description, str) else "",
    }
