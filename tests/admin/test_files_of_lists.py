"""Lists as files and files into lists: what the person sees and no more, nothing a spreadsheet runs, all rows or none."""

from __future__ import annotations

import csv
import io
import json
import re
from decimal import Decimal

import openpyxl
import pytest
from auditlog.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import Membership, Project, Role, Team, User
from accounts.services import member_ensure
from billing.models import Budget, BudgetThreshold, LedgerTransaction, Quota
from common import exporting
from common.exporting import cell
from renderjobs.models import RenderJob
from tests.admin.pages import client_of, page, rendered_job
from tests.admin.test_pages import like
from tests.billing.budgets import a_budget
from tests.factories import a_caller, a_platform

pytestmark = pytest.mark.django_db
CSV, XLSX, JSON = 0, 1, 2
LISTS = [
    "renderjobs_renderjob", "billing_ledgertransaction", "billing_usagerecord", "billing_budget", "billing_quota",
    "accounts_team", "accounts_user", "assets_asset",
]  # fmt: skip


@pytest.fixture
def root() -> Client:
    a_platform()
    return client_of(User.objects.create_superuser("root", password="a long password"))


def lead_of(team: str) -> Client:
    user = member_ensure(team_name=team, user_name=f"lead-of-{team}", role=Role.LEAD).user
    User.objects.filter(pk=user.pk).update(is_staff=True)
    return client_of(User.objects.get(pk=user.pk))


def taken(client: Client, name: str, form: int = CSV, question: str = ""):
    return client.post(page(name, "export") + question, {"format": form})


def rows(answer) -> list[dict[str, str]]:
    assert answer.status_code == 200 and "attachment" in answer["Content-Disposition"], answer.content[:500]
    return list(csv.DictReader(io.StringIO(answer.content.decode())))


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_taken_away_as_csv_xlsx_and_json_with_the_same_rows(root, name):
    rendered_job("team-a", "ada")
    lines = rows(taken(root, name))
    assert lines
    sheet = openpyxl.load_workbook(io.BytesIO(taken(root, name, XLSX).content)).active
    cells = [[str(value or "") for value in row] for row in sheet.iter_rows(values_only=True)]
    assert cells == [list(lines[0]), *(list(line.values()) for line in lines)]
    objects = json.loads(taken(root, name, JSON).content)
    assert [[str(value) for value in one.values()] for one in objects] == [list(line.values()) for line in lines]


def test_a_jobs_line_says_whose_it_is_and_what_it_cost(root):
    job = rendered_job("team-a", "ada")
    job.refresh_from_db()
    (line,) = rows(taken(root, "renderjobs_renderjob"))
    assert (line["id"], line["team"], line["user"], line["cost_amount"]) == (
        str(job.pk),
        "team-a",
        "ada",
        f"{job.cost_amount:.6f}",
    )
    (charge,) = rows(taken(root, "billing_ledgertransaction"))
    assert Decimal(charge["amount"]) == job.cost_amount and charge["job_id"] == str(job.pk)


def test_no_secret_is_in_any_file(root):
    rendered_job("team-a", "ada")
    secret = User.objects.get(username="root").password
    for name in LISTS:
        assert (
            secret not in taken(root, name).content.decode() and secret not in taken(root, name, JSON).content.decode()
        )


@pytest.mark.parametrize(
    "name", ["renderjobs_renderjob", "billing_ledgertransaction", "billing_budget", "accounts_team"]
)
def test_p11_a_leads_file_holds_the_own_teams_rows_only(name):
    rendered_job("hidden-team", "zoltan")
    rendered_job("team-a", "ada")
    lead = lead_of("team-a")
    asked = "?q=hidden" if name == "accounts_team" else "?team=hidden-team"
    for form in (CSV, JSON):
        text = taken(lead, name, form, asked).content.decode() + taken(lead, name, form).content.decode()
        assert "team-a" in text and not re.search("hidden-team|zoltan", text)


def test_a_file_is_filtered_as_the_list_is(root):
    rendered_job("team-a", "ada")
    rendered_job("team-b", "bob")
    assert [line["team"] for line in rows(taken(root, "renderjobs_renderjob", question="?team=team-b"))] == ["team-b"]
    assert [line["name"] for line in rows(taken(root, "accounts_team", question="?q=team-b"))] == ["team-b"]


def test_a_filter_that_the_list_does_not_have_leads_back_to_the_list(root):
    answer = taken(root, "accounts_team", question="?colour=red")
    assert answer.status_code == 302 and answer.url == page("accounts_team", "changelist") + "?e=1"


