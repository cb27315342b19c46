"""A VPS in a container: a Debian root file system with systemd, reached by ssh like a rented machine."""

import hashlib
import json
import subprocess
import time
from dataclasses import dataclass

from tests.lab import settings
from tests.lab.engine import LABEL_ARGS, docker, inspect
from tests.lab.internet import decoy_networks
from tests.lab.pki import ensure_ca
from tests.lab.rootfs import image_name
from tests.lab.settings import KNOWN_HOSTS, NETWORK, SPEC_LABEL, SSH_DIR, SSH_KEY, Host, LabError

# What root may do on a VPS, as far as the engine of Debian 12 knows the names. SYS_RESOURCE is left out, and
# with it --privileged: some machines do not have it to give, and everything here works without.
CAPABILITIES = tuple(
    """
    AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID
    IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE
    NET_BROADCAST NET_RAW SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE
    SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_TIME SYS_TTY_CONFIG WAKE_ALARM
    """.split()  # noqa: SIM905  # forty quoted names would be forty lines
)
# An overlay on an overlay is refused: what Docker keeps inside the VPS lies on volumes of the machine.
VOLUMES = {"docker": "/var/lib/docker", "containerd": "/var/lib/containerd"}
# How a rented machine comes: the customer's key in, our internet's CA trusted.
PROVISION = """
set -eu
for home in /root /home/ops; do
  printf '%s\\n' "$LAB_KEY" >"$home/.ssh/authorized_keys"
  chmod 0600 "$home/.ssh/authorized_keys"
done
chown ops:ops /home/ops/.ssh/authorized_keys
printf '%s\\n' "$LAB_CA" >/usr/local/share/ca-certificates/claw-lab.crt
update-ca-certificates >/dev/null 2>&1
cat /etc/ssh/ssh_host_*_key.pub
"""


