# SPDX-License-Identifier: Apache-2.0
"""The filter language (teu.oci.filters) with the errors of this daemon."""

from __future__ import annotations

from collections.abc import Iterable

from teu.containerd.core.errors import InvalidArgument
from teu.oci import filters
from teu.oci.filters import Adaptor, Filter, in_map, present

__all__ = ["Adaptor", "Filter", "in_map", "parse", "parse_all", "present"]


def parse(text: str) -> Filter:
    """One filter; InvalidArgument shows where it went wrong."""
    try:
        return filters.parse(text)
    except filters.FilterError as error:
        raise InvalidArgument(str(error)) from None


def parse_all(texts: Iterable[str]) -> Filter:
    """The filter that holds when any of `texts` does, or always without any."""
    try:
        return filters.parse_all(texts)
    except filters.FilterError as error:
        raise InvalidArgument(str(error)) from None
