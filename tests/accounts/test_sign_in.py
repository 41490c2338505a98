"""Passwords: how many wrong ones are looked at; sessions: what ends them; where the admin is."""

from __future__ import annotations

import importlib

import pytest
from auditlog.models import LogEntry
from axes.models import AccessAttempt
from django.conf import settings as now_set
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.test.utils import override_settings
from django.urls import clear_url_caches, reverse
from django.utils import timezone

from accounts.models import Membership, Role, Team, User
from accounts.services import member_ensure
from accounts.sessions import sessions_end
from accounts.tasks import forget_sessions
from accounts.throttling import LIMITS
from config import env
from tests.accounts.people import PASSWORD, a_person, is_in, sign_in

pytestmark = pytest.mark.django_db
PAIR, ACCOUNT, ADDRESS = LIMITS


def fail(name: str = "root", times: int = PAIR, address: str = "127.0.0.1") -> None:
    for _ in range(times):
        sign_in(Client(), name, "wrong", REMOTE_ADDR=address)


def wait_a_lock() -> None:
    AccessAttempt.objects.update(attempt_time=timezone.now() - now_set.AXES_COOLOFF_TIME)


def did(what: str) -> int:
    return LogEntry.objects.filter(additional_data__did=what).count()


def test_s7_after_five_wrong_passwords_the_right_one_waits_a_quarter_of_an_hour():
    a_person()
    fail(times=PAIR - 1)
    assert sign_in(Client(), password="wrong").status_code == 429
    browser = Client()
    answer = sign_in(browser)
    assert answer.status_code == 429 and answer["Retry-After"] == "900" and not is_in(browser)
    assert "15 minutes" in answer.content.decode()
    wait_a_lock()
    sign_in(browser)
    assert is_in(browser) and not AccessAttempt.objects.exists()


def test_s7_a_name_that_nobody_has_is_refused_and_locked_like_one_that_somebody_has():
    a_person("somebody")
    answers = {name: [sign_in(Client(), name, "wrong") for _ in range(PAIR + 1)] for name in ("somebody", "nobody")}
    seen = [
        [(answer.status_code, answer.content.decode().replace(name, "…").split("<form")[0]) for answer in given]
        for name, given in answers.items()
    ]
    assert seen[0] == seen[1] and seen[0][-1][0] == 429


def test_s7_a_colleagues_errors_lock_nobody_else_out():
    a_person()
    a_person("other")
    fail("other")
    browser = Client()
    sign_in(browser)
    assert is_in(browser)


def test_s7_one_account_from_many_addresses_and_many_accounts_from_one_end_too():
    a_person()
    a_person("other")
    for number in range(ACCOUNT):
        fail(times=1, address=f"10.0.0.{number}")
    assert sign_in(Client(), REMOTE_ADDR="10.9.9.9").status_code == 429
    for number in range(ADDRESS):
        fail(f"guess{number}", times=1, address="10.7.7.7")
    assert sign_in(Client(), "other", REMOTE_ADDR="10.7.7.7").status_code == 429
    assert sign_in(Client(), "other", REMOTE_ADDR="10.7.7.8").status_code == 302


def test_s7_whoever_signs_in_clears_no_one_elses_count():
    a_person()
    fail("guess", times=1)
    fail(times=1)
    sign_in(Client())
    assert list(AccessAttempt.objects.values_list("username", flat=True)) == ["guess"]


def test_p14_a_lock_is_one_entry_of_the_audit_log_and_an_administrator_lifts_it():
    locked = a_person("locked")
    fail("locked", times=PAIR + 3)
    assert did("is locked out of sign-in") == 1 and did("was refused at sign-in") == PAIR
    root = Client()
    root.force_login(a_person())
    root.post(reverse("admin:accounts_user_changelist"), {"action": "unlock", "_selected_action": [locked.pk]})
    browser = Client()
    sign_in(browser, "locked")
    assert is_in(browser) and did("sign-in was unlocked") == 1


def test_no_password_is_kept_of_a_wrong_sign_in():
    a_person()
    sign_in(Client(), password="my other password")
    assert "my other password" not in str(AccessAttempt.objects.values().get())


# --- sessions ---------------------------------------------------------------------------------------------------------


def deactivated_and_back(user: User) -> None:
    for is_active in (False, True):
        user.is_active = is_active
        user.save()


def with_another_password(user: User) -> None:
    user.set_password("another long password")
    user.save()


