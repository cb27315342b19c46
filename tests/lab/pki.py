"""Certificate authority of the simulated internet, trusted by every VPS of the lab and by nothing else."""

import os
from pathlib import Path

import trustme

from tests.lab.settings import CA_DIR

CA_CERT = CA_DIR / "ca.pem"
CA_KEY = CA_DIR / "ca.key"


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only root can read, whatever the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def ensure_ca() -> Path:
    """Make the CA unless it is there; return the path of its certificate (PEM)."""
    if not (CA_CERT.exists() and CA_KEY.exists()):
        authority = trustme.CA(organization_name="clawDeploy lab")
        write_private(CA_KEY, authority.private_key_pem.bytes())
        CA_CERT.write_bytes(authority.cert_pem.bytes())
    return CA_CERT


def ensure_certificate(*names: str) -> tuple[Path, Path]:
    """Make a certificate for DNS names or IP addresses unless it is there; return (chain, key), both PEM."""
    ensure_ca()
    chain, key = CA_DIR / f"{names[0]}.pem", CA_DIR / f"{names[0]}.key"
    if not (chain.exists() and key.exists() and chain.stat().st_mtime >= CA_CERT.stat().st_mtime):
        authority = trustme.CA.from_pem(CA_CERT.read_bytes(), CA_KEY.read_bytes())
        leaf = authority.issue_cert(*names)
        write_private(key, leaf.private_key_pem.bytes())
        chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    return chain, key
