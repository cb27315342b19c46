"""A plain place on the internet, run in a container of its own: `python3 website.py PORT…`.

Every address of the container answers: its public one, and the ones a bot must never reach (a metadata
service and a private host). HTTP on every port but 25, where an SMTP banner is sent: a test sees by the
answer, or its absence, whether a packet arrived. Only the standard library: the container has no other.
"""

import socketserver
import sys
import threading


class Answer(socketserver.BaseRequestHandler):
    """Says who asked whom, then hangs up."""

    def handle(self) -> None:
        address, port = self.request.getsockname()
        if port == 25:
            self.request.sendall(b"220 website.example.test ESMTP\r\n")
            return
        self.request.settimeout(10)
        self.request.recv(4096)
        body = f"{address} answers {self.client_address[0]}\n".encode()
        self.request.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )


class Server(socketserver.ThreadingTCPServer):
    """One listening port on all addresses of the container."""

    allow_reuse_address = True
    request_queue_size = 512
    daemon_threads = True


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        threading.Thread(target=Server(("0.0.0.0", int(argument)), Answer).serve_forever).start()
