"""Attempts to reach the network, services on the host's loopback, and exotic socket families."""

from agentloop.sandboxes.attacks.attempt import attempts

NETWORK = attempts(
    "network",
    """
## TCP to loopback: network
tell(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", H["tcp"]))
## TCP to another loopback address: network
tell(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.2", H["tcp2"]))
## TCP to no address: network
tell(socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", H["tcp"]))
## TCP over IPv6: network
tell(socket.AF_INET6, socket.SOCK_STREAM, ("::1", H["tcp6"]))
## TCP over mapped IPv6: network
tell(socket.AF_INET6, socket.SOCK_STREAM, ("::ffff:127.0.0.1", H["tcp"]))
## TCP by several paths: network
tell(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", H["tcp"]), 262)  # IPPROTO_MPTCP
## TCP with data in the first packet: network
with socket.socket() as line:
    line.sendto(NAME.encode(), 0x20000000, ("127.0.0.1", H["tcp"]))  # MSG_FASTOPEN
## TCP without waiting: network
with socket.socket() as line:
    line.setblocking(False)
    line.connect_ex(("127.0.0.1", H["tcp"]))
    time.sleep(0.1)
    line.send(NAME.encode())
## TCP by a library: network
import urllib.request
urllib.request.urlopen(f"http://127.0.0.1:{H['tcp']}/{NAME.replace(' ', '%20')}", timeout=0.3)
## UDP to loopback: network
tell(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", H["udp"]))
## UDP without connecting: network
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.sendto(NAME.encode(), ("127.0.0.1", H["udp"]))
## UDP over mapped IPv6: network
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as line:
    line.sendto(NAME.encode(), ("::ffff:127.0.0.1", H["udp"]))
## a route to the world: network
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.connect(("192.0.2.1", 9))  # looks up a route and sends nothing
    reached()
## a route to the metadata service: network
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.connect(("169.254.169.254", 80))
    reached()
## a table of routes: network
if len(open("/proc/net/route").read().splitlines()) > 1:
    reached()
## sockets of the host: network
if f":{H['tcp']:04X} " in open("/proc/net/tcp").read():
    reached()
## unix socket by path: network
tell(socket.AF_UNIX, socket.SOCK_STREAM, H["unix"])
## unix socket by another root: network
tell(socket.AF_UNIX, socket.SOCK_STREAM, "/proc/1/root" + H["unix"])
## unix socket without a path: network
tell(socket.AF_UNIX, socket.SOCK_STREAM, "\\0" + H["abstract"])
## unix datagram without a path: network
tell(socket.AF_UNIX, socket.SOCK_DGRAM, "\\0" + H["abstract"] + "-d")
## unix sockets of the host: network
if H["abstract"] in open("/proc/net/unix").read():
    reached()
## the container engine: network
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock"):
    if os.path.exists(path):
        reached()
""",
)
FAMILIES = attempts(
    "families",
    """
## packet socket: families
socket.socket(17, socket.SOCK_RAW).close()
reached()
## netlink socket: families
socket.socket(16, socket.SOCK_RAW).close()
reached()
## netlink to the firewall: families
socket.socket(16, socket.SOCK_RAW, 12).close()
reached()
## socket to the virtual machine's host: families
socket.socket(40, socket.SOCK_STREAM).close()
reached()
## cryptography in the kernel: families
socket.socket(38, socket.SOCK_SEQPACKET).close()
reached()
## raw socket: families
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
reached()
## raw socket over IPv6: families
socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58).close()
reached()
""",
)
