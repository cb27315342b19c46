"""DNS server of the simulated internet: `python -m tests.lab.dns --host ADDRESS --forward RESOLVER`.

Names of the zone are answered from settings.ZONE, everything else is asked of the machine's own resolver. TXT
records can be set over HTTP on the same address by lego's `httpreq` protocol (POST /present and /cleanup with
{"fqdn", "value"}, see https://go-acme.github.io/lego/dns/httpreq/), which is what DNS-01 challenges need.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dnslib import NS, QTYPE, RCODE, RR, SOA, TXT, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

from tests.lab.settings import DNS_ADDRESS, ZONE

TTL = 5
# Parents of the zone's names that must not be asked of the real internet.
OWN_SUFFIXES = (".test", ".openrouter.ai", ".telegram.org", ".machines.dev")


class LabResolver(BaseResolver):
    """Answers the zone itself and forwards the rest to `upstream`, an IPv4 address."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.texts: dict[str, list[str]] = {}

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """Answer one question."""
        name = str(request.q.qname).rstrip(".").lower()
        kind = QTYPE[request.q.qtype]
        if not f".{name}".endswith(OWN_SUFFIXES):
            return self.forward(request, kind, handler.protocol)
        reply = request.reply()
        reply.header.aa = 1
        address = find_address(name)
        if kind == "A" and address:
            reply.add_answer(RR(name, QTYPE.A, rdata=A(address), ttl=TTL))
        elif kind == "TXT":
            for text in self.texts.get(name, []):
                reply.add_answer(RR(name, QTYPE.TXT, rdata=TXT(text), ttl=0))
        elif kind in ("NS", "SOA") and name == "example.test":
            rdata = NS("ns.example.test") if kind == "NS" else SOA("ns.example.test", "root.example.test")
            reply.add_answer(RR(name, request.q.qtype, rdata=rdata, ttl=TTL))
        elif not address and name not in self.texts and name not in ("test", "example.test"):
            reply.header.rcode = RCODE.NXDOMAIN
        if not reply.rr:
            soa = SOA("ns.example.test", "root.example.test", (1, 60, 60, 60, TTL))
            reply.add_auth(RR("example.test", QTYPE.SOA, rdata=soa, ttl=TTL))
        return reply

    def forward(self, request: DNSRecord, kind: str, protocol: str) -> DNSRecord:
        """Ask the machine's resolver; the simulated internet is joined to the real one by IPv4 only."""
        if kind == "AAAA":
            return request.reply()
        try:
            return DNSRecord.parse(request.send(self.upstream, 53, tcp=protocol == "tcp", timeout=5))
        except OSError:
            reply = request.reply()
            reply.header.rcode = RCODE.SERVFAIL
            return reply


def find_address(name: str) -> str | None:
    """Return the IPv4 address of a name of the zone, by itself or by the wildcard that covers it."""
    if name == "ns.example.test":
        return DNS_ADDRESS
    labels = name.split(".")
    wildcards = ("*." + ".".join(labels[depth:]) for depth in range(1, len(labels)))
    return next((ZONE[key] for key in (name, *wildcards) if key in ZONE), None)


def text_server(host: str, port: int, texts: dict[str, list[str]]) -> ThreadingHTTPServer:
    """Return the HTTP server that puts TXT records into `texts` and takes them out again."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            values = texts.setdefault(body["fqdn"].rstrip(".").lower(), [])
            if self.path == "/present":
                values.append(body["value"])
            elif self.path == "/cleanup" and body["value"] in values:
                values.remove(body["value"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return ThreadingHTTPServer((host, port), Handler)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=53)
    parser.add_argument("--http-port", type=int, default=80)
    parser.add_argument("--forward", required=True)
    arguments = parser.parse_args()
    resolver = LabResolver(arguments.forward)
    for tcp in (False, True):
        DNSServer(
            resolver, address=arguments.host, port=arguments.port, tcp=tcp, logger=DNSLogger("-reply")
        ).start_thread()
    http = text_server(arguments.host, arguments.http_port, resolver.texts)
    threading.Thread(target=http.serve_forever).start()


if __name__ == "__main__":
    main()
