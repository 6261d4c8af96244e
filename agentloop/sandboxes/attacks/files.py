"""Attempts to read or change files of the host, and to get hold of its devices."""

from agentloop.sandboxes.attacks.attempt import attempts

READ = attempts(
    "read",
    """
## read by path: files
show(H["secret"])
## read through dots: files
show("../" * 40 + H["secret"].lstrip("/"))
## read through /proc/self/root: files
show("/proc/self/root" + H["secret"])
## read through /proc/1/root: files
show("/proc/1/root" + H["secret"])
## read through the root of every process: files
for place in glob.glob("/proc/[0-9]*/root"):
    try:
        show(place + H["secret"])
    except OSError:
        pass
## read through the folder of every process: files
for place in glob.glob("/proc/[0-9]*/cwd"):
    try:
        show(place + "/" + "../" * 40 + H["secret"].lstrip("/"))
    except OSError:
        pass
## read through a symbolic link: files
os.symlink(H["secret"], "link")
show("link")
## read through a linked folder: files
os.symlink(os.path.dirname(H["secret"]), "folder")
show("folder/" + os.path.basename(H["secret"]))
## read through a hard link: files
os.link(H["secret"], "hard")
show("hard")
## read through a handle without rights: files
held = os.open(H["secret"], os.O_PATH)
show(f"/proc/self/fd/{held}")
## read through the folder above the root: files
root = os.open("/", os.O_PATH)
for _ in range(20):
    root = os.open("..", os.O_PATH, dir_fd=root)
print(open(os.open(H["secret"].lstrip("/"), os.O_RDONLY, dir_fd=root)).read(), flush=True)
## read through /proc mounts of others: files
show(f"/proc/{H['pid']}/root{H['secret']}")
## read through a disk that is mounted elsewhere: files
for top in ("/mnt", "/media", "/host", "/proc/1/cwd", "/rootfs"):
    try:
        show(top + H["secret"])
    except OSError:
        pass
## list the host's folder: files
print(os.listdir(os.path.dirname(H["secret"])), flush=True)
## size of a host file: files
if os.stat(H["secret"]).st_size:
    reached()
## the host's passwords: files
digest("/etc/shadow")
## the host's users: files
digest("/etc/passwd")
## the host's name: files
digest("/etc/hostname")
## the host's mounts: files
digest("/etc/fstab")
## run a host program: files
os.execv(H["program"], [H["program"]])
## read by a loaded library: files
ctypes.CDLL(H["library"])
reached()
## shared memory file: ipc
show(H["shared"])
""",
)
WRITE = attempts(
    "write",
    """
## write a new host file: files
with open(os.path.join(H["open"], NAME), "w") as file:
    file.write("x")
## write over a host file: files
with open(H["changed"], "a") as file:
    file.write(NAME)
## remove a host file: files
os.remove(H["removed"])
reached()
## rename a host file: files
os.rename(H["renamed"], H["renamed"] + ".moved")
reached()
## truncate a host file: files
os.truncate(H["truncated"], 0)
reached()
## make a host folder: files
os.mkdir(os.path.join(H["open"], NAME))
reached()
## change rights of a host file: files
os.chmod(H["mode"], 0o777)
reached()
## link a file out to the host: files
open("inside", "w").close()
os.link("inside", os.path.join(H["open"], NAME))
reached()
## write into the interpreter: files
name = f"{os.path.dirname(os.__file__)}/agentloop_{os.getpid()}"
open(name, "w").close()
os.remove(name)
reached()
## write into /usr: files
name = f"/usr/agentloop_{os.getpid()}"
open(name, "w").close()
os.remove(name)
reached()
## write into the root: files
name = f"/agentloop_{os.getpid()}"
open(name, "w").close()
os.remove(name)
reached()
## write into /etc: files
name = f"/etc/agentloop_{os.getpid()}"
open(name, "w").close()
os.remove(name)
reached()
## write into /dev: devices
name = f"/dev/agentloop_{os.getpid()}"
open(name, "w").close()
os.remove(name)
reached()
""",
)
DEVICES = attempts(
    "devices",
    """
## core pattern: devices
opened("/proc/sys/kernel/core_pattern", os.O_WRONLY)
## sysrq: devices
opened("/proc/sysrq-trigger", os.O_WRONLY)
## drop caches: devices
opened("/proc/sys/vm/drop_caches", os.O_WRONLY)
## program that loads modules: devices
opened("/proc/sys/kernel/modprobe", os.O_WRONLY)
## write to /sys: devices
opened("/sys/kernel/uevent_helper", os.O_WRONLY)
## wake the machine: devices
opened("/sys/power/state", os.O_WRONLY)
## kernel memory: devices
opened("/proc/kcore", os.O_RDONLY)
## physical memory: devices
opened("/dev/mem", os.O_RDONLY)
## kernel messages: devices
opened("/dev/kmsg", os.O_RDONLY)
## block device: devices
opened(H["disk"], os.O_RDONLY)
## virtual machine device: devices
opened("/dev/kvm", os.O_RDWR)
## tunnel device: devices
opened("/dev/net/tun", os.O_RDWR)
## file system in user space: devices
opened("/dev/fuse", os.O_RDWR)
## make a block device: devices
os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(*H["disk_number"]))
os.remove("disk")
reached()
## make a memory device: devices
os.mknod("memory", stat.S_IFCHR | 0o600, os.makedev(1, 1))
os.remove("memory")
reached()
## own control group: devices
for place in ("/sys/fs/cgroup", *glob.glob("/sys/fs/cgroup/*/")):
    try:
        os.mkdir(os.path.join(place, "agentloop-attempt"))
        os.rmdir(os.path.join(place, "agentloop-attempt"))
        reached()
    except OSError:
        pass
## program for empty control groups: devices
for place in glob.glob("/sys/fs/cgroup/*/release_agent") + ["/sys/fs/cgroup/release_agent"]:
    try:
        opened(place, os.O_WRONLY)
    except OSError:
        pass
""",
)
