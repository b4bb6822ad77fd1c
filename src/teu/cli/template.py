# SPDX-License-Identifier: Apache-2.0
"""The template of a list, as `--format` gives it. Called by `table`, `events`, `diskusage`."""

from __future__ import annotations

from teu.cli.errors import CommandError
from teu.oci.template import Template, TemplateError, located


def compile_template(text: str) -> Template:
    """Parse the template of a list; an error ends the command as docker's users know it."""
    try:
        return Template(text)
    except TemplateError as error:
        raise CommandError(f"failed to parse template: {located(error)}") from None
