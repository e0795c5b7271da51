"""Remove all rights that a program under test does not need from this process, permanently.

The script calls `confine` once, before the program runs.

    limits         on time, memory and open files; no bytes written to files, no core dump
    capabilities   dropped, so a program started by root is not root
                   (Linux)
    landlock       no file can be written, and only Python and the system's libraries can be read
                   (Linux 5.13 or later)
    seccomp        no processes, sockets, signals or kernel administration
                   (Linux on x86-64 and AArch64)
    audit hook     Python refuses the same operations before they reach the kernel

The kernel enforces the first four. The hook reports the refused operation, and it is the only layer
where the kernel offers none. The hook alone is no boundary: a hostile program can bypass it.
Sources: landlock(7), seccomp(2), PEP 578.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

O_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def confine(
    readable: Sequence[str], memory: int, seconds: int, skip: Sequence[str] = ()
) -> list[str]:
    """Apply all layers except `skip` and return the names of those in force.

    `readable` are folders and files; `memory` is in bytes, `seconds` is CPU time.
    """
    resolved = dict.fromkeys(map(os.path.realpath, readable))
    roots = [root for root in resolved if os.path.exists(root)]
    layers: dict[str, Callable[[], bool]] = {
        "memory limit": lambda: _set_limit("RLIMIT_AS", memory),
        "other limits": lambda: _set_other_limits(seconds),
        "capabilities": _drop_capabilities,
        "landlock": lambda: _restrict_files(roots),
        "seccomp": _install_seccomp_filter,
        "audit hook": lambda: _add_audit_hook(roots),
    }
    return [name for name, apply in layers.items() if name not in skip and apply()]


def _set_limit(name: str, value: int) -> bool:
    try:
        resource.setrlimit(getattr(resource, name), (value, value))
    except (AttributeError, ValueError, OSError):
        return False
    return True


def _set_other_limits(seconds: int) -> bool:
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0}
    if sys.platform == "darwin":  # on macOS, threads do not count as processes
        limits["RLIMIT_NPROC"] = 0
    applied = [_set_limit(name, value) for name, value in limits.items()]
    return all(applied)


def _libc() -> Any:
    # Imported here: the audit hook later removes ctypes from the program's reach.
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _drop_capabilities() -> bool:
    if sys.platform != "linux":
        return False
    version_3 = struct.pack("=II", 0x20080522, 0)
    return _libc().capset(version_3, bytes(24)) == 0


PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock, on every architecture
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3


def _restrict_files(roots: Sequence[str]) -> bool:
    """Drop all rights that this kernel's Landlock supports; keep read access to `roots`.

    Harmless devices, such as /dev/null, stay usable.
    """
    if sys.platform != "linux":
        return False
    libc = _libc()
    abi = libc.syscall(CREATE_RULESET, None, 0, 1)
    if abi < 1:
        return False
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    tcp = 0b11 if abi >= 4 else 0
    signals_and_abstract_sockets = 0b11 if abi >= 6 else 0
    handled = struct.pack("=QQQ", files, tcp, signals_and_abstract_sockets)
    ruleset = libc.syscall(CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        return False
    rules = [(root, READ_FILE | READ_DIR if os.path.isdir(root) else READ_FILE) for root in roots]
    rules += [
        (os.devnull, READ_FILE | WRITE_FILE),
        ("/dev/urandom", READ_FILE),
        ("/dev/zero", READ_FILE),
    ]
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, descriptor)
        added = libc.syscall(ADD_RULE, ruleset, 1, rule, 0)
        os.close(descriptor)
        if added != 0:
            return False
    restricted = (
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    )
    os.close(ruleset)
    return restricted


ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine → (column of REFUSED_CALLS, the kernel's number for the architecture)."""

CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
PRLIMIT64 = {"x86_64": 302, "aarch64": 261}
CLONE_THREAD = 0x10000
X32 = 0x40000000
REFUSED_CALLS = {
    # processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "setsid": (112, 157), "setpgid": (109, 154), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_open": (434, 434),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    # network, and memory that outlives the process or escapes the limits
    "socket": (41, 198), "socketpair": (53, 199), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # file operations that Landlock does not cover
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "file_setattr": (469, 469),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # kernel administration, and the calls with the largest attack surface
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "reboot": (169, 142), "personality": (135, 92), "quotactl": (179, 60), "acct": (163, 89),
    "syslog": (103, 116),
}  # fmt: skip
"""Name → number on x86-64 and on AArch64; None if the architecture lacks the call.

Sources: asm/unistd_64.h, asm-generic/unistd.h.
"""

# BPF instructions: ld abs, jeq, jge, jset, ret
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Filter results: run the call; fail with EPERM; fail with ENOSYS
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026


def _install_seccomp_filter() -> bool:
    """Install a filter that lists the refused calls, not the allowed ones.

    It therefore works with any version of Python and of the C library, but it is no sufficient
    boundary alone.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        return False
    import ctypes

    program = b"".join(struct.pack("=HBBI", *step) for step in _seccomp_filter(machine))
    instructions = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    libc = _libc()
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    header = Program(len(program) // 8, ctypes.addressof(instructions))
    return libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(header), 0, 0) == 0


def _seccomp_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """Return the filter as (operation, jump if true, jump if false, operand).

    A jump is the number of instructions to skip. The kernel passes (call, architecture, …,
    arguments).
    """
    column, architecture = ARCHITECTURES[machine]
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, 0)]
    if machine == "x86_64":
        code += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, REFUSE)]
    for numbers in REFUSED_CALLS.values():
        if numbers[column] is not None:
            code += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, REFUSE)]
    # After ENOSYS for clone3 the C library uses clone, whose flags the filter can read.
    code += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, UNKNOWN)]
    code += [
        (EQUAL, 0, 4, CLONE[machine]),
        (LOAD, 0, 0, 16),
        (ANY_BIT, 0, 1, CLONE_THREAD),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]
    # prlimit64 is refused for other processes.
    code += [
        (EQUAL, 0, 3, PRLIMIT64[machine]),
        (LOAD, 0, 0, 16),
        (EQUAL, 1, 0, 0),
        (RETURN, 0, 0, REFUSE),
    ]
    return [*code, (RETURN, 0, 0, ALLOW)]


REFUSED_EVENTS = frozenset(
    """
    os.fork os.forkpty os.exec os.posix_spawn os.spawn os.system os.startfile subprocess.Popen
    pty.spawn os.kill os.killpg signal.pthread_kill os.remove os.rename os.rmdir os.mkdir os.link
    os.symlink os.truncate os.chmod os.chown os.chflags os.utime os.setxattr os.removexattr
    resource.prlimit sys._current_frames sys._current_exceptions sys.setprofile sys.settrace
    gc.get_objects gc.get_referrers gc.get_referents
    """.split()
)


def _add_audit_hook(roots: Sequence[str]) -> bool:
    # The hook's names are bound here, since the program can change any module.
    refused, inside = REFUSED_EVENTS, tuple(roots)
    realpath, fspath, fsdecode = os.path.realpath, os.fspath, os.fsdecode
    separator, null = os.sep, os.devnull

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in refused or event.startswith(("socket.", "ctypes.")):
            raise PermissionError(f"the sandbox refuses {event}")
        if event == "open" and not isinstance(args[0], int):
            path = realpath(fsdecode(fspath(args[0])))
            if path != null and (
                (args[2] or 0) & O_WRITES
                or not any(path == root or path.startswith(root + separator) for root in inside)
            ):
                raise PermissionError(f"the sandbox refuses to open {path}")

    for name in ("ctypes", "_ctypes"):
        # None makes an import raise ImportError, which NumPy handles.
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    sys.addaudithook(hook)
    return True
