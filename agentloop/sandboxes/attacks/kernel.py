"""Attempts on the kernel: mounts, namespaces, privileges and system calls that no snippet needs.

Each call is made with an argument that is refused right after the permission check (see `attempt`).
"""

from agentloop.sandboxes.attacks.attempt import attempts

MOUNTS = attempts(
    "mounts",
    """
## mount a file system: mounts
os.mkdir("d")
refused("mount", b"none", b"d", b"agentloop-nofs", 0, 0)  # no such type
## mount again with other rights: mounts
os.mkdir("d")
refused("mount", 0, b"d", 0, 32, 0)  # MS_REMOUNT of what is no mount
## mount a folder elsewhere: mounts
os.mkdir("d")
refused("mount", 0, b"d", 0, 4096, 0)  # MS_BIND of nothing
## move a mount: mounts
os.mkdir("d")
refused("mount", 0, b"d", 0, 8192, 0)  # MS_MOVE of nothing
## unmount: mounts
os.mkdir("d")
refused("umount2", b"d", 0)  # no mount
## another root by chroot: mounts
os.chroot(".")
reached()
## another root by pivot: mounts
os.mkdir("d")
refused("pivot_root", b"d", b"d")  # no mount
## open a file system: mounts
refused("fsopen", b"agentloop-nofs", 0)
## configure a file system: mounts
refused("fsconfig", -1, 0, 0, 0, 0)
## make a mount: mounts
refused("fsmount", -1, 0, 0)
## pick a mount: mounts
refused("fspick", -1, b"", 8)
## open a tree: mounts
os.mkdir("d")
refused("open_tree", -100, b"d", 0)
## copy a tree: mounts
os.mkdir("d")
refused("open_tree", -100, b"d", 1)  # a copy that nobody attaches
## attach a mount: mounts
refused("move_mount", -1, b"", -1, b"", 4)
## rights of a mount: mounts
refused("mount_setattr", -1, b"", 0x1000, ctypes.create_string_buffer(32), 32)
## open a file by its number: mounts
handle = ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + bytes(8))
refused("open_by_handle_at", -100, handle, 0)
## number of a file: mounts
handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 64, 0) + bytes(64)), ctypes.c_int()
refused("name_to_handle_at", -100, b".", handle, ctypes.byref(mount), 0)
""",
)
NAMESPACES = attempts(
    "namespaces",
    """
## new users: namespaces
refused("unshare", 0x10000000)
## new users in a child: namespaces
child, fault = call("clone", 0x10000000 | int(signal.SIGCHLD), 0, 0, 0, 0)
if child == 0:
    os._exit(0)
if child > 0 or fault not in (errno.EPERM, errno.ENOSYS, errno.ENOSPC):
    reached()
## new users with all rights over a new network: namespaces
if call("unshare", 0x10000000 | 0x40000000)[0] == 0:
    reached()
## new mounts: namespaces
refused("unshare", 0x00020000)
## new network: namespaces
refused("unshare", 0x40000000)
## new processes: namespaces
refused("unshare", 0x20000000)
## new control groups: namespaces
refused("unshare", 0x02000000)
## new names: namespaces
refused("unshare", 0x04000000)
## new queues: namespaces
refused("unshare", 0x08000000)
## new clock: namespaces
refused("unshare", 0x00000080)
## new process the new way: namespaces
refused("clone3", 0, 0)
## join a namespace: namespaces
refused("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0)
## join the network of a host process: namespaces
value, _ = call("setns", os.open(f"/proc/{H['pid']}/ns/net", os.O_RDONLY), 0)
if value == 0:
    reached()
""",
)
PRIVILEGES = attempts(
    "privileges",
    """
## capabilities: privileges
status = open("/proc/self/status").read()
if int(status.split("CapEff:")[1].split()[0], 16) or int(status.split("CapPrm:")[1].split()[0], 16):
    reached()
## capabilities within bounds: privileges
if int(open("/proc/self/status").read().split("CapBnd:")[1].split()[0], 16):
    reached()
## new privileges by a program: privileges
if "NoNewPrivs:\\t0" in open("/proc/self/status").read():
    reached()
## no filter of system calls: syscalls
if "Seccomp:\\t2" not in open("/proc/self/status").read():
    reached()
## become root: privileges
if os.getuid() == 0:
    reached()
os.setuid(0)
reached()
## join the group of root: privileges
if os.getgid() == 0 or 0 in os.getgroups():
    reached()
os.setgroups([0])
reached()
## name the host: privileges
refused("sethostname", b"", -1)
## name the domain: privileges
refused("setdomainname", b"", -1)
## go first: privileges
os.setpriority(os.PRIO_PROCESS, 0, -20)
reached()
## go first in real time: privileges
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
reached()
## more memory than allowed: privileges
resource.setrlimit(resource.RLIMIT_MEMLOCK, (2**31, 2**31))
reached()
## core dumps: privileges
if resource.getrlimit(resource.RLIMIT_CORE)[1]:
    reached()
## give a file away: privileges
open("given", "w").close()
os.chown("given", 0 if os.getuid() else 1, -1)
reached()
## program that runs as root: privileges
found = any(os.lstat(path).st_mode & stat.S_ISUID for path in glob.glob("/usr/bin/*"))
if found and "NoNewPrivs:\\t0" in open("/proc/self/status").read():
    reached()
""",
)
SYSCALLS = attempts(
    "syscalls",
    """
## programs in the kernel: syscalls
refused("bpf", 7, ctypes.create_string_buffer(120), 120)  # open an object without a path
## ring of calls: syscalls
refused("io_uring_setup", 1, 0)
## enter a ring: syscalls
refused("io_uring_enter", -1, 0, 0, 0, 0, 0)
## register with a ring: syscalls
refused("io_uring_register", -1, 0, 0, 0)
## key ring: syscalls
refused("keyctl", 0, -3, 0)
## add a key: syscalls
refused("add_key", 0, 0, 0, 0, -1)
## ask for a key: syscalls
refused("request_key", 0, 0, 0, -1)
## performance counters: syscalls
refused("perf_event_open", 0, 0, -1, -1, 0)
## page faults: syscalls
refused("userfaultfd", 1)
## another kernel: syscalls
refused("kexec_load", 0, 0, 0, 0xFFFF)
## another kernel by file: syscalls
refused("kexec_file_load", -1, -1, 0, 0, 0xFFFF)
## load a module: syscalls
refused("init_module", 0, 0, 0)
## load a module by file: syscalls
refused("finit_module", -1, 0, 0)
## remove a module: syscalls
refused("delete_module", 0, 0)
## restart the machine: syscalls
refused("reboot", 0, 0, 0, 0)  # without the magic numbers
## swap on: syscalls
refused("swapon", 0, 0)
## swap off: syscalls
refused("swapoff", 0)
## set the time: syscalls
refused("settimeofday", 0, 0)  # sets nothing
## tune the clock: syscalls
timex = ctypes.create_string_buffer(struct.pack("I", 0x4000) + bytes(252))  # a tick of 0
refused("adjtimex", timex)
## accounting: syscalls
refused("acct", b"/agentloop/no/such/file")
## log of the kernel: syscalls
refused("syslog", 2, 0, 0)
## quotas: syscalls
refused("quotactl", 0x7FFFFF00, 0, 0, 0)
## quotas by descriptor: syscalls
refused("quotactl_fd", -1, 0x7FFFFF00, 0, 0)
## ports of the processor: syscalls
refused("iopl", 3)
## one port of the processor: syscalls
refused("ioperm", 0x80, 1, 1)
## other layout of memory: syscalls
refused("personality", 0x0040000)
## be traced: syscalls
refused("ptrace", 0, 0, 0, 0)
## read own memory as another's: syscalls
refused("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0)
## write own memory as another's: syscalls
refused("process_vm_writev", os.getpid(), 0, 0, 0, 0, 0)
## take a descriptor: syscalls
refused("pidfd_getfd", -1, 0, 0)
## type on the terminal: syscalls
import fcntl
try:
    fcntl.ioctl(os.pipe()[0], 0x5412, b"x")
    reached()
except OSError as error:
    if error.errno != errno.EPERM:
        reached()
## paste on the terminal: syscalls
import fcntl
try:
    fcntl.ioctl(os.pipe()[0], 0x541C, b"x")
    reached()
except OSError as error:
    if error.errno != errno.EPERM:
        reached()
## calls of a 32-bit program: syscalls
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
if X86:
    page.write(bytes.fromhex("53b814000000cd805bc3"))  # push rbx; mov eax, 20; int 0x80; pop; ret
    code = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    if code() == os.getpid():
        reached()
""",
)
