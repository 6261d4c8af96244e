"""Attempts to use up the host, to outlive the run, and to speak for the sandbox.

Each needs a run of its own. What they take is bounded even where nothing bounds them: memory by
twice the profile's limit, and survivors end by themselves.
"""

from agentloop.sandboxes.attacks.attempt import attempts

RESOURCES = attempts(
    "resources",
    """
## memory of one process: memory
kept = bytearray(2 * H["memory_mb"] * 2**20)
kept[::4096] = b"x" * len(kept[::4096])
reached()
## memory of several processes: memory
import select
done, ready = os.pipe()
end, hold = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        os.close(hold)
        kept = bytearray(H["memory_mb"] * 2**19)
        kept[::4096] = b"x" * len(kept[::4096])
        os.write(ready, b"x")
        os.read(end, 1)  # all have it at once
        os._exit(0)
got = 0
while got < 4 and os.waitpid(-1, os.WNOHANG) == (0, 0):
    got += len(os.read(done, 4)) if select.select([done], [], [], 0.05)[0] else 0
if got == 4:
    reached()
## memory shared between processes: memory
import mmap
with mmap.mmap(-1, 2 * H["memory_mb"] * 2**20) as page:
    for place in range(0, len(page), 4096):
        page[place] = 1
    reached()
## memory in a file without a name: memory
held = os.memfd_create("x")
for _ in range(2 * H["memory_mb"]):
    os.write(held, bytes(2**20))
reached()
## memory behind pipes: memory
import fcntl
held, room = [], 0
while room < 2 * H["memory_mb"] * 2**20:
    pair = os.pipe()
    held.append(pair)
    fcntl.fcntl(pair[1], 1031, 2**20)
    os.set_blocking(pair[1], False)
    room += os.write(pair[1], bytes(2**20))
reached()
## processes: pids
born = 0
for _ in range(2 * H["pids"]):
    try:
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
    except OSError:
        break
    born += 1
if born == 2 * H["pids"]:
    reached()
## threads: pids
import threading
threading.stack_size(65536)
end = threading.Event()
for number in range(2 * H["pids"]):
    threading.Thread(target=end.wait, daemon=True).start()
if threading.active_count() > 2 * H["pids"]:
    reached()
## one long file: disk
with open("long", "wb", buffering=0) as file:
    for _ in range(2 * H["disk_mb"]):
        file.write(bytes(2**20))
os.remove("long")
reached()
## many long files: disk
for number in range(H["disk_mb"]):
    with open(f"file{number}", "wb", buffering=0) as file:
        for _ in range(2):
            if file.write(bytes(2**20)) < 2**20:
                raise OSError("full")
for number in range(H["disk_mb"]):
    os.remove(f"file{number}")
reached()
## long files in every folder: disk
for folder in ("/tmp", "/dev/shm", "/run", "/var/tmp", "/dev", "/"):
    try:
        names = [f"{folder}/agentloop_{os.getpid()}_{number}" for number in range(H["disk_mb"])]
        for name in names:
            with open(name, "wb", buffering=0) as file:
                for _ in range(2):
                    if file.write(bytes(2**20)) < 2**20:
                        raise OSError("full")
        reached()
    except OSError:
        pass
    finally:
        for name in names:
            if os.path.exists(name):
                os.remove(name)
## many files: disk
for number in range(20000):
    os.mknod(f"small{number}")
for number in range(20000):
    os.remove(f"small{number}")
reached()
## open files: disk
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(4096)]
reached()
## processors: cpu
began, until = time.monotonic(), time.monotonic() + 1
children = []
for _ in range(16):  # so many have most of a machine that others use as well
    child = os.fork()
    if child == 0:
        while time.monotonic() < until:
            pass
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
if used.ru_utime + used.ru_stime > 1.4 * (time.monotonic() - began):
    reached()
## time asleep: time
time.sleep(H["seconds"] + 6)
reached()
## time at work: time
until = time.monotonic() + H["seconds"] + 6
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while time.monotonic() < until:
    pass
reached()
## time of a thread: time
import threading
threading.Thread(target=lambda: (time.sleep(H["seconds"] + 6), reached())).start()
## time of a child that holds the output: time
if os.fork() == 0:
    time.sleep(H["seconds"] + 6)
    reached()
""",
    alone=True,
)
SURVIVORS = attempts(
    "survivors",
    """
## child: survivors
stay() if os.fork() == 0 else None
## grandchild: survivors
if os.fork() == 0:
    if os.fork() == 0:
        stay()
    os._exit(0)
os.wait()
## session of its own: survivors
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        stay()
    os._exit(0)
os.wait()
## deaf to signals: survivors
if os.fork() == 0:
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    os.setsid()
    stay()
## without a terminal or files: survivors
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 1024)
    stay()
## child of the parent: survivors
value, _ = call("clone", 0x8000 | int(signal.SIGCHLD), 0, 0, 0, 0)  # CLONE_PARENT
if value == 0:
    stay()
## its first thread ended: survivors
import threading
if os.fork() == 0:
    os.setsid()
    libc.prctl(15, H["comm"].encode(), 0, 0, 0)
    threading.Thread(target=stay).start()
    libc.syscall(60 if X86 else 93, 0)  # exit, of this thread alone
## stopped: survivors
if os.fork() == 0:
    libc.prctl(15, H["comm"].encode(), 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    stay()
## stopped while traced: survivors
if os.fork() == 0:
    libc.prctl(15, H["comm"].encode(), 0, 0, 0)
    call("ptrace", 0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    stay()
## another program: survivors
import shutil, subprocess
if shutil.which("sleep"):
    subprocess.Popen([H["comm"], "20"], executable=shutil.which("sleep"), start_new_session=True)
else:
    stay() if os.fork() == 0 else None
## one after the other: survivors
if os.fork() == 0:
    os.setsid()
    libc.prctl(15, H["comm"].encode(), 0, 0, 0)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        time.sleep(0.02)
        if os.fork():
            os._exit(0)
## while it runs out of time: survivors
if os.fork() == 0:
    os.setsid()
    stay()
time.sleep(H["seconds"] + 6)
""",
    alone=True,
)
OUTPUT = attempts(
    "output",
    """
## much output: output
while True:
    os.write(1, b"x" * 65536)
## much output on the side: output
while True:
    os.write(2, b"x" * 65536)
## much output in lines: output
while True:
    print("line")
## text that is no text: output
os.write(1, bytes(range(256)) * 4 + b"\\xed\\xa0\\x80\\xff")
## an error that steers a terminal: output
raise ValueError("\\x1b]52;c;eA==\\x07\\x1b[2J\\x9b2J\\x08\\r")
## garbage on every descriptor: output
for number in range(3, 1024):
    try:
        os.set_blocking(number, False)
        os.write(number, b"\\xff" * 4096 + b"\\nready\\n{}\\n")
    except OSError:
        pass
## every descriptor closed: output
os.closerange(0, 1024)
time.sleep(0.2)
## exit as a launcher that failed: output
os._exit(125)
## exit as a program that was not found: output
os._exit(127)
## exit as if killed for memory: output
os._exit(137)
## end by a signal that launchers die of: output
os.kill(os.getpid(), signal.SIGKILL)
## end without a word: output
os.closerange(1, 1024)
os._exit(1)
""",
    alone=True,
)
