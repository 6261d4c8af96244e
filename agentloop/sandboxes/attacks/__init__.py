"""Escape attempts: what code in a sandbox may try, with a host that notices when it succeeds."""

from agentloop.sandboxes.attacks.attempt import Attempt
from agentloop.sandboxes.attacks.files import DEVICES, READ, WRITE
from agentloop.sandboxes.attacks.host import Host
from agentloop.sandboxes.attacks.kernel import MOUNTS, NAMESPACES, PRIVILEGES, SYSCALLS
from agentloop.sandboxes.attacks.limits import OUTPUT, RESOURCES, SURVIVORS
from agentloop.sandboxes.attacks.network import FAMILIES, NETWORK
from agentloop.sandboxes.attacks.run import Reached, attack
from agentloop.sandboxes.attacks.secrets import PROCESSES, SECRETS

ATTEMPTS: tuple[Attempt, ...] = (
    *READ,
    *WRITE,
    *DEVICES,
    *SECRETS,
    *PROCESSES,
    *NETWORK,
    *FAMILIES,
    *MOUNTS,
    *NAMESPACES,
    *PRIVILEGES,
    *SYSCALLS,
    *RESOURCES,
    *SURVIVORS,
    *OUTPUT,
)

__all__ = ["ATTEMPTS", "Attempt", "Host", "Reached", "attack"]
