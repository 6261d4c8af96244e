"""What an escape attempt is, and how a list of them is written down.

An attempt is a few lines of Python that try one thing from inside a sandbox. It has succeeded when
the *host* sees it (a canary was touched), when it prints a secret that only the host has, or when
it prints `REACHED`, which `refused` and `reached` of the prelude below do.

None of them does harm even where nothing holds it back: what would mount, reboot or set a clock
is called with an argument that the kernel refuses only *after* its permission check, so `EPERM`
means that the wall stood and `EINVAL` or `EFAULT` that it did not. Signals go to planted processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentloop.records import Json

REACHED = "REACHED"


@dataclass(frozen=True)
class Attempt:
    """One thing to try. `attacks` is the property that a backend would have to claim."""

    name: str
    group: str
    attacks: str
    code: str
    alone: bool = False
    """Whether it needs a run of its own: it uses up a limit, or leaves something behind."""

    def source(self, host: Mapping[str, Json]) -> str:
        """A whole program; `host` is what it is told of the host (`Host.hints`)."""
        return f"H = {dict(host)!r}\nNAME = {self.name!r}\n{PRELUDE}\n{self.code}"


def attempts(group: str, text: str, *, alone: bool = False) -> tuple[Attempt, ...]:
    """The attempts of one group: each begins with a line `## name: property it attacks`."""
    found = []
    for part in text.strip().removeprefix("## ").split("\n## "):
        title, _, code = part.partition("\n")
        name, _, attacks = title.partition(": ")
        found.append(Attempt(name, group, attacks, code.strip() + "\n", alone))
    return tuple(found)


PRELUDE = r'''
import ctypes, errno, glob, os, platform, resource, signal, socket, stat, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
# Numbers on x86-64 and on arm64; from 424 on they are the same everywhere.
NUMBERS = dict(
    ptrace=(101, 117), process_vm_readv=(310, 270), process_vm_writev=(311, 271),
    kexec_load=(246, 104), kexec_file_load=(320, 294), init_module=(175, 105),
    finit_module=(313, 273), delete_module=(176, 106), mount=(165, 40), umount2=(166, 39),
    pivot_root=(155, 41), setns=(308, 268), unshare=(272, 97), clone=(56, 220), bpf=(321, 280),
    perf_event_open=(298, 241), userfaultfd=(323, 282), keyctl=(250, 219), add_key=(248, 217),
    request_key=(249, 218), swapon=(167, 224), swapoff=(168, 225), reboot=(169, 142),
    open_by_handle_at=(304, 265), name_to_handle_at=(303, 264), acct=(163, 89),
    quotactl=(179, 60), syslog=(103, 116), settimeofday=(164, 170), adjtimex=(159, 171),
    personality=(135, 92), sethostname=(170, 161), setdomainname=(171, 162), clone3=(435, 435),
    iopl=(172, None), ioperm=(173, None),
    io_uring_setup=(425, 425), io_uring_enter=(426, 426), io_uring_register=(427, 427),
    open_tree=(428, 428), move_mount=(429, 429), fsopen=(430, 430), fsconfig=(431, 431),
    fsmount=(432, 432), fspick=(433, 433), pidfd_send_signal=(424, 424), pidfd_open=(434, 434),
    pidfd_getfd=(438, 438), mount_setattr=(442, 442), quotactl_fd=(443, 443),
)
def call(name, *arguments):
    number = NUMBERS[name][not X86]
    if number is None:
        return -1, errno.ENOSYS
    whole = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    return libc.syscall(ctypes.c_long(number), *whole), ctypes.get_errno()
def reached():
    print("REACHED", flush=True)
def refused(name, *arguments):
    """The wall stood when the kernel refused the call as such, not its arguments."""
    value, fault = call(name, *arguments)
    if value >= 0 or fault not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        reached()
def show(path):
    with open(path, "rb") as file:
        print(file.read(65536).decode(errors="replace"), flush=True)
def digest(path):
    import hashlib
    print(hashlib.sha256(open(path, "rb").read()).hexdigest(), flush=True)
def opened(path, flags):
    """Opening is all that is done: nothing is written to a file that steers the kernel."""
    os.close(os.open(path, flags))
    reached()
def stay():
    """Be what should not be left: a process that the host finds by its name, for 20 s at most."""
    libc.prctl(15, H["comm"].encode(), 0, 0, 0)
    time.sleep(20)
    os._exit(0)
def tell(family, kind, address, protocol=0):
    """Send this attempt's name to a listener of the host, which writes it down."""
    with socket.socket(family, kind, protocol) as line:
        line.settimeout(1)
        line.connect(address)
        line.send(NAME.encode())
'''
