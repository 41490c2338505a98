"""Mails about money: who is told what, and the outbox that they wait in until the server has taken them.

A mail's row is written in the transaction of what it tells, so none is lost and none tells what was rolled back. It is sent
afterwards; a mail whose sender was killed is sent again, under the same id.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Sequence
from datetime import timedelta
from email.utils import parseaddr
from smtplib import SMTPException

from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import F, Q
from django.db.models.functions import Now

from accounts.models import Role, User
from billing.errors import ApprovalNeededError
from billing.models import Budget, BudgetNotice, OutgoingMail
from common.database import now_plus

logger = logging.getLogger(__name__)
SENDING_SECONDS = 120
"""Who takes a mail to send it has so long, then it is due again."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 60, 3600
MOST_TRIES = 30
"""About a day."""
KEPT = timedelta(days=30)
PER_RUN = 200


def notices_tell(notices: Sequence[BudgetNotice]) -> None:
    """Write to those who answer for the budgets. Inside the transaction that wrote the notices."""
    for notice in notices:
        account, threshold = notice.period, notice.threshold
        budget = account.budget
        text = (
            f"Budget {budget.name} ({budget.get_scope_display()}, {account.period}) has passed {threshold.percent} % of its "
            f"limit of {budget.limit:f} {budget.currency}: {account.spent:f} is spent and {account.held:f} held.\n"
            f"It was passed by {f'job {notice.job_id}' if notice.job_id else 'deployed instances'}.\n"
            f"What happens there: {threshold.get_action_display().lower()}.\n"
        )
        subject = f"Budget {one_line(budget.name)}: {threshold.percent} % passed"
        _write(budget, f"notice:{account.pk}:{threshold.pk}", subject, text)


def approval_asked(job_id: uuid.UUID, needed: ApprovalNeededError) -> None:
    """Write to those who may approve a held job."""
    budget = needed.account.budget
    text = f"Job {job_id} waits for an approval. {needed.message}\nIt is approved or declined on the jobs' page of the admin.\n"
    _write(budget, f"approval:{job_id}", f"Job waits for approval: budget {one_line(budget.name)}", text)


def mails_send() -> int:
    """Send what is due, oldest first; returns how many the server took. Running it twice at once sends nothing twice."""
    due = OutgoingMail.objects.filter(due_at__lte=Now()).order_by("pk").values_list("pk", flat=True)
    return sum(_send(pk) for pk in list(due[:PER_RUN]))


def mails_forget() -> None:
    """Addresses and texts are not kept longer than somebody may ask about them."""
    old = OutgoingMail.objects.filter(due_at=None, created_at__lt=now_plus(-KEPT.total_seconds()))
    old.delete()


def mail_again(mail: OutgoingMail) -> None:
    """Have a mail sent that was given up, or once more."""
    OutgoingMail.objects.filter(pk=mail.pk).update(due_at=Now(), sent_at=None, tries=0)


def _write(budget: Budget, key: str, subject: str, text: str) -> None:
    if not settings.MAIL_FROM:
        return
    OutgoingMail.objects.bulk_create(
        [
            OutgoingMail(key=f"{key}:{user.pk}", to=user.email, subject=subject[:200], text=text)
            for user in _who_answers_for(budget)
        ],
        ignore_conflicts=True,
    )


def one_line(name: str) -> str:
    """A line break would begin another header."""
    return " ".join(name.split())


def _who_answers_for(budget: Budget) -> list[User]:
    """The leads of the budget's team; of what concerns all teams, who runs the platform and who looks after its money."""
    if budget.team_id:
        leads = Q(memberships__team=budget.team_id, memberships__role=Role.LEAD)
    else:
        leads = Q(is_superuser=True) | Q(is_finance=True, is_staff=True)
    return list(User.objects.filter(leads, is_active=True).exclude(email="").order_by("pk").distinct())


def _send(pk: int) -> bool:
    taken = OutgoingMail.objects.filter(pk=pk, due_at__lte=Now())
    if not taken.update(due_at=now_plus(SENDING_SECONDS), tries=F("tries") + 1):
        return False  # another worker was faster
    mail = OutgoingMail.objects.get(pk=pk)
    rows = OutgoingMail.objects.filter(pk=pk)
    try:
        EmailMessage(
            mail.subject, mail.text, settings.MAIL_FROM, [mail.to], headers={"Message-ID": message_id(mail)}
        ).send()
    except (SMTPException, OSError, ValueError) as error:
        delay = min(FIRST_DELAY_SECONDS * 2 ** min(mail.tries - 1, 16), LONGEST_DELAY_SECONDS)
        due = now_plus(delay) if mail.tries < MOST_TRIES else None
        rows.update(due_at=due, error=f"{type(error).__name__}: {error}"[:300].replace("\x00", ""))
        logger.warning("Mail %s was not taken, try %d: %s", pk, mail.tries, error)
        return False
    rows.update(due_at=None, sent_at=Now(), error="")
    return True


def message_id(mail: OutgoingMail) -> str:
    """The same at every try, so that a mail that comes twice is known to be one."""
    domain = parseaddr(settings.MAIL_FROM)[1].rpartition("@")[2]
    return f"<{hashlib.sha256(mail.key.encode()).hexdigest()[:32]}@{domain}>"
