"""Servers on loopback that alerts are sent to: a webhook, and a mail server with STARTTLS and a login."""

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer


@dataclass
class Hook:
    """What an HTTP server was asked, and what it answers.

    Attributes:
        url: Its address, with a token in it.
        posted: The bodies of all POSTs that it took.
        pings: How often it was asked by GET.
        codes: Answers to the next requests; then 200.
    """

    url: str
    posted: list[dict] = field(default_factory=list)
    pings: int = 0
    codes: list[int] = field(default_factory=list)

    @property
    def titles(self) -> list[str]:
        return [body["title"] for body in self.posted]


@contextmanager
def hook_server(token: str = "token") -> Iterator[Hook]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, *, is_post: bool) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code = hook.codes.pop(0) if hook.codes else 200
            if code == 200 and is_post:
                assert self.headers["Content-Type"] == "application/json"
                hook.posted.append(json.loads(body))
            hook.pings += code == 200 and not is_post
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self._answer(is_post=True)

        def do_GET(self) -> None:
            self._answer(is_post=False)

        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hook = Hook(f"http://127.0.0.1:{server.server_address[1]}/{token}")
        with _serving(server):
            yield hook


@dataclass
class Post:
    """What a mail server took, and what it answers.

    Attributes:
        port: Its port on loopback.
        mails: The mails, with whom they go to.
        logins: User and password of each login, and whether the connection was encrypted.
        codes: Verb → the answer to it, where it is another one than usual.
    """

    port: int
    mails: list[tuple[list[str], Message]] = field(default_factory=list)
    logins: list[tuple[str, str, bool]] = field(default_factory=list)
    codes: dict[str, str] = field(default_factory=dict)


@contextmanager
def mail_server(certificate: Path | None = None) -> Iterator[Post]:
    """Run a mail server, which offers STARTTLS if it has a certificate with its key in one file."""

    class Handler(StreamRequestHandler):
        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

        def finish(self) -> None:
            super().finish()
            self.request.close()  # the server closes the one below TLS alone

        def handle(self) -> None:
            is_encrypted, receivers = False, []
            self.say("220 here")
            while line := self.rfile.readline().decode().strip():
                verb, _, rest = line.partition(" ")
                if verb.upper() in post.codes:
                    self.say(post.codes[verb.upper()])
                    continue
                match verb.upper():
                    case "EHLO":
                        offer = "AUTH PLAIN" if is_encrypted else "STARTTLS" if certificate else "8BITMIME"
                        self.say(f"250-here\r\n250 {offer}")
                    case "STARTTLS":
                        self.say("220 go")
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        context.load_cert_chain(str(certificate))
                        try:
                            self.request = context.wrap_socket(self.request, server_side=True)
                        except OSError:  # whoever calls does not trust the certificate
                            return
                        self.setup()
                        is_encrypted = True
                    case "AUTH":
                        _, user, password = base64.b64decode(rest.removeprefix("PLAIN ")).decode().split("\0")
                        post.logins.append((user, password, is_encrypted))
                        self.say("235 yes")
                    case "RCPT":
                        receivers.append(rest[len("TO:") :].strip("<>"))
                        self.say("250 yes")
                    case "DATA":
                        self.say("354 go")
                        lines = []
                        while (data := self.rfile.readline()) != b".\r\n":
                            lines.append(data)
                        post.mails.append((receivers, message_from_bytes(b"".join(lines))))
                        receivers = []
                        self.say("250 taken")
                    case "QUIT":
                        self.say("221 bye")
                        return
                    case _:
                        self.say("250 yes")

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        post = Post(server.server_address[1])
        with _serving(server):
            yield post


@contextmanager
def _serving(server: ThreadingTCPServer | ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def make_certificate(folder: Path) -> Path:
    """Make a certificate of localhost, with its key in the same file."""
    path = folder / "localhost.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", str(folder / "only.pem")]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    path.write_text(path.read_text() + (folder / "only.pem").read_text())
    return path