def test_names_that_a_spreadsheet_would_run_are_plain_text(root):
    a_caller()
    Team.objects.filter(name="team-a").update(title='=HYPERLINK("http://x")')
    (line,) = rows(taken(root, "accounts_team"))
    assert line["title"] == '\'=HYPERLINK("http://x")'
    sheet = openpyxl.load_workbook(io.BytesIO(taken(root, "accounts_team", XLSX).content)).active
    assert all(one.data_type != "f" for row in sheet.iter_rows() for one in row)
    assert json.loads(taken(root, "accounts_team", JSON).content)[0]["title"] == '=HYPERLINK("http://x")'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Decimal("-5.10"), "-5.10"),
        (-3, "-3"),
        ("-3+1", "'-3+1"),
        ("@a", "'@a"),
        (True, "true"),
        (None, ""),
        ("a\x00b", "a b"),
    ],
)
def test_a_cell_is_a_number_or_harmless(value, shown):
    assert cell(value, for_spreadsheet=True) == shown


def test_p14_every_file_has_an_entry_in_the_audit_log(root):
    taken(root, "accounts_team", question="?q=team")
    entry = LogEntry.objects.filter(additional_data__did="took the list of teams away").get()
    assert entry.additional_data["by"] == "root" and entry.additional_data["question"] == "q=team"


def test_a_list_that_is_too_long_says_so_and_gives_no_file(root, monkeypatch):
    monkeypatch.setattr(exporting, "MOST_ROWS", 1)
    for name in ("a", "b"):
        a_caller(name)
    answer = taken(root, "accounts_team")
    assert "more than 1 rows" in answer.content.decode() and "Content-Disposition" not in answer
    assert len(rows(taken(root, "accounts_team", question="?q=a"))) == 1
    assert (
        not LogEntry.objects.filter(additional_data__did__icontains="away")
        .exclude(additional_data__question="q=a")
        .exists()
    )


def test_c5_a_thousand_rows_cost_the_queries_of_ten(root):
    job, counts = rendered_job("team-a", "ada"), []
    charge = LedgerTransaction.objects.get()
    for more in (10, 1000):
        RenderJob.objects.bulk_create(RenderJob(**like(job, "id")) for _ in range(more))
        LedgerTransaction.objects.bulk_create(
            LedgerTransaction(**like(charge, "id") | {"event_id": f"{more}-{n}", "image_id": more * 1000 + n})
            for n in range(more)
        )
        for name in ("renderjobs_renderjob", "billing_ledgertransaction"):
            with CaptureQueriesContext(connection) as queries:
                assert len(rows(taken(root, name))) > more
            counts.append(len(queries))
    assert counts[:2] == counts[2:]


def shown_first(client: Client, name: str, text: str, *, resource: int = 0):
    file = io.BytesIO(text.encode())
    file.name = "rows.csv"
    return client.post(page(name, "import"), {"import_file": file, "format": 0, "resource": resource})


def done(client: Client, name: str, first):
    confirm = first.context.get("confirm_form")
    assert confirm, re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", first.content.decode()))[-1500:]
    return client.post(page(name, "process_import"), confirm.initial, follow=True)


def test_m12_quotas_are_shown_first_and_then_stored_all(root):
    a_caller()
    Quota.objects.create(team=Team.objects.get(), measure="open_jobs", limit=3)
    text = "team,user,measure,limit,enabled\nteam-a,,open_jobs,9,yes\nteam-a,ada,images_per_day,100,false\n,,waiting_jobs,5,1\n"
    first = shown_first(root, "billing_quota", text)
    assert Quota.objects.count() == 1 and Quota.objects.get().limit == 3
    body = done(root, "billing_quota", first).content.decode()
    assert "2 rows are new, 1 were there" in body
    kept = set(Quota.objects.values_list("team__name", "user__username", "measure", "limit", "enabled"))
    assert kept == {
        ("team-a", None, "open_jobs", 9, True),
        ("team-a", "ada", "images_per_day", 100, False),
        (None, None, "waiting_jobs", 5, True),
    }
    done(root, "billing_quota", shown_first(root, "billing_quota", text))
    assert Quota.objects.count() == 3
    assert LogEntry.objects.filter(additional_data__did__icontains="imported a file on the page of quotas").count() == 2
    changed = LogEntry.objects.filter(content_type__model="quota", action=LogEntry.Action.UPDATE).first()
    assert changed and changed.changes_dict["limit"] == ["3", "9"]


def test_m9_budgets_come_with_their_thresholds_and_keep_what_the_file_does_not_say(root):
    caller = a_caller()
    Project.objects.create(team=caller.team, name="film")
    old = a_budget("team", limit="1", team=caller.team, thresholds=((100, "block"),))
    text = (
        "name,scope,team,project,limit,thresholds\n"
        f"{old.name},team,team-a,,250.50,50 notify; 100 % block\n"
        "film,project,team-a,film,10,\n"
    )
    done(root, "billing_budget", shown_first(root, "billing_budget", text))
    old.refresh_from_db()
    assert (old.limit, old.currency, old.enabled) == (Decimal("250.5"), "USD", True)
    assert list(old.thresholds.order_by("percent").values_list("percent", "action")) == [(50, "notify"), (100, "block")]
    film = Budget.objects.get(name="film")
    assert (film.project.name, film.span, film.thresholds.count()) == ("film", "month", 0)


