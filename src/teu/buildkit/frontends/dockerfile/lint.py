# SPDX-License-Identifier: Apache-2.0
"""The build checks: rules that warn of what is legal in a Dockerfile and likely wrong.

Names and addresses are those of Docker's published list, since users skip rules by name: `# check=skip=NAME;error=true`
at the top or in a comment above one instruction, or the build argument BUILDKIT_DOCKERFILE_CHECK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Location
from teu.buildkit.frontends.dockerfile.parser import DirectiveParser
from teu.buildkit.frontends.dockerfile.shell import quoted

_URL = "https://docs.docker.com/go/dockerfile/rule/"


@dataclass(frozen=True)
class Rule:
    """A check: its name, what it asks for, where it is explained. An experimental one runs only when asked for."""

    name: str
    description: str
    page: str
    experimental: bool = False

    @property
    def url(self) -> str:
        return f"{_URL}{self.page}/" if self.page else ""


STAGE_NAME_CASING = Rule("StageNameCasing", "Stage names should be lowercase", "stage-name-casing")
FROM_AS_CASING = Rule("FromAsCasing", "The 'as' keyword should match the case of the 'from' keyword", "from-as-casing")
NO_EMPTY_CONTINUATION = Rule(
    "NoEmptyContinuation", "Empty continuation lines will become errors in a future release", "no-empty-continuation"
)
CONSISTENT_INSTRUCTION_CASING = Rule(
    "ConsistentInstructionCasing",
    "All commands within the Dockerfile should use the same casing (either upper or lower)",
    "consistent-instruction-casing",
)
DUPLICATE_STAGE_NAME = Rule("DuplicateStageName", "Stage names should be unique", "duplicate-stage-name")
RESERVED_STAGE_NAME = Rule(
    "ReservedStageName", "Reserved words should not be used as stage names", "reserved-stage-name"
)
JSON_ARGS_RECOMMENDED = Rule(
    "JSONArgsRecommended",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
    "json-args-recommended",
)
MAINTAINER_DEPRECATED = Rule(
    "MaintainerDeprecated",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
    "maintainer-deprecated",
)
UNDEFINED_ARG_IN_FROM = Rule("UndefinedArgInFrom", "FROM command must use declared ARGs", "undefined-arg-in-from")
WORKDIR_RELATIVE_PATH = Rule(
    "WorkdirRelativePath",
    "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base "
    "image changes",
    "workdir-relative-path",
)
UNDEFINED_VAR = Rule("UndefinedVar", "Variables should be defined before their use", "undefined-var")
MULTIPLE_INSTRUCTIONS_DISALLOWED = Rule(
    "MultipleInstructionsDisallowed",
    "Multiple instructions of the same type should not be used in the same stage",
    "multiple-instructions-disallowed",
)
LEGACY_KEY_VALUE_FORMAT = Rule(
    "LegacyKeyValueFormat",
    "Legacy key/value format with whitespace separator should not be used",
    "legacy-key-value-format",
)
INVALID_BASE_IMAGE_PLATFORM = Rule(
    "InvalidBaseImagePlatform", "Base image platform does not match expected target platform", ""
)
REDUNDANT_TARGET_PLATFORM = Rule(
    "RedundantTargetPlatform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
    "redundant-target-platform",
)
SECRETS_USED_IN_ARG_OR_ENV = Rule(
    "SecretsUsedInArgOrEnv",
    "Sensitive data should not be used in the ARG or ENV commands",
    "secrets-used-in-arg-or-env",
)
INVALID_DEFAULT_ARG_IN_FROM = Rule(
    "InvalidDefaultArgInFrom",
    "Default value for global ARG results in an empty or invalid base image name",
    "invalid-default-arg-in-from",
)
FROM_PLATFORM_FLAG_CONST_DISALLOWED = Rule(
    "FromPlatformFlagConstDisallowed",
    "FROM --platform flag should not use a constant value",
    "from-platform-flag-const-disallowed",
)
COPY_IGNORED_FILE = Rule(
    "CopyIgnoredFile", "Attempting to Copy file that is excluded by .dockerignore", "copy-ignored-file"
)
INVALID_DEFINITION_DESCRIPTION = Rule(
    "InvalidDefinitionDescription",
    "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not "
    "intended to be a description comment, add an empty line or comment between the instruction and the comment.",
    "invalid-definition-description",
    experimental=True,
)
EXPOSE_PROTO_CASING = Rule(
    "ExposeProtoCasing", "Protocol in EXPOSE instruction should be lowercase", "expose-proto-casing"
)
EXPOSE_INVALID_FORMAT = Rule(
    "ExposeInvalidFormat",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future "
    "release",
    "expose-invalid-format",
)


@dataclass(frozen=True)
class Warning_:
    """One finding: the rule, what it found in words, and where."""

    rule: Rule
    text: str
    location: Location

    @property
    def short(self) -> str:
        """The line that a build's progress shows."""
        line = self.location[0].start if self.location else 0
        return f"{self.rule.name}: {self.text}" + (f" (line {line})" if line > 0 else "")


