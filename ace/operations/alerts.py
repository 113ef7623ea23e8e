"""Tell people what went wrong, by a webhook or by mail, and an outside watch that the service is alive.

No secret is a parameter: addresses with a token in them and passwords are environment variables, and no error here
quotes them.
"""

import json
import os
import smtplib
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from http.client import HTTPException, HTTPMessage
from typing import IO, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ace.operations.params import AlertsParams, MailParams
from shards.core.errors import ConfigError, UserError

WEBHOOK, PING, PASSWORD = "ACE_ALERT_WEBHOOK", "ACE_PING_URL", "ACE_SMTP_PASSWORD"
"""Environment variables; their values are secrets."""
TIMEOUT_S = 5
"""Seconds that a server may take for a step of an answer: Dagster gives up a sensor's tick after a minute."""


class NotSentError(UserError):
    """A message or ping did not arrive; it can be tried again."""


@dataclass(frozen=True)
class Message:
    """One message about all new things of one kind; it holds nothing of patients.

    Attributes:
        title: What kind of thing happened, as `runs failed`.
        lines: What happened, a line each.
        more: Command or page that shows more.
    """

    title: str
    lines: Sequence[str]
    more: str

    @property
    def subject(self) -> str:
        """Say on which machine what happened, in a line."""
        return f"ACE on {socket.gethostname()}: {self.title}"

    @property
    def text(self) -> str:
        """Write the message for people."""
        return "\n".join([self.subject, *(f"- {line}" for line in self.lines), f"More: {self.more}"])


class Channel(Protocol):
    """A way to people."""

    @property
    def name(self) -> str:
        """Return what people and the sensor's memory call it."""
        ...

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            NotSentError: it did not arrive.
        """
        ...


@dataclass(frozen=True)
class Webhook:
    """A POST of JSON: `text` for people, as chat programs read it, and the same in parts for programs."""

    url: str = field(repr=False)
    name: str = "webhook"

    def send(self, message: Message) -> None:
        """Send a message."""
        content = {"text": message.text, "title": message.title, "lines": [*message.lines], "more": message.more}
        _request(WEBHOOK, self.url, json.dumps(content).encode())


@dataclass(frozen=True)
class Mail:
    """A mail through the server that the section `operations.alerts.mail` names."""

    params: MailParams
    password: str | None = field(repr=False)
    name: str = "mail"

    def send(self, message: Message) -> None:
        """Send a message."""
        params, mail = self.params, EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = message.subject, params.sender, ", ".join(params.to)
        mail["Date"], mail["Message-ID"] = format_datetime(datetime.now(UTC)), make_msgid()
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.text)
        with _named(f"mail to {params.host}"), self._connection() as server:
            if params.user is not None:
                if self.password is None:
                    raise NotSentError(f"{PASSWORD} is not set, and operations.alerts.mail names a user")
                server.login(params.user, self.password)
            server.send_message(mail)

    @contextmanager
    def _connection(self) -> Iterator[smtplib.SMTP]:
        params, context = self.params, ssl.create_default_context()
        if params.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(params.host, params.port, timeout=TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(params.host, params.port, timeout=TIMEOUT_S)
        with server:
            if params.security == "starttls":
                server.starttls(context=context)
            yield server


def open_channels(params: AlertsParams, environment: Mapping[str, str] = os.environ) -> list[Channel]:
    """Return all ways to people that are configured.

    Raises:
        ConfigError: there is none.
    """
    channels: list[Channel] = []
    if url := environment.get(WEBHOOK):
        channels.append(Webhook(url))
    if params.mail is not None:
        channels.append(Mail(params.mail, environment.get(PASSWORD)))
    if not channels:
        raise ConfigError(f"operations.alerts: found nobody to tell; set {WEBHOOK}, or fill operations.alerts.mail")
    return channels


def ping(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell an outside watch that the service is alive: whoever hears nothing for long raises the alarm.

    Returns:
        False if there is no such watch.

    Raises:
        NotSentError: it cannot be reached.
    """
    url = environment.get(PING)
    if url:
        _request(PING, url, None)
    return bool(url)


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST would become a GET, and the message would be lost without an error."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _request(variable: str, url: str, body: bytes | None) -> None:
    """Give a URL a body by POST, or ask it by GET; errors name the variable and not what it holds."""
    with _named(variable):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NotSentError(f"{variable}: expected an address that begins with http:// or https://, and a host")
        request = Request(url, body, {"Content-Type": "application/json"} if body else {})
        build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S).close()


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn whatever goes wrong into a sentence that holds no address with a token and no password."""
    try:
        yield
    except HTTPError as error:
        with error:
            raise NotSentError(f"{what}: the server answered {error.code}") from None
    except smtplib.SMTPResponseException as error:
        raise NotSentError(f"{what}: the server answered {error.smtp_code}") from None
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        raise NotSentError(f"{what}: {getattr(cause, 'strerror', None) or type(cause).__name__}") from None
