# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles of the OCI runtime-spec (`linux.seccomp`) as BPF programs.

`compile` answers the compiled program; teu-runc hands it to the container's last step, which
installs it. libseccomp does the compiling (names and numbers of system calls on every
architecture, the decision tree). It takes about 8 ms for a profile of docker's size, so that each
compiled program is kept, under a hash of its profile, in a directory that only we can write, and
libseccomp is loaded only when a profile is seen for the first time since the boot.

In front of libseccomp's program stands one of our own: a system call newer than any that the
profile knows gets ENOSYS, not the profile's default error, because programs fall back to older
calls on ENOSYS only (glibc's clone3 and faccessat2 are the well-known cases).
"""

from __future__ import annotations

import errno
import marshal
import os
from _blake2 import blake2b
from sys import byteorder

from teu.linux.syscalls import NR_seccomp, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Profile = dict[str, Any]

# Names of the specification and libseccomp's numbers (seccomp.h).
ACTIONS = {
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_TRAP": 0x00030000,
}
OPERATORS = {
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_MASKED_EQ": 7,
    "SCMP_CMP_NE": 1,
}
# Architecture: libseccomp's name, and the kernel's AUDIT_ARCH number (linux/audit.h).
ARCHITECTURES = {
    "SCMP_ARCH_AARCH64": ("aarch64", 0xC00000B7),
    "SCMP_ARCH_ARM": ("arm", 0x40000028),
    "SCMP_ARCH_LOONGARCH64": ("loongarch64", 0xC0000102),
    "SCMP_ARCH_M68K": ("m68k", 0x00000004),
    "SCMP_ARCH_MIPS": ("mips", 0x00000008),
    "SCMP_ARCH_MIPS64": ("mips64", 0x80000008),
    "SCMP_ARCH_MIPS64N32": ("mips64n32", 0xA0000008),
    "SCMP_ARCH_MIPSEL": ("mipsel", 0x40000008),
    "SCMP_ARCH_MIPSEL64": ("mipsel64", 0xC0000008),
    "SCMP_ARCH_MIPSEL64N32": ("mipsel64n32", 0xE0000008),
    "SCMP_ARCH_PARISC": ("parisc", 0x0000000F),
    "SCMP_ARCH_PARISC64": ("parisc64", 0x8000000F),
    "SCMP_ARCH_PPC": ("ppc", 0x00000014),
    "SCMP_ARCH_PPC64": ("ppc64", 0x80000015),
    "SCMP_ARCH_PPC64LE": ("ppc64le", 0xC0000015),
    "SCMP_ARCH_RISCV64": ("riscv64", 0xC00000F3),
    "SCMP_ARCH_S390": ("s390", 0x00000016),
    "SCMP_ARCH_S390X": ("s390x", 0x80000016),
    "SCMP_ARCH_SH": ("sh", 0x4000002A),
    "SCMP_ARCH_SHEB": ("sheb", 0x0000002A),
    "SCMP_ARCH_X32": ("x32", 0xC000003E),
    "SCMP_ARCH_X86": ("x86", 0x40000003),
    "SCMP_ARCH_X86_64": ("x86_64", 0xC000003E),
}
AUDIT_ARCH_X86_64 = 0xC000003E
X32_SYSCALL_BIT = 1 << 30

# seccomp(2)
SECCOMP_FILTER_FLAG_LOG = 1 << 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
# TSYNC is known and needs nothing: the process that installs the filter has one thread.
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_LOG": SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}

EPERM = 1
ENOSYS = 38
ARGUMENTS = 6
# The kernel's BPF_MAXINSNS.
MAX_INSTRUCTIONS = 4096

CACHE = "/run/teu/seccomp"
CACHE_ENTRIES = 64
# Change the number whenever the same profile would compile to another program.
CACHE_MAGIC = b"teu-seccomp-1\n"


class SeccompError(ValueError):
    """A profile cannot be applied. The message is a sentence that names the field."""


def needs_listener(profile: Profile) -> bool:
    """Whether some system call of the profile is to be decided by the listener."""
    return any(call.get("action") == "SCMP_ACT_NOTIFY" for call in profile.get("syscalls") or [])


def flags(profile: Profile) -> int:
    """The flags of seccomp(2). Without `flags`, SPEC_ALLOW, which costs the container no speed."""
    names = profile.get("flags")
    wanted = SECCOMP_FILTER_FLAG_SPEC_ALLOW if names is None else 0
    for name in names or []:
        if name not in FLAGS:
            raise SeccompError(f"linux.seccomp.flags: {name} is not known; known are {', '.join(FLAGS)}")
        wanted |= FLAGS[name]
    if needs_listener(profile):
        wanted |= SECCOMP_FILTER_FLAG_NEW_LISTENER
    elif wanted & SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV:
        # The kernel refuses it without a listener, for which it would have no meaning.
        wanted &= ~SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    return wanted


def kernel_has_flag(name: str) -> bool:
    """Whether this kernel takes a flag: then it is the missing program that it complains of."""
    bits = FLAGS[name]
    if name == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
        bits |= SECCOMP_FILTER_FLAG_NEW_LISTENER
    try:
        syscall("seccomp", NR_seccomp, 1, bits, None)
    except OSError as error:
        return error.errno == errno.EFAULT
    return True


def compile(profile: Profile, cache: str | None = None) -> bytes:
    """The BPF program (struct sock_filter[]) of a profile, from the cache if it was compiled before."""
    directory = cache_directory() if cache is None else cache
    name = cache_name(profile)
    program = read_cached(directory, name) if directory else None
    if program is None:
        program = compile_profile(profile)
        if directory:
            write_cached(directory, name, program)
    return program


# ---- the store of compiled programs ------------------------------------------------------------
#
#   /run/teu/seccomp/            mode 0700, owned by us; gone with the boot, as the kernel's abilities
#     HASH                       CACHE_MAGIC, then the program


def cache_directory() -> str | None:
    """Where this user's programs are kept; None where there is no safe place."""
    if os.geteuid() == 0:
        return CACHE
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/teu-seccomp" if runtime else None


def cache_name(profile: Profile) -> str:
    """A hash over everything that the program depends on."""
    digest = blake2b(CACHE_MAGIC, digest_size=20)
    # Version 2 of the format has no references: equal profiles are equal bytes.
    digest.update(marshal.dumps(profile, 2))
    machine = os.uname()
    digest.update(os.fsencode(f"{machine.machine} {machine.release}"))
    for library in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        try:
            status = os.stat(f"{library}/libseccomp.so.2")
        except OSError:
            continue
        digest.update(os.fsencode(f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"))
        break
    return digest.hexdigest()


def read_cached(directory: str, name: str) -> bytes | None:
    """A kept program; None unless it, and its directory, are beyond doubt ours alone."""
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not is_private(os.fstat(folder)):
            return None
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        except OSError:
            return None
        try:
            status = os.fstat(file)
            if not is_private(status) or status.st_size > len(CACHE_MAGIC) + MAX_INSTRUCTIONS * 8:
                return None
            data = os.read(file, status.st_size + 1)
        finally:
            os.close(file)
    finally:
        os.close(folder)
    program = data[len(CACHE_MAGIC) :]
    if not data.startswith(CACHE_MAGIC) or not program or len(program) % 8:
        return None
    return program


def is_private(status: os.stat_result) -> bool:
    """Whether nobody but this user may have written there."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def write_cached(directory: str, name: str, program: bytes) -> None:
    """Keep a program. Failing to is not an error; it only costs time."""
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    temporary = f".{name}.{os.getpid()}"
    try:
        if not is_private(os.fstat(folder)):
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            os.write(file, CACHE_MAGIC + program)
        finally:
            os.close(file)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        entries = os.listdir(folder)
        if len(entries) > CACHE_ENTRIES:
            # Any entry may go: a profile that is in use is soon stored again.
            for old in sorted(entry for entry in entries if entry != name)[: CACHE_ENTRIES // 2]:
                os.unlink(old, dir_fd=folder)
    except OSError:
        pass
    finally:
        os.close(folder)


# ---- compiling ---------------------------------------------------------------------------------


def action_number(name: str, errno_value: int | None, field: str) -> int:
    """libseccomp's action; in its low half the error (ERRNO) or message (TRACE), by default EPERM."""
    if name not in ACTIONS:
        raise SeccompError(f"{field}: {name} is not an action; known are {', '.join(ACTIONS)}")
    action = ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        action |= (EPERM if errno_value is None else errno_value) & 0xFFFF
    elif errno_value is not None and errno_value != 0:
        raise SeccompError(f"{field}: errnoRet is only for SCMP_ACT_ERRNO and SCMP_ACT_TRACE, not for {name}")
    return action


class _Library:
    """libseccomp by ctypes. Loaded for a profile that has not been compiled since the boot."""

    SCMP_FLTATR_CTL_NNP = 3
    SCMP_FLTATR_CTL_OPTIMIZE = 8
    # Pseudo numbers: a call that an architecture does not have.
    NR_ERROR = -1

    def __init__(self) -> None:
        import ctypes  # 2 ms, for a profile that is not in the cache

        class Argument(ctypes.Structure):
            # struct scmp_arg_cmp
            _fields_ = [
                ("arg", ctypes.c_uint),
                ("op", ctypes.c_int),
                ("datum_a", ctypes.c_uint64),
                ("datum_b", ctypes.c_uint64),
            ]

        try:
            library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        except OSError as error:
            raise SeccompError(
                f"linux.seccomp: libseccomp.so.2 cannot be loaded ({error}): install libseccomp2"
            ) from error
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = [ctypes.c_uint32]
        library.seccomp_release.argtypes = [ctypes.c_void_p]
        library.seccomp_release.restype = None
        library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        library.seccomp_arch_native.restype = ctypes.c_uint32
        library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
        library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
        library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
        library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
        library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(Argument),
        ]
        library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.argument = Argument
        self.call: Any = library


def library_version() -> str | None:
    """libseccomp's version for `features`; None where it is not installed."""
    import ctypes  # 2 ms, for a profile that is not in the cache

    class Version(ctypes.Structure):
        _fields_ = [("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint)]

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_version.restype = ctypes.POINTER(Version)
    version = library.seccomp_version().contents
    return f"{version.major}.{version.minor}.{version.micro}"


def compile_profile(profile: Profile) -> bytes:
    """The whole program of a profile: the ENOSYS part, then libseccomp's."""
    check_notify(profile)
    default_name = profile.get("defaultAction") or ""
    default = action_number(default_name, profile.get("defaultErrnoRet"), "linux.seccomp.defaultAction")
    library = _Library()
    call = library.call
    # ENOSYS as the default gives way to a single different action for a filter of no rules.
    context = call.seccomp_init(default)
    if not context:
        raise SeccompError(f"linux.seccomp.defaultAction: libseccomp does not know {default_name}")
    try:
        architectures = add_architectures(library, context, profile)
        call.seccomp_attr_set(context, library.SCMP_FLTATR_CTL_NNP, 0)
        rules = profile.get("syscalls") or []
        for index, rule in enumerate(rules):
            add_rule(library, context, rule, default, f"linux.seccomp.syscalls[{index}]")
        if sum(len(rule.get("names") or []) for rule in rules) > 32:
            # A binary tree instead of a list: several times faster for each system call.
            call.seccomp_attr_set(context, library.SCMP_FLTATR_CTL_OPTIMIZE, 2)
        program = export(library, context)
    finally:
        call.seccomp_release(context)
    if default_name not in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE") and not (
        default_name == "SCMP_ACT_ERRNO" and profile.get("defaultErrnoRet") == ENOSYS
    ):
        program = newer_calls(last_calls(library, architectures, rules)) + program
    if len(program) // 8 > MAX_INSTRUCTIONS:
        raise SeccompError(
            f"linux.seccomp: the profile compiles to {len(program) // 8} instructions; "
            f"the kernel takes {MAX_INSTRUCTIONS}"
        )
    return program


def check_notify(profile: Profile) -> None:
    """A listener that decides on write(2) could never be handed its descriptor."""
    if profile.get("defaultAction") == "SCMP_ACT_NOTIFY":
        raise SeccompError("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default action")
    for index, rule in enumerate(profile.get("syscalls") or []):
        if rule.get("action") == "SCMP_ACT_NOTIFY":
            for name in ("write", "sendmsg"):
                if name in (rule.get("names") or []):
                    raise SeccompError(
                        f"linux.seccomp.syscalls[{index}]: SCMP_ACT_NOTIFY cannot be used for the {name} syscall, "
                        "by which the listener is handed over"
                    )


def add_architectures(library: _Library, context: int, profile: Profile) -> dict[str, int]:
    """Add the profile's architectures; answers name -> libseccomp token, the native one always in."""
    call = library.call
    native = call.seccomp_arch_native()
    tokens: dict[str, int] = {}
    for name in profile.get("architectures") or []:
        if name not in ARCHITECTURES:
            raise SeccompError(
                f"linux.seccomp.architectures: {name} is not known; known are {', '.join(ARCHITECTURES)}"
            )
        token = call.seccomp_arch_resolve_name(os.fsencode(ARCHITECTURES[name][0]))
        if token == 0:
            raise SeccompError(f"linux.seccomp.architectures: the installed libseccomp does not know {name}")
        if token != native:
            error = -call.seccomp_arch_add(context, token)
            if error == errno.EDOM:
                raise SeccompError(f"linux.seccomp.architectures: {name} has another byte order than this machine")
            if error not in (0, errno.EEXIST):
                raise SeccompError(f"linux.seccomp.architectures: {name}: {os.strerror(error)}")
        tokens[name] = token
    if native not in tokens.values():
        for name, (short, _) in ARCHITECTURES.items():
            if call.seccomp_arch_resolve_name(os.fsencode(short)) == native:
                tokens[name] = native
    return tokens


def add_rule(library: _Library, context: int, rule: Profile, default: int, field: str) -> None:
    """One entry of `syscalls`: the same action and conditions for each of its names."""
    action = action_number(rule.get("action") or "", rule.get("errnoRet"), f"{field}.action")
    if action == default:
        # Redundant; libseccomp would refuse it.
        return
    conditions = []
    indices = []
    for number, argument in enumerate(rule.get("args") or []):
        index = argument.get("index", 0)
        if not 0 <= index < ARGUMENTS:
            raise SeccompError(f"{field}.args[{number}].index: {index} is not in 0 to {ARGUMENTS - 1}")
        if argument.get("op") not in OPERATORS:
            raise SeccompError(
                f"{field}.args[{number}].op: {argument.get('op')} is not known; known are {', '.join(OPERATORS)}"
            )
        value, second = argument.get("value", 0), argument.get("valueTwo", 0)
        conditions.append(library.argument(index, OPERATORS[argument["op"]], value, second))
        indices.append(index)
    # Conditions are joined by "and"; several on one argument are, by custom, alternatives.
    groups = [[condition] for condition in conditions] if len(set(indices)) < len(indices) else [conditions]
    for name in rule.get("names") or []:
        if not name:
            raise SeccompError(f"{field}.names: an empty name is not a system call")
        number = library.call.seccomp_syscall_resolve_name(os.fsencode(name))
        if number == library.NR_ERROR:
            # Unknown to libseccomp, so probably newer than it, or of another architecture.
            continue
        for group in groups:
            array = (library.argument * len(group))(*group) if group else None
            error = -library.call.seccomp_rule_add_array(context, action, number, len(group), array)
            if error:
                raise SeccompError(f"{field}: {name}: libseccomp refuses the rule: {os.strerror(error)}")


def export(library: _Library, context: int) -> bytes:
    """The filter as BPF (struct sock_filter). Raises SeccompError."""
    file = os.memfd_create("seccomp")
    try:
        error = -library.call.seccomp_export_bpf(context, file)
        if error:
            raise SeccompError(f"linux.seccomp: libseccomp cannot compile the profile: {os.strerror(error)}")
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)


def last_calls(library: _Library, architectures: dict[str, int], rules: list[Profile]) -> dict[str, int]:
    """For each architecture the highest system call number that the profile names."""
    last: dict[str, int] = {}
    names = {name for rule in rules for name in rule.get("names") or []}
    for architecture, token in architectures.items():
        numbers = [library.call.seccomp_syscall_resolve_name_arch(token, os.fsencode(name)) for name in names]
        # Negative ones are libseccomp's own, for calls that the architecture lacks.
        highest = max(numbers, default=-1)
        if highest >= 0:
            last[architecture] = highest
    return last


# ---- classic BPF -------------------------------------------------------------------------------

BPF_LD_W_ABS = 0x20
BPF_JEQ_K = 0x15
BPF_JGT_K = 0x25
BPF_JSET_K = 0x45
BPF_JA = 0x05
BPF_RET_K = 0x06
# struct seccomp_data { int nr; __u32 arch; ... }
DATA_NR = 0
DATA_ARCH = 4


def instruction(code: int, immediate: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter."""
    return code.to_bytes(2, byteorder) + bytes((if_true, if_false)) + immediate.to_bytes(4, byteorder)


def newer_calls(last: dict[str, int]) -> bytes:
    """A program that answers ENOSYS to calls above the last one known, and else runs into what follows it."""
    refuse = instruction(BPF_RET_K, ACTIONS["SCMP_ACT_ERRNO"] | ENOSYS)
    sections: list[list[bytes]] = []
    x86_64 = {name: number for name, number in last.items() if ARCHITECTURES[name][1] == AUDIT_ARCH_X86_64}
    if x86_64:
        # x32 shares x86_64's architecture number, and marks its calls by a bit.
        section = [instruction(BPF_LD_W_ABS, DATA_NR)]
        native, x32 = x86_64.get("SCMP_ARCH_X86_64"), x86_64.get("SCMP_ARCH_X32")
        on_native = [instruction(BPF_JGT_K, native, 0, 1), refuse] if native is not None else []
        on_x32 = [instruction(BPF_JGT_K, x32 | X32_SYSCALL_BIT, 0, 1), refuse] if x32 is not None else []
        on_native.append(instruction(BPF_JA, len(on_x32)))
        section.append(instruction(BPF_JSET_K, X32_SYSCALL_BIT, len(on_native), 0))
        sections.append([instruction(BPF_JEQ_K, AUDIT_ARCH_X86_64), *section, *on_native, *on_x32])
    for name, number in last.items():
        architecture = ARCHITECTURES[name][1]
        if architecture == AUDIT_ARCH_X86_64:
            continue
        section = [instruction(BPF_JEQ_K, architecture), instruction(BPF_LD_W_ABS, DATA_NR)]
        if name in ("SCMP_ARCH_S390", "SCMP_ARCH_S390X"):
            # Numbers too large for the instruction arrive there as call 0.
            section += [instruction(BPF_JEQ_K, 0, 0, 1), refuse]
        section += [instruction(BPF_JGT_K, number, 0, 1), refuse]
        sections.append(section)
    program: list[bytes] = []
    for section in reversed(sections):
        # A section that matched goes to the end; one that did not, to the next.
        body = [*section[1:], instruction(BPF_JA, len(program))]
        test = section[0][:2] + bytes((0, len(body))) + section[0][4:]
        program = [test, *body, *program]
    return b"".join([instruction(BPF_LD_W_ABS, DATA_ARCH), *program]) if program else b""
