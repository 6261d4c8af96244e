"""Attempts to find keys (in environments, arguments, memory, open files) and to signal others."""

from agentloop.sandboxes.attacks.attempt import attempts

SECRETS = attempts(
    "secrets",
    """
## own environment: environment
print(dict(os.environ), flush=True)
## environment in C: environment
libc.getenv.restype = ctypes.c_char_p
print(libc.getenv(H["variable"].encode()), flush=True)
## environment the program started with: environment
show("/proc/self/environ")
## environment of process 1: environment
show("/proc/1/environ")
## environment of the parent: environment
show(f"/proc/{os.getppid()}/environ")
## environment of a host process: environment
show(f"/proc/{H['pid']}/environ")
## environments of all processes: environment
for place in glob.glob("/proc/[0-9]*/environ"):
    try:
        print([part for part in open(place).read().split("\\0") if H["variable"] in part])
    except OSError:
        pass
## arguments of a host process: processes
show(f"/proc/{H['pid']}/cmdline")
## arguments of all processes: processes
for place in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        print([part for part in [open(place).read()] if H["token"] in part])
    except OSError:
        pass
## inherited file: descriptors
for number in range(3, 1024):
    try:
        print(os.pread(number, 256, 0).decode(errors="replace"), flush=True)
    except OSError:
        pass
## inherited folder: descriptors
for number in range(3, 1024):
    try:
        held = os.open(os.path.basename(H["secret"]), os.O_RDONLY, dir_fd=number)
        print(os.read(held, 256).decode(), flush=True)
    except OSError:
        pass
## inherited listener: descriptors
for number in range(3, 1024):
    try:
        with socket.socket(fileno=os.dup(number)) as line:
            if line.getsockname()[1] == H["tcp"]:
                reached()
    except (OSError, IndexError, TypeError):
        pass
## names of inherited files: descriptors
for name in os.listdir("/proc/self/fd"):
    try:
        if os.path.dirname(H["secret"]) in os.readlink(f"/proc/self/fd/{name}"):
            reached()
    except OSError:
        pass
## descriptors of a host process: descriptors
for name in os.listdir(f"/proc/{H['pid']}/fd"):
    print(os.readlink(f"/proc/{H['pid']}/fd/{name}"))
    reached()
""",
)
PROCESSES = attempts(
    "processes",
    """
## memory of a host process by file: processes
with open(f"/proc/{H['pid']}/mem", "rb") as memory:
    memory.seek(H["address"])
    print(memory.read(64), flush=True)
## memory of a host process by call: processes
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
here = ctypes.create_string_buffer(64)
local, remote = Part(ctypes.addressof(here), 64), Part(H["address"], 64)
call("process_vm_readv", H["pid"], ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
print(here.raw, flush=True)
## map of a host process: processes
if open(f"/proc/{H['pid']}/maps").read().count("\\n") > 5 and H["pid"] != os.getpid():
    if H["token"] in open(f"/proc/{H['pid']}/cmdline").read():
        reached()
## trace a host process: processes
SEIZE = 0x4206  # attaches without stopping it; undone when this process ends
value, _ = call("ptrace", SEIZE, H["pid"], 0, 0)
if value == 0:
    reached()
## signal a host process: processes
os.kill(H["pid"], signal.SIGUSR1)
## signal a host process by handle: processes
held, _ = call("pidfd_open", H["pid"], 0)
call("pidfd_send_signal", held, int(signal.SIGUSR2), 0, 0)
## signal a host thread: processes
libc.tgkill(H["pid"], H["pid"], int(signal.SIGWINCH))
## signal on a socket's behalf: processes
import fcntl
left, right = socket.socketpair()
fcntl.fcntl(left, fcntl.F_SETOWN, H["pid"])
fcntl.fcntl(left, 10, int(signal.SIGURG))  # F_SETSIG
fcntl.fcntl(left, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
right.send(b"x")
## limits of a host process: processes
before = resource.prlimit(H["pid"], resource.RLIMIT_CORE)
if H["token"] in open(f"/proc/{H['pid']}/cmdline").read():
    reached()
## take a descriptor from a host process: processes
held, _ = call("pidfd_open", H["pid"], 0)
value, _ = call("pidfd_getfd", held, 0, 0)
if value >= 0:
    reached()
## shared memory segment: ipc
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(H["key"], 0, 0)
if number >= 0:
    print(ctypes.string_at(libc.shmat(number, 0, 0o10000), 32), flush=True)
## message queue: ipc
number = libc.msgget(H["key"], 0)
if number >= 0:
    message = ctypes.create_string_buffer(256)
    libc.msgrcv(number, message, 200, 0, 0o4000)  # without waiting
    print(message.raw, flush=True)
## semaphore: ipc
if libc.semget(H["key"], 0, 0) >= 0:
    reached()
""",
)
