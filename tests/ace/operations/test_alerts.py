"""Messages and pings, to real servers on loopback."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ace.__main__ import build_parser
from ace.operations import alerts
from ace.operations.alerts import PASSWORD, PING, WEBHOOK, Mail, Message, NotSentError, Webhook, open_channels, ping
from ace.operations.params import AlertsParams, MailParams, OperationsParams
from shards.cli import run_command
from shards.core.errors import ConfigError
from tests.pipelines.test_process import free_port
from tests.support.told import hook_server, mail_server, make_certificate

MESSAGE = Message("runs failed", ["run 1 of deliveries", "run 2 of retrain"], "python -m ace ops status")
SECRET = "s3cret"


def mail_params(port: int, **others: object) -> MailParams:
    values = {"host": "localhost", "port": port, "security": "none", "sender": "ace@here.org", "to": ["anna@here.org"]}
    return MailParams.from_params({**values, **others}, "params.yaml: operations.alerts.mail")


def test_a_webhook_is_given_the_message_as_text_and_in_parts() -> None:
    with hook_server() as hook:
        Webhook(hook.url).send(MESSAGE)
    (body,) = hook.posted
    assert body["text"].splitlines()[1:] == [
        "- run 1 of deliveries",
        "- run 2 of retrain",
        "More: python -m ace ops status",
    ]
    assert (body["title"], body["lines"], body["more"]) == (MESSAGE.title, MESSAGE.lines, MESSAGE.more)


def test_a_mail_reaches_everybody_who_is_named() -> None:
    with mail_server() as post:
        Mail(mail_params(post.port, to=["anna@here.org", "ben@here.org"]), None).send(MESSAGE)
    ((receivers, mail),) = post.mails
    assert receivers == ["anna@here.org", "ben@here.org"]
    assert (mail["From"], mail["To"]) == ("ace@here.org", "anna@here.org, ben@here.org")
    assert mail["Subject"].endswith("runs failed")
    assert mail["Auto-Submitted"] == "auto-generated"
    assert "run 2 of retrain" in str(mail.get_payload())


def test_a_login_is_made_over_an_encrypted_connection_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path)
    with mail_server(certificate) as post:
        channel = Mail(mail_params(post.port, security="starttls", user="ace"), SECRET)
        with pytest.raises(NotSentError, match="certificate"):
            channel.send(MESSAGE)
        assert not post.logins
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        channel.send(MESSAGE)
    assert post.logins == [("ace", SECRET, True)]
    assert len(post.mails) == 1
    with mail_server() as post, pytest.raises(NotSentError):
        Mail(mail_params(post.port, security="starttls", user="ace"), SECRET).send(MESSAGE)  # which it does not offer
    assert not post.mails


@pytest.mark.parametrize("code", [404, 503, 302])
def test_whatever_is_not_taken_is_not_sent(code: int) -> None:
    with hook_server() as hook:
        hook.codes = [code, code]
        with pytest.raises(NotSentError, match=f"{WEBHOOK}: the server answered {code}"):
            Webhook(hook.url).send(MESSAGE)
        with pytest.raises(NotSentError, match=f"{PING}: the server answered {code}"):
            ping({PING: hook.url})
        assert (hook.posted, hook.pings) == ([], 0)
        assert ping({PING: hook.url})
    assert hook.pings == 1


def test_without_an_address_nothing_is_pinged() -> None:
    assert not ping({})


def test_a_file_that_can_be_read_is_no_watch() -> None:
    with pytest.raises(NotSentError, match="expected an address that begins with http"):
        ping({PING: Path(__file__).as_uri()})


def webhook_of(url: str) -> Callable[[], None]:
    return lambda: Webhook(url).send(MESSAGE)


def mail_of(codes: dict[str, str], **others: object) -> Callable[[], None]:
    def send() -> None:
        with mail_server() as post:
            post.codes = codes
            Mail(mail_params(post.port, **others), SECRET).send(MESSAGE)

    return send


@pytest.mark.parametrize(
    "send",
    [
        webhook_of(f"http://127.0.0.1:{free_port()}/{SECRET}"),
        webhook_of(f"http://[{SECRET}"),
        webhook_of(f"http://host /{SECRET}"),
        webhook_of(f"file:///{SECRET}"),
        webhook_of(f"{SECRET}"),
        webhook_of(f"https:///{SECRET}"),
        webhook_of(f"http://user:{SECRET}@127.0.0.1:port/"),
        mail_of({"RCPT": f"550 no such box {SECRET}"}),
        mail_of({"DATA": f"554 spam {SECRET}"}),
        mail_of({"EHLO": f"500 {SECRET}", "HELO": f"500 {SECRET}"}),
        mail_of({}, user="ace"),
    ],
)
def test_an_error_says_nothing_of_what_is_secret(send: Callable[[], None]) -> None:
    with pytest.raises(NotSentError, match=rf"{WEBHOOK}|localhost") as caught:
        send()
    assert SECRET not in str(caught.value)
    assert not str(caught.value).endswith(": str"), "says nothing of what is wrong"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_what_is_shown_of_a_channel_has_no_secret() -> None:
    shown = f"{Webhook(SECRET)} {Mail(mail_params(25), SECRET)}"
    assert SECRET not in shown


def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_a_tick_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for channel in (Webhook(f"http://127.0.0.1:{port}"), Mail(mail_params(port), None)):
            began = time.monotonic()
            with pytest.raises(NotSentError):
                channel.send(MESSAGE)
            assert time.monotonic() - began < 3


def test_a_user_without_a_password_is_told_which_variable_to_set() -> None:
    with mail_server() as post, pytest.raises(NotSentError, match=PASSWORD):
        Mail(mail_params(post.port, user="ace"), None).send(MESSAGE)


def test_there_are_as_many_ways_as_are_configured() -> None:
    by_mail = AlertsParams(mail=mail_params(25))
    assert [channel.name for channel in open_channels(by_mail, {WEBHOOK: "http://here"})] == ["webhook", "mail"]
    assert [channel.name for channel in open_channels(by_mail, {WEBHOOK: ""})] == ["mail"]
    assert [channel.name for channel in open_channels(AlertsParams(), {WEBHOOK: "http://here"})] == ["webhook"]
    with pytest.raises(ConfigError, match="found nobody to tell"):
        open_channels(AlertsParams(), {})


@pytest.mark.parametrize(
    ("section", "where"),
    [
        ({"mail": {"host": "here", "sender": "ace", "to": ["a@b"]}}, "mail.sender"),
        ({"mail": {"host": "here", "sender": "a@b", "to": []}}, "mail.to"),
        ({"mail": {"host": "here", "sender": "a@b\nBcc: c@d", "to": ["a@b"]}}, "mail.sender"),
        ({"mail": {"host": "here", "sender": "a@b", "to": ["a@b"], "password": "x"}}, "mail.password"),
        ({"audit": "daily"}, "audit"),
    ],
)
def test_a_section_that_means_nothing_is_refused(section: dict, where: str) -> None:
    with pytest.raises(ConfigError, match=f"operations.alerts.{where}"):
        OperationsParams.from_params({"alerts": section}, "params.yaml: operations")


def test_the_command_sends_a_test_and_says_what_did_not_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def test_alert() -> int:
        return run_command(build_parser(), ["ops", "test-alert", "--params", str(tmp_path / "params.yaml")])

    (tmp_path / "params.yaml").write_text("operations: {alerts: }\n")
    assert test_alert() == 2
    assert "operations.alerts is empty" in capsys.readouterr().err
    with hook_server(SECRET) as hook, mail_server() as post:
        sender = f"{{host: localhost, port: {post.port}, security: none, sender: a@b, to: [c@d]}}"
        (tmp_path / "params.yaml").write_text(f"operations: {{alerts: {{mail: {sender}}}}}\n")
        monkeypatch.setenv(WEBHOOK, hook.url)
        monkeypatch.delenv(PING, raising=False)
        assert test_alert() == 0
        out = capsys.readouterr().out
        assert f"{PING} is not set" in out
        assert (hook.titles, len(post.mails), hook.pings) == (["this is a test"], 1, 0)
        monkeypatch.setenv(PING, hook.url)
        assert test_alert() == 0
        out += capsys.readouterr().out
        assert (len(hook.posted), len(post.mails), hook.pings) == (2, 2, 1)
        hook.codes = [500, 500]
        assert test_alert() == 1
        shown = capsys.readouterr()
        for codes in ([500, 200], [200, 500]):
            hook.codes = codes
            assert test_alert() == 1, codes
    assert len(post.mails) == 5, "one way that fails keeps nothing from the others"
    assert "mail: sent" in shown.out
    assert shown.err.splitlines() == [
        f"not sent: {WEBHOOK}: the server answered 500",
        f"no ping: {PING}: the server answered 500",
    ]
    assert SECRET not in out + shown.out + shown.err
