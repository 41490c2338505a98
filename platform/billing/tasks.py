"""Celery tasks of the CPU workers about money. Each may run twice, late or never."""

from __future__ import annotations

from celery import shared_task

from billing.allocation import idle_settle
from billing.deployments import deployments_settle
from billing.mails import mails_forget, mails_send


@shared_task(name="billing.settle_idle")
def settle_idle() -> None:
    idle_settle()


@shared_task(name="billing.settle_deployments")
def settle_deployments() -> None:
    deployments_settle()


@shared_task(name="billing.send_mails")
def send_mails() -> None:
    mails_send()
    mails_forget()