def with_another_role(user: User) -> None:
    membership = Membership.objects.get(user=user)
    membership.role = Role.VIEWER
    membership.save()


def marked_as_finance(user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_finance=True)


def no_longer_a_superuser(user: User) -> None:
    user.is_superuser = False
    user.save()


@pytest.mark.parametrize(
    "change",
    [
        deactivated_and_back, with_another_password, with_another_role, marked_as_finance, no_longer_a_superuser,
        lambda user: Membership.objects.get(user=user).delete(), lambda user: Team.objects.get().delete(),
        lambda user: sessions_end(user=user),
    ],
    ids=["deactivation", "password", "role", "finance", "superuser", "left the team", "the team is gone", "by order"],
)  # fmt: skip
def test_s7_a_session_ends_with(change):
    user, bystander = a_person(), a_person("bystander")
    member_ensure(team_name="team-a", user_name="root", role=Role.LEAD)
    browser, other = Client(), Client()
    sign_in(browser)
    sign_in(other, bystander.username)
    assert is_in(browser)
    change(User.objects.get(pk=user.pk))
    assert not is_in(browser) and is_in(other)


def test_a_session_goes_on_when_nothing_of_the_kind_happens():
    user = a_person()
    membership = member_ensure(team_name="team-a", user_name="root", role=Role.LEAD)
    browser = Client()
    sign_in(browser)
    membership.save()
    user.email = "root@localhost"
    user.save()
    member_ensure(team_name="team-b", user_name="root")
    assert is_in(browser)


def test_an_administrator_ends_sessions_and_the_log_says_so():
    user = a_person("user")
    browser, root = Client(), Client()
    sign_in(browser, "user")
    root.force_login(a_person())
    root.post(reverse("admin:accounts_user_changelist"), {"action": "end_sessions", "_selected_action": [user.pk]})
    assert not is_in(browser) and is_in(root) and did("sessions were ended") == 1


def test_a_person_who_changes_the_own_password_stays_and_the_other_devices_do_not():
    a_person()
    browser, other = Client(), Client()
    for one in (browser, other):
        sign_in(one)
    new = "quite another password"
    form = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert browser.post(reverse("admin:password_change"), form).status_code == 302
    assert is_in(browser) and not is_in(other)


def test_sessions_that_have_run_out_are_removed_and_others_are_not():
    a_person()
    browser, left = Client(), Client()
    for one in (browser, left):
        sign_in(one)
    Session.objects.filter(pk=left.session.session_key).update(expire_date=timezone.now())
    forget_sessions()
    assert Session.objects.count() == 1 and is_in(browser)


# --- where the admin is -----------------------------------------------------------------------------------------------


def test_s7_the_admin_is_on_its_own_hosts_and_the_rest_on_all():
    a_person()
    with override_settings(ADMIN_HOSTS=["admin.example"], ALLOWED_HOSTS=["render.example", "admin.example"]):
        login = reverse("admin:login")
        assert Client().get(login, headers={"Host": "admin.example:8443"}).status_code == 200
        hidden = Client().get(login, headers={"Host": "render.example"})
        unknown = Client().get("/nothing/here", headers={"Host": "render.example"})
        assert (hidden.status_code, hidden.content) == (unknown.status_code, unknown.content) == (404, unknown.content)
        assert Client().get("/healthz", headers={"Host": "render.example"}).status_code == 200


def test_s7_the_admin_is_at_its_own_path():
    import config.urls

    try:
        with override_settings(ADMIN_PATH="office/kiln/"):
            importlib.reload(config.urls)
            clear_url_caches()
            assert reverse("admin:login") == "/office/kiln/login/"
            assert Client().get("/office/kiln/login/").status_code == 200 and Client().get("/admin/").status_code == 404
    finally:
        importlib.reload(config.urls)
        clear_url_caches()


@pytest.mark.parametrize(("value", "path"), [("", "admin/"), ("office", "office/"), ("/a/b/", "a/b/")])
def test_a_path_is_read_with_or_without_slashes(monkeypatch, value, path):
    monkeypatch.setenv("ADMIN_PATH", value)
    assert env.path("ADMIN_PATH", "admin/") == path


@pytest.mark.parametrize("value", ["a b", "a//b", "<x>", "é"])
def test_a_path_of_other_letters_is_refused(monkeypatch, value):
    monkeypatch.setenv("ADMIN_PATH", value)
    with pytest.raises(ImproperlyConfigured, match="ADMIN_PATH"):
        env.path("ADMIN_PATH", "admin/")
