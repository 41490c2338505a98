"""Thresholds reach people: a notice, and a mail from an outbox that loses none and sends each under one id (M9, I20)."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message

import pytest
from django.core.exceptions import ImproperlyConfigured

from accounts.models import Role, User
from billing.errors import ApprovalNeededError, BudgetExceededError
from billing.mails import MOST_TRIES, mail_again, mails_forget, mails_send
from billing.models import BudgetNotice, OutgoingMail
from common.database import now_plus
from renderjobs.models import RenderJob
from renderjobs.models.jobs import Source
from renderjobs.submission import job_submit
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_job, a_platform, a_request

pytestmark = pytest.mark.django_db


class MailServer(socketserver.ThreadingTCPServer):
    """Enough of SMTP to take mails, or to refuse them."""

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.taken: list[Message] = []
        self.refuses = False


class Conversation(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.wfile.write(b"220 ready\r\n")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"RCPT" and self.server.refuses:
                self.wfile.write(b"451 later\r\n")
            elif verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.taken.append(message_from_bytes(text))
                self.wfile.write(b"250 taken\r\n")
            elif verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 fine\r\n")


@pytest.fixture
def mail_server(settings) -> Iterator[MailServer]:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    with MailServer() as server:
        settings.EMAIL_HOST, settings.EMAIL_PORT = server.server_address
        settings.MAIL_FROM = "Renderkiln <render@example.org>"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def a_lead(team: str = "team-a", name: str = "lena"):
    lead = a_caller(team, name, role=Role.LEAD)
    User.objects.filter(pk=lead.user.pk).update(email=f"{name}@example.org")
    return lead


def test_m9_each_threshold_is_told_once_to_the_leads_of_the_team(mail_server):
    caller = a_caller()
    a_lead()
    a_lead("team-b", "eve")
    # A job holds 0.03: a third, two thirds, all of it, more.
    a_budget("team", limit="0.09", team=caller.team, thresholds=((50, "notify"), (80, "notify"), (100, "notify")))
    for _ in range(4):
        a_job(caller)
    assert BudgetNotice.objects.count() == 3
    assert mails_send() == 3 and mails_send() == 0
    assert [mail["To"] for mail in mail_server.taken] == ["lena@example.org"] * 3
    assert [mail["Subject"] for mail in mail_server.taken] == [f"Budget team: {n} % passed" for n in (50, 80, 100)]
    text = mail_server.taken[0].get_payload()
    job = RenderJob.objects.order_by("pk")[1]
    assert "0.090000 USD: 0.000000 is spent and 0.060000 held" in text and str(job.pk) in text
    assert mail_server.taken[0]["From"] == "Renderkiln <render@example.org>"


def test_m9_a_job_that_waits_for_an_approval_is_told_to_who_may_approve(mail_server):
    caller = a_caller()
    a_lead()
    User.objects.create_superuser("root", email="root@example.org")
    a_budget("team", limit="0", team=caller.team, thresholds=((100, "approval"),))
    job = a_job(caller)
    assert job.state == "held" and mails_send() == 2
    subjects = {mail["Subject"]: mail for mail in mail_server.taken}
    asked = subjects["Job waits for approval: budget team"]
    assert str(job.pk) in asked.get_payload() and {mail["To"] for mail in mail_server.taken} == {"lena@example.org"}


def test_a_budget_of_all_teams_is_told_to_who_runs_the_platform_and_to_finance(mail_server):
    a_lead()
    User.objects.create_superuser("root", email="root@example.org")
    User.objects.create_user("fin", email="fin@example.org", is_finance=True, is_staff=True)
    User.objects.create_user("gone", email="gone@example.org", is_finance=True, is_staff=True, is_active=False)
    User.objects.create_superuser("without an address")
    a_budget("organisation", limit="0.01", thresholds=((100, "notify"),))
    a_job()
    mails_send()
    assert sorted(mail["To"] for mail in mail_server.taken) == ["fin@example.org", "root@example.org"]


@pytest.mark.parametrize("refusal", ["block", "approval"])
def test_i20_what_is_rolled_back_is_told_to_nobody(mail_server, refusal):
    a_platform()
    caller = a_caller()
    a_lead()
    a_budget("team", limit="0.03", name="warns", team=caller.team, thresholds=((1, "notify"),))
    a_budget("member", limit="0", team=caller.team, user=caller.user, thresholds=((100, refusal),))
    with pytest.raises((BudgetExceededError, ApprovalNeededError)):
        job_submit(caller=caller, request=a_request(), source=Source.SDAPI)
    assert not OutgoingMail.objects.exists() and not BudgetNotice.objects.exists()


def test_i20_a_refused_mail_is_tried_again_later_under_the_same_id_and_given_up_in_the_end(mail_server):
    caller = a_caller()
    a_lead()
    a_budget("team", limit="0.01", team=caller.team, thresholds=((100, "notify"),))
    a_job(caller)
    mail_server.refuses = True
    assert mails_send() == 0 == mails_send()
    mail = OutgoingMail.objects.get()
    assert mail.tries == 1 and "451" in mail.error and mail.sent_at is None
    OutgoingMail.objects.update(due_at=now_plus(-1), tries=MOST_TRIES - 1)
    mails_send()
    mail.refresh_from_db()
    assert mail.due_at is None and mail.sent_at is None
    mail_server.refuses = False
    mail_again(mail)
    assert mails_send() == 1
    mail_again(mail)
    assert mails_send() == 1
    assert len({taken["Message-ID"] for taken in mail_server.taken}) == 1 and len(mail_server.taken) == 2


def test_i20_a_mail_whose_sender_was_killed_is_due_again(mail_server):
    caller = a_caller()
    a_lead()
    a_budget("team", limit="0.01", team=caller.team, thresholds=((100, "notify"),))
    a_job(caller)
    OutgoingMail.objects.update(due_at=now_plus(60), tries=1)  # as it is while it is being sent
    assert mails_send() == 0
    OutgoingMail.objects.update(due_at=now_plus(-1))
    assert mails_send() == 1


def test_a_line_break_in_a_budgets_name_writes_no_header(mail_server):
    caller = a_caller()
    a_lead()
    a_budget("team", limit="0.01", name="x\nBcc: eve@example.org", team=caller.team, thresholds=((100, "notify"),))
    a_job(caller)
    assert mails_send() == 1
    (mail,) = mail_server.taken
    assert mail["Bcc"] is None and mail["Subject"] == "Budget x Bcc: eve@example.org: 100 % passed"


def test_without_a_server_no_mail_is_written_and_the_notice_stays(settings):
    settings.MAIL_FROM = ""
    caller = a_caller()
    a_lead()
    a_budget("team", limit="0.01", team=caller.team, thresholds=((100, "notify"),))
    a_job(caller)
    assert BudgetNotice.objects.count() == 1 and not OutgoingMail.objects.exists()


def test_mails_are_forgotten_after_a_month(mail_server):
    for key, days in (("old", 31), ("new", 1)):
        OutgoingMail.objects.create(key=key, to="a@example.org", subject="x", text="x", due_at=None, tries=1)
        OutgoingMail.objects.filter(key=key).update(created_at=now_plus(-days * 86_400))
    mails_forget()
    assert OutgoingMail.objects.get().key == "new"


@pytest.mark.parametrize("address", ["smtp://mail.example.org", "smtp://?from=a@example.org", "http://x?from=a@b"])
def test_a_wrong_address_of_the_mail_server_stops_the_start(monkeypatch, address):
    import importlib

    from config.settings import mail

    monkeypatch.setenv("MAIL_URL", address)
    with pytest.raises(ImproperlyConfigured, match="MAIL_URL"):
        importlib.reload(mail)
    monkeypatch.setenv("MAIL_URL", "smtp+starttls://user:p%40ss@mail.example.org?from=Render+<render@example.org>")
    found = importlib.reload(mail)
    assert (found.EMAIL_PORT, found.EMAIL_HOST_PASSWORD, found.EMAIL_USE_TLS) == (587, "p@ss", True)
    assert found.MAIL_FROM == "Render <render@example.org>"
    monkeypatch.delenv("MAIL_URL")
    assert importlib.reload(mail).MAIL_FROM == ""