def test_members_and_projects_are_taken_in(root):
    a_caller()
    User.objects.create_user("bob")
    done(
        root,
        "accounts_team",
        shown_first(root, "accounts_team", "team,user,role\nteam-a,bob,viewer\nteam-a,ada,lead\n"),
    )
    assert set(Membership.objects.values_list("user__username", "role")) == {("bob", "viewer"), ("ada", "lead")}
    done(
        root, "accounts_team", shown_first(root, "accounts_team", "team,name,title\nteam-a,film,The film\n", resource=1)
    )
    assert Project.objects.get().title == "The film"


WRONG = {
    "unknown team": (
        "billing_quota",
        "team,user,measure,limit\nnope,,open_jobs,1\n",
        "There is no team &#x27;nope&#x27;.",
    ),
    "unknown user": (
        "billing_quota",
        "team,user,measure,limit\nteam-a,nope,open_jobs,1\n",
        "There is no user &#x27;nope&#x27;.",
    ),
    "unknown measure": ("billing_quota", "team,user,measure,limit\nteam-a,,nope,1\n", "nope"),
    "negative": ("billing_quota", "team,user,measure,limit\nteam-a,,open_jobs,-1\n", "greater than or equal to 0"),
    "no switch": ("billing_quota", "team,user,measure,limit,enabled\nteam-a,,open_jobs,1,perhaps\n", "true or false"),
    "unknown column": ("billing_quota", "team,user,measure,limit,colour\nteam-a,,open_jobs,1,red\n", "colour"),
    "missing column": ("billing_quota", "team,limit\nteam-a,1\n", "is missing"),
    "another scope": (
        "billing_budget",
        "name,scope,team,limit\nx,organisation,team-a,1\n",
        "names exactly what its scope says",
    ),
    "another's project": (
        "billing_budget",
        "name,scope,team,project,limit\nx,project,team-a,nope,1\n",
        "There is no project",
    ),
    "wrong threshold": ("billing_budget", "name,scope,team,limit,thresholds\nx,team,team-a,1,often\n", "a percentage"),
    "no currency": ("billing_budget", "name,scope,team,limit,currency\nx,team,team-a,1,dollars\n", "currency"),
    "unknown role": ("accounts_team", "team,user,role\nteam-a,ada,king\n", "king"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_named_and_nothing_can_be_stored(root, case):
    a_caller()
    name, text, said = WRONG[case]
    header, line = text.splitlines()
    good = {"billing_quota": "team-a,,waiting_jobs,7", "accounts_team": "team-a,ada,lead"}.get(name)
    if good and header.count(",") == good.count(","):
        text = f"{header}\n{good}\n{line}\n"
    first = shown_first(root, name, text)
    assert said in first.content.decode() and not first.context.get("confirm_form")
    assert not Quota.objects.exists() and not Budget.objects.exists() and Membership.objects.get().role == "member"


def test_what_became_wrong_since_it_was_shown_stores_nothing(root):
    a_caller()
    first = shown_first(root, "billing_quota", "team,user,measure,limit\nteam-a,,open_jobs,1\nteam-a,ada,open_jobs,1\n")
    User.objects.filter(username="ada").update(username="eve")
    body = done(root, "billing_quota", first).content.decode()
    assert "Nothing was stored. Row 2" in body and not Quota.objects.exists()


def test_the_second_step_takes_only_what_the_first_has_shown(root):
    forged = {"import_file_name": "passwd", "original_file_name": "x", "format": "0"}
    body = root.post(page("billing_quota", "process_import"), forged, follow=True).content.decode()
    assert "The page is too old" in body and not Quota.objects.exists()
    body = root.post(page("billing_quota", "process_import"), {**forged, "format": "7"}, follow=True).content.decode()
    assert "Nothing was stored" in body


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"x" * (1024 * 1024 + 1)], ids=["no text", "too long"])
def test_a_file_that_cannot_be_read_is_refused(root, data):
    file = io.BytesIO(data)
    file.name = "rows.csv"
    answer = root.post(page("billing_quota", "import"), {"import_file": file, "format": 0, "resource": 0})
    assert (
        answer.status_code == 200 and not answer.context.get("confirm_form") and "The file " in answer.content.decode()
    )


def test_p11_nobody_but_the_platforms_admin_imports(root):
    rendered_job("team-a", "ada")
    for client in (lead_of("team-a"), client_of(User.objects.create_user("finance", is_staff=True, is_finance=True))):
        for kind in ("import", "process_import"):
            assert client.post(page("billing_budget", kind), {}).status_code == 403
    assert BudgetThreshold.objects.count() == 1