@dataclass(frozen=True)
class Vps:
    """Handle on one VPS of the lab; `memory` is its limit in bytes, `cpus` in cores (None: the machine's)."""

    host: Host
    memory: int | None = None
    cpus: float | None = None

    def run_arguments(self) -> list[str]:
        """Return the arguments of `docker run` that make this VPS, image included."""
        host = self.host
        arguments = [
            *("--name", host.container, "--hostname", host.name, *LABEL_ARGS),
            *("--network", NETWORK, "--ip", host.address, "--ip6", host.address6),
            *("--env", "container=docker", "--env", f"LAB_DNS={settings.DNS_ADDRESS}"),
            *("--env", f"LAB_DECOYS={' '.join(decoy_networks())}"),
            *("--env", f"LAB_DECOYS_VIA={settings.WEBSITE_ADDRESS}"),
            # Its own cgroup namespace: the Docker inside puts bots below the VPS's cgroup, so that the VPS's
            # limits bind them, with no setting that a real VPS does not have.
            *("--cgroupns", "private"),
            *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
            *("--security-opt", "systempaths=unconfined"),
            *("--device-cgroup-rule", "b 7:* rmw", "--device-cgroup-rule", "c 10:237 rmw"),
            *("--sysctl", "net.ipv6.conf.all.disable_ipv6=0"),
            *("--tmpfs", "/run:exec,mode=755", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec,mode=1777"),
            *("--stop-signal", "SIGRTMIN+3", "--stop-timeout", "60"),
        ]
        for capability in CAPABILITIES:
            arguments += ["--cap-add", capability]
        for name, path in VOLUMES.items():
            arguments += ["--volume", f"{host.container}-{name}:{path}"]
        if self.memory is not None:
            arguments += ["--memory", str(self.memory), "--memory-swap", str(self.memory)]
        if self.cpus is not None:
            arguments += ["--cpus", str(self.cpus)]
        return [*arguments, image_name(host.release)]

    def ensure(self) -> bool:
        """Boot the VPS unless it runs as asked for; True if it was made or made anew.

        One that was made differently (other recipe, other limits) is thrown away first.
        """
        arguments = self.run_arguments()
        spec = hashlib.sha256(json.dumps([arguments, public_key()]).encode()).hexdigest()
        present = inspect("container", self.host.container)
        if present and present["Config"]["Labels"].get(SPEC_LABEL) == spec:
            if not present["State"]["Running"]:
                docker("start", self.host.container)
                self.wait()
            return False
        self.remove()
        for name in VOLUMES:
            docker("volume", "create", *LABEL_ARGS, f"{self.host.container}-{name}")
        docker("run", "--detach", "--label", f"{SPEC_LABEL}={spec}", *arguments)
        state = self.wait_for_systemd()
        if state != "running":
            raise LabError(f"{self.host.name} is {state} after its first boot:\n{self.failed_units()}")
        self.provision()
        self.wait()
        return True

    def provision(self) -> None:
        """Put the lab's ssh key and CA into the VPS, and its host keys into known_hosts."""
        variables = ("--env", f"LAB_KEY={public_key()}", "--env", f"LAB_CA={ensure_ca().read_text()}")
        host_keys = docker("exec", *variables, self.host.container, "sh", "-c", PROVISION)
        others = KNOWN_HOSTS.read_text().splitlines() if KNOWN_HOSTS.exists() else []
        lines = [line for line in others if not line.startswith(f"{self.host.name},")]
        for key in host_keys.splitlines():
            kind, blob = key.split()[:2]
            lines.append(f"{self.host.name},{self.host.address} {kind} {blob}")
        KNOWN_HOSTS.write_text("\n".join(lines) + "\n")

    def wait_for_systemd(self, timeout: float = 120) -> str:
        """Wait until the boot is over; return systemd's word for it (`running`, or `degraded`)."""
        deadline = time.monotonic() + timeout
        command = ["docker", "exec", self.host.container, "systemctl", "is-system-running", "--wait"]
        while True:
            try:
                result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
            except subprocess.TimeoutExpired:
                jobs = self.exec("systemctl", "list-jobs", "--no-legend")
                raise LabError(
                    f"{self.host.name} is still booting after {timeout:.0f} s, waiting for:\n{jobs}"
                ) from None
            state = result.stdout.strip()
            # Before systemd listens, systemctl has nobody to ask ("offline", or no word at all).
            if state in ("running", "degraded", "maintenance", "stopping"):
                return state
            if time.monotonic() > deadline or "is not running" in result.stderr:
                raise LabError(f"{self.host.name} does not boot: {result.stderr.strip()}\n{self.console()}")
            time.sleep(0.1)

    def wait(self, timeout: float = 120) -> None:
        """Wait until the boot is over and ssh lets root in; LabError with ssh's words if it never does."""
        deadline = time.monotonic() + timeout
        self.wait_for_systemd(timeout)
        while (result := self.ssh("true")).returncode:
            if time.monotonic() > deadline:
                raise LabError(f"ssh to {self.host.name} fails: {result.stderr.strip()}")
            time.sleep(0.2)

    def reboot(self) -> float:
        """Restart the VPS as a whole and wait until it is back; return how many seconds that took."""
        began = time.monotonic()
        docker("restart", "--time", "60", self.host.container)
        self.wait()
        return time.monotonic() - began

    def console(self) -> str:
        """Return the last lines that the VPS wrote before systemd took over."""
        command = ["docker", "logs", "--tail", "20", self.host.container]
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout

    def failed_units(self) -> str:
        """Return systemd's list of failed units, one a line (empty: none)."""
        return self.exec("systemctl", "--failed", "--no-legend", "--plain")

    def exec(self, *command: str) -> str:
        """Run a command in the VPS without ssh (for when the firewall may be what is broken)."""
        return docker("exec", self.host.container, *command)

    def ssh(self, command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a shell command over real ssh, host key checked; the caller judges the result."""
        return subprocess.run(
            ["ssh", *ssh_options(), "-i", str(SSH_KEY), f"{user}@{self.host.address}", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def remove(self) -> bool:
        """Throw the VPS away, with everything in it; True if there was one."""
        present = inspect("container", self.host.container) is not None
        if present:
            docker("rm", "--force", self.host.container)
        for name in VOLUMES:
            if inspect("volume", f"{self.host.container}-{name}"):
                docker("volume", "rm", f"{self.host.container}-{name}")
        return present


def public_key() -> str:
    """Return the lab's ssh public key; the pair is made the first time."""
    if not SSH_KEY.exists():
        SSH_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "clawdeploy-lab", "-f", str(SSH_KEY)],
            check=True,
        )
    return SSH_KEY.with_suffix(".pub").read_text().strip()


def ssh_options() -> list[str]:
    """Return the ssh arguments with which only the lab's own key and known_hosts count."""
    return [
        "-F/dev/null",
        f"-oUserKnownHostsFile={KNOWN_HOSTS}",
        "-oStrictHostKeyChecking=yes",
        "-oIdentitiesOnly=yes",
        "-oConnectTimeout=5",
        "-oBatchMode=yes",
    ]
