"""The second factor: nobody is in before it, a code counts once, a lost device has its way out, and its secrets stay secret."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from auditlog.models import LogEntry
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.models import RecoveryCode, User
from accounts.pending import KEY
from accounts.second_factor import second_factor_accept, second_factor_set
from common.errors import InvalidRequestError
from tests.accounts.people import (
    PASSWORD,
    a_person,
    code_of,
    is_in,
    key_shown,
    sign_in,
    with_second_factor,
    wrong_code,
)

pytestmark = pytest.mark.django_db


def give(browser: Client, code: str, page: str = "login_code", **more: str):
    return browser.post(reverse(f"admin:{page}"), {"code": code, **more})


def test_p13_password_and_code_open_the_page_that_was_asked_for():
    key, _ = with_second_factor(a_person())
    browser, asked = Client(), reverse("admin:accounts_team_changelist")
    answer = browser.post(
        f"{reverse('admin:login')}?next={asked}", {"username": "root", "password": PASSWORD, "next": asked}
    )
    assert answer.url == reverse("admin:login_code") and not is_in(browser)
    assert "six digits" in browser.get(answer.url).content.decode()
    assert give(browser, code_of(key)).url == asked and is_in(browser)


def test_p13_between_password_and_code_nobody_is_signed_in():
    with_second_factor(a_person())
    browser = Client()
    sign_in(browser)
    assert (
        "_auth_user_id" not in browser.session
        and not LogEntry.objects.filter(additional_data__did="signed in").exists()
    )
    assert browser.post("/api/v1/uploads", headers={"Tus-Resumable": "1.0.0"}).status_code in (401, 403)


@pytest.mark.parametrize("wrong", [None, "12345", "aaaaa-aaaaa", "", "１２３４５６", "x" * 400])
def test_a_wrong_code_opens_nothing(wrong):
    key, _ = with_second_factor(a_person())
    browser = Client()
    sign_in(browser)
    assert give(browser, wrong_code(key) if wrong is None else wrong).status_code == 200 and not is_in(browser)


def test_a_code_counts_once():
    key, _ = with_second_factor(a_person())
    code = code_of(key)
    for expected in (True, False):
        browser = Client()
        sign_in(browser)
        give(browser, code)
        assert is_in(browser) is expected


def test_after_wrong_codes_even_the_right_one_waits():
    user = a_person()
    key, codes = with_second_factor(user)
    for _ in range(4):
        TOTPDevice.objects.update(throttling_failure_timestamp="2020-01-01T00:00Z")
        assert second_factor_accept(user=user, code="aaaaa-aaaaa") is None
    TOTPDevice.objects.update(throttling_failure_timestamp=timezone.now() + timedelta(hours=1))  # however slow this is
    for right in (code_of(key), codes[0]):
        with pytest.raises(InvalidRequestError, match="looked at 8 s after the last"):
            second_factor_accept(user=user, code=right)
    assert RecoveryCode.objects.count() == 10


def test_a_recovery_code_opens_once_however_it_is_typed():
    _, codes = with_second_factor(a_person())
    for typed, expected in ((codes[0].upper(), True), (codes[0], False), (codes[1].replace("-", " "), True)):
        TOTPDevice.objects.update(throttling_failure_count=0)
        browser = Client()
        sign_in(browser)
        give(browser, typed)
        assert is_in(browser) is expected
    assert RecoveryCode.objects.count() == 8


def test_nobody_elses_recovery_code_opens():
    with_second_factor(a_person())
    _, codes = with_second_factor(a_person("other"))
    browser = Client()
    sign_in(browser)
    give(browser, codes[0])
    assert not is_in(browser)


def test_the_password_alone_lasts_ten_minutes(settings):
    key, _ = with_second_factor(a_person())
    browser = Client()
    sign_in(browser)
    session = browser.session
    session[KEY] = {**session[KEY], "at": session[KEY]["at"] - settings.SECOND_FACTOR_SECONDS - 1}
    session.save()
    assert give(browser, code_of(key)).url == reverse("admin:login") and not is_in(browser)


def test_a_password_changed_in_between_ends_the_beginning():
    user = a_person()
    key, _ = with_second_factor(user)
    browser = Client()
    sign_in(browser)
    user.set_password("another long password")
    user.save()
    assert give(browser, code_of(key)).url == reverse("admin:login") and not is_in(browser)


def test_a_person_sets_it_up_with_a_picture_or_a_key_and_sees_the_codes_once():
    a_person()
    browser, elsewhere = Client(), Client()
    for one in (browser, elsewhere):
        sign_in(one)
    address = reverse("admin:second_factor_new")
    page = browser.get(address).content.decode()
    assert "<svg" in page and "http" not in re.search(r"<svg.*?</svg>", page, re.S)[0].replace("http://www.w3.org", "")
    key = key_shown(page)
    refused = browser.post(address, {"code": wrong_code(key)})
    assert "not the code" in refused.content.decode() and not TOTPDevice.objects.exists()
    codes = re.findall(r"<code>(\w{5}-\w{5})</code>", browser.post(address, {"code": code_of(key)}).content.decode())
    assert len(codes) == 10 and is_in(browser) and not is_in(elsewhere)
    again = browser.get(reverse("admin:second_factor")).content.decode()
    assert "10 recovery codes left" in again and not any(code in again for code in (*codes, key))
    assert browser.get(address).url == reverse("admin:second_factor")


def test_nobody_puts_another_app_in_the_place_of_one():
    user = a_person()
    with_second_factor(user)
    with pytest.raises(InvalidRequestError, match="already"):
        with_second_factor(user)
    browser = Client()
    sign_in(browser)
    assert browser.get(reverse("admin:login_enrolment")).url == reverse("admin:login")


@pytest.mark.parametrize("do", ["renew", "remove"])
def test_new_recovery_codes_and_the_end_of_the_second_factor_want_a_code(do):
    user = a_person()
    key, codes = with_second_factor(user)
    browser = Client()
    sign_in(browser)
    give(browser, codes[0])
    give(browser, "aaaaa-aaaaa", "second_factor", do=do)
    assert TOTPDevice.objects.exists() and RecoveryCode.objects.count() == 9
    TOTPDevice.objects.update(throttling_failure_count=0)
    answer = give(browser, code_of(key), "second_factor", do=do)
    if do == "renew":
        assert len(re.findall(r"<code>\w{5}-\w{5}</code>", answer.content.decode())) == 10 and is_in(browser)
        TOTPDevice.objects.update(last_t=-1)
        assert second_factor_accept(user=user, code=codes[1]) is None
    else:
        assert not TOTPDevice.objects.exists() and not RecoveryCode.objects.exists() and not is_in(browser)


def test_where_it_is_demanded_everybody_sets_it_up_while_signing_in(settings):
    a_person()
    before, browser = Client(), Client()
    sign_in(before)
    settings.REQUIRE_SECOND_FACTOR = True
    assert not is_in(before)
    assert sign_in(browser).url == reverse("admin:login_enrolment") and not is_in(browser)
    key = key_shown(browser.get(reverse("admin:login_enrolment")).content.decode())
    shown = browser.post(reverse("admin:login_enrolment"), {"code": code_of(key)}).content.decode()
    assert "shown only now" in shown and is_in(browser)


def test_where_it_is_demanded_a_session_without_it_uploads_nothing(settings):
    a_person()
    browser = Client()
    sign_in(browser)
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "1"}
    assert browser.post("/api/v1/uploads", headers=headers).status_code == 422  # in, but names no kind
    settings.REQUIRE_SECOND_FACTOR = True
    assert browser.post("/api/v1/uploads", headers=headers).status_code == 401


def test_an_administrator_resets_it_for_who_lost_the_device():
    lost = a_person("lost")
    with_second_factor(lost)
    theirs, root = Client(), Client()
    theirs.force_login(User.objects.get(pk=lost.pk))
    root.force_login(a_person())
    action = {"action": "reset_second_factor", "_selected_action": [lost.pk]}
    root.post(reverse("admin:accounts_user_changelist"), action)
    assert not TOTPDevice.objects.exists() and not RecoveryCode.objects.exists() and not is_in(theirs)
    sign_in(theirs, "lost")
    assert is_in(theirs)
    did = LogEntry.objects.filter(object_pk=str(lost.pk), additional_data__did="second factor was removed").get()
    assert did.additional_data["by"] == "root"


def test_its_secrets_are_in_no_log_no_export_no_page():
    user = a_person()
    key, codes = with_second_factor(user)
    browser = Client()
    sign_in(browser)
    give(browser, codes[0])
    export = b"".join(browser.get(reverse("admin:audit_export")).streaming_content).decode()
    pages = [browser.get(reverse(f"admin:accounts_user_{page}", args=args)).content.decode() for page, args in
             (("changelist", []), ("change", [user.pk]), ("history", [user.pk]))]  # fmt: skip
    kept = "".join(str(row) for row in LogEntry.objects.values())
    digests = RecoveryCode.objects.values_list("digest", flat=True)
    for text in (export, kept, *pages):
        assert "root" in text and not any(secret in text for secret in (key, *codes, *digests))
    assert not any(code.replace("-", "") in str(list(RecoveryCode.objects.values())) for code in codes)
    assert "second factor was set up" in export and "a recovery code was used" in export


def test_two_who_set_it_up_at_once_leave_one():
    user = a_person()
    with_second_factor(user)
    key = "ab" * 20
    with pytest.raises(InvalidRequestError):
        second_factor_set(user=user, key=key, code=code_of(key))
    assert TOTPDevice.objects.count() == 1


def test_forgotten_beginnings_sign_nobody_in_elsewhere():
    """The page of codes belongs to the browser that gave the password."""
    key, _ = with_second_factor(a_person())
    sign_in(Client())
    assert give(Client(), code_of(key)).url == reverse("admin:login") and Session.objects.count() == 1