Warn = Callable[[Warning_], None]


@dataclass(frozen=True)
class Config:
    """Which rules run, and whether a finding ends the build."""

    skip_all: bool = False
    skip: frozenset[str] = frozenset()
    experimental_all: bool = False
    experimental: frozenset[str] = frozenset()
    error: bool = False


def parse_config(text: str) -> Config:
    """skip=all|A,B;error=true;experimental=all|C. Raises DockerfileError."""
    config = Config()
    if not text.strip():
        return config
    for part in text.strip().split(";", 2):
        key, separator, value = part.partition("=")
        if not separator:
            raise DockerfileError(f"invalid check option {quoted(part)}")
        key, value = key.strip(), value.strip()
        names = frozenset(name.strip() for name in value.split(","))
        if key == "skip":
            config = replace(config, skip_all=True) if value == "all" else replace(config, skip=names)
        elif key == "experimental":
            everything = value == "all"
            config = replace(config, experimental_all=True) if everything else replace(config, experimental=names)
        elif key == "error":
            state = boolean(value)
            if state is None:
                raise DockerfileError(
                    f'failed to parse check option {quoted(part)}: strconv.ParseBool: parsing "{value}": invalid syntax'
                )
            config = replace(config, error=state)
        else:
            raise DockerfileError(f"invalid check option {quoted(key)}")
    return config


def boolean(text: str) -> bool | None:
    """What Go's strconv.ParseBool takes; None for anything else."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    return None


@dataclass
class Linter:
    """Runs rules: gives findings to `warn`, and remembers their names."""

    config: Config = field(default_factory=Config)
    warn: Warn | None = None
    called: list[str] = field(default_factory=list)

    def run(self, rule: Rule, location: Location, text: str) -> None:
        if self.warn is None:
            return
        if rule.experimental:
            if not self.config.experimental_all and rule.name not in self.config.experimental:
                return
        elif self.config.skip_all or rule.name in self.config.skip:
            return
        self.called.append(rule.name)
        self.warn(Warning_(rule, text, location))

    def under(self, comments: Iterable[str]) -> Linter:
        """The linter for an instruction with these comments above it, one of which may be `check=...`."""
        for comment in comments:
            found = DirectiveParser("").read(comment)
            if found is None or found.name != "check":
                continue
            try:
                other = parse_config(found.value.partition(" ")[0])
            except DockerfileError:
                return self
            config = replace(
                self.config,
                skip_all=self.config.skip_all or other.skip_all,
                skip=self.config.skip | other.skip,
                experimental_all=self.config.experimental_all or other.experimental_all,
                experimental=self.config.experimental | other.experimental,
            )
            return Linter(config, self.warn, self.called)
        return self

    def check(self) -> None:
        """Raise DockerfileError where findings are errors and there are some."""
        if self.config.error and self.called:
            names = list(dict.fromkeys(self.called))
            raise DockerfileError(f"lint violation found for rules: {', '.join(names)}")
