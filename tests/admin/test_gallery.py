"""The gallery: the own teams' pictures by any filter, page after page, small, reviewed, side by side; and quick for many."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from auditlog.models import LogEntry
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import IntegrityError, connection, transaction
from django.db.models import CharField, Value
from django.db.models.functions import Cast, Concat, LPad
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from PIL import Image

from accounts.models import Role, User
from accounts.services import member_ensure
from common.errors import InvalidRequestError
from renderjobs.gallery import Choice, pictures_page, review_set
from renderjobs.models import ImageReview, RenderImage, RenderJob
from renderjobs.thumbnails import SIDE_PX, thumbnails_trim
from tests.admin.pages import client_of
from tests.factories import a_caller, a_checkpoint, a_job, a_platform

pytestmark = pytest.mark.django_db
GALLERY = "/admin/renderjobs/renderjob/gallery/"


@pytest.fixture(autouse=True)
def a_folder_of_its_own(settings, tmp_path) -> None:
    settings.DATA_DIR = tmp_path


@pytest.fixture
def root() -> Client:
    a_platform()
    return client_of(User.objects.create_superuser("root"))


def staff(name: str, role: str, team: str = "team-a") -> Client:
    user = member_ensure(team_name=team, user_name=name, role=role).user
    User.objects.filter(pk=user.pk).update(is_staff=True)
    return client_of(User.objects.get(pk=user.pk))


def pictures(count: int = 1, *, team: str = "team-a", prompt: str = "a red circle", **job: object) -> list[RenderImage]:
    """Delivered images of one job, their rows written as a delivery leaves them, without the money."""
    made = a_job(a_caller(team, f"{team}-ada"), prompt=prompt, n_iter=count)
    RenderJob.objects.filter(pk=made.pk).update(state="succeeded", **job)
    images = RenderImage.objects.filter(job=made).order_by("index")
    number, seed = (Cast(column, CharField()) for column in ("pk", "seed"))
    images.update(
        state="delivered",
        sha256=LPad(number, 64, Value("0")),
        file_key=Concat(Value(f"{made.pk}/"), number, Value(".png")),
        infotext=Concat(Value(f"{prompt}\nSteps: 4, Seed: "), seed),
        width=640,
        height=320,
    )
    return list(images.all())


def shown(client: Client, **asked: object) -> list[int]:
    return [tile["image"].pk for tile in client.get(GALLERY, asked).context["tiles"]]


def address(kind: str, image: RenderImage) -> str:
    return reverse(f"admin:renderjobs_{kind}", args=[image.pk])


def test_u3_the_newest_pictures_come_first_with_their_facts(root):
    old, new = pictures(), pictures(prompt="a blue ring")
    assert shown(root) == [new[0].pk, old[0].pk]
    body = root.get(GALLERY).content.decode()
    assert "a blue ring" in body and f"seed {new[0].seed}" in body and "mini" in body
    assert reverse("admin:renderjobs_image", args=[new[0].job_id, 0]) in body


def test_what_has_no_picture_yet_is_not_there(root):
    a_job()
    assert shown(root) == [] and "No picture is like this." in root.get(GALLERY).content.decode()


def test_u3_every_filter_finds_its_pictures_and_no_others(root):
    film = a_caller("team-b").team.projects.create(name="film")
    other = a_checkpoint("dreamy")
    (plain,) = pictures()
    (wanted,) = pictures(
        team="team-b", prompt="a Blue ring, 50% off", project=film, checkpoint=other, tags={"shot": "7", "1": "x"}
    )
    RenderImage.objects.filter(pk=wanted.pk).update(seed=4_294_967_293)
    review_set(image=wanted, user=User.objects.get(username="root"), rating=4, verdict="approved")
    asked = {
        "team": "team-b", "project": "film", "job": str(wanted.job_id), "model": "Dreamy", "tag": "shot=7", "seed": "4294967293",
        "text": "blue RING, 50% ", "verdict": "approved", "stars": "4",
    }  # fmt: skip
    for name, value in asked.items():
        assert shown(root, **{name: value}) == [wanted.pk], name
    assert shown(root, **asked) == shown(root, tag="1=x") == [wanted.pk] and shown(root, verdict="undecided") == [
        plain.pk
    ]
    nothing = (
        {"stars": "5"},
        {"tag": "shot=8"},
        {"verdict": "rejected"},
        {"text": "%%"},
        {"seed": "1"},
        {"team": "team-c"},
    )
    assert not any(shown(root, **one) for one in nothing)


@pytest.mark.parametrize(
    "wrong",
    [{"seed": "x"}, {"seed": str(2**63)}, {"seed": "٣"}, {"job": "7"}, {"tag": "shot"}, {"stars": "9"}, {"verdict": "good"},
     {"text": "a\x00b"}, {"model": "m" * 201}],
)  # fmt: skip
def test_a_wrong_filter_is_named(root, wrong):
    answer = root.get(GALLERY, wrong)
    (name,) = wrong
    assert answer.status_code == 400 and answer.context["refusal"].startswith(name)


def test_u3_pages_follow_one_another_without_gap_or_repeat_while_new_pictures_come(root):
    images = pictures(130)
    first = root.get(GALLERY, {"text": "red"})
    pictures()
    found, following = [tile["image"].pk for tile in first.context["tiles"]], first.context["following"]
    while following:
        part = root.get(GALLERY + following + "&tiles=1")
        assert b"<html" not in part.content and "text=red" in following
        found += [tile["image"].pk for tile in part.context["tiles"]]
        following = part.context["following"]
    assert found == [image.pk for image in reversed(images)]


def test_c5_a_page_takes_the_same_queries_for_many_pictures(root):
    counts = []
    for more in (10, 1000):
        pictures(more)
        for asked in ({}, {"team": "team-a", "text": "red", "tag": "a=b", "verdict": "undecided"}):
            root.get(GALLERY, asked)
            with CaptureQueriesContext(connection) as queries:
                root.get(GALLERY, asked)
            counts.append(len(queries))
    assert max(counts) <= 6 and counts[:2] == counts[2:], counts


# --- whose ------------------------------------------------------------------------------------------------------------


def test_p11_a_team_sees_its_own_pictures_and_no_trace_of_others(root):
    (hidden,) = pictures(team="hidden-team", prompt="a secret")
    (own,) = pictures()
    for role in (Role.LEAD, Role.MEMBER, Role.VIEWER):
        client = staff(str(role), role)
        assert shown(client) == [own.pk] and shown(client, team="hidden-team") == shown(client, text="secret") == []
        assert "hidden-team" not in client.get(GALLERY).content.decode()
        unknown = [
            client.get(address(kind, hidden).replace(str(hidden.pk), "987654")) for kind in ("thumbnail", "review")
        ]
        foreign = [client.get(address(kind, hidden)) for kind in ("thumbnail", "review")]
        assert [answer.status_code for answer in foreign] == [answer.status_code for answer in unknown] == [404, 404]
        assert client.post(address("review", hidden), {"rating": 5}).status_code == 404
        compared = client.get(reverse("admin:renderjobs_compare"), {"image": [own.pk, hidden.pk]})
        assert compared.status_code == 404
    assert not ImageReview.objects.exists()


def test_p11_who_sees_no_work_sees_no_gallery(root):
    (image,) = pictures()
    other = client_of(User.objects.create_user("finance", is_staff=True, is_finance=True))
    for client in (other, staff("bookkeeper", Role.FINANCE)):
        for at in (GALLERY, address("thumbnail", image), reverse("admin:renderjobs_compare"), address("review", image)):
            assert client.get(at).status_code == 404, at


@pytest.mark.parametrize(
    ("role", "status"), [(Role.LEAD, 200), (Role.MEMBER, 200), (Role.VIEWER, 404), (Role.FINANCE, 404)]
)
def test_p11_leads_and_members_review(root, role, status):
    (image,) = pictures()
    client = staff("somebody", role)
    assert client.post(address("review", image), {"verdict": "approved"}).status_code == status
    assert ImageReview.objects.count() == (status == 200)
    if role == Role.VIEWER:
        assert "Approve" not in client.get(GALLERY).content.decode()


# --- small pictures ---------------------------------------------------------------------------------------------------


def stored(image: RenderImage, size: tuple[int, int] = (640, 320), mode: str = "RGB") -> None:
    data = io.BytesIO()
    Image.new(mode, size, (200, 30, 30, 128)[: len(mode)]).save(data, "PNG")
    default_storage.save(image.file_key, ContentFile(data.getvalue()))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_small_picture_is_made_once_and_kept(root, mode, tmp_path):
    (image,) = pictures()
    stored(image, mode=mode)
    answer = root.get(address("thumbnail", image))
    small = Image.open(io.BytesIO(answer.content))
    assert (answer["Content-Type"], small.size) == ("image/webp", (SIDE_PX, SIDE_PX // 2))
    assert "private" in answer["Cache-Control"]
    default_storage.delete(image.file_key)
    assert root.get(address("thumbnail", image)).content == answer.content
    assert len(list((tmp_path / "thumbnails").rglob("*.*"))) == 1


@pytest.mark.parametrize("data", [None, b"", b"no picture"], ids=["gone", "empty", "broken"])
def test_a_picture_that_cannot_be_read_is_not_found_and_leaves_nothing(root, data, tmp_path):
    (image,) = pictures()
    if data is not None:
        default_storage.save(image.file_key, ContentFile(data))
    assert root.get(address("thumbnail", image)).status_code == 404
    assert not list((tmp_path / "thumbnails").rglob("*.*"))


def test_small_pictures_beyond_the_limit_or_long_unseen_go(settings, tmp_path):
    def kept(name: str, *, seen_days_ago: float) -> Path:
        path = tmp_path / "thumbnails" / name[:2] / f"{name}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
        seen = time.time() - seen_days_ago * 86_400
        import os

        os.utime(path, (seen, seen))
        return path

    new, old, ancient = (kept(name, seen_days_ago=days) for name, days in (("aa", 0), ("bb", 2), ("cc", 31)))
    assert thumbnails_trim() == 1 and not ancient.exists()
    settings.THUMBNAIL_CACHE_BYTES = 150
    assert thumbnails_trim() == 1 and not old.exists() and new.exists()


# --- reviews ----------------------------------------------------------------------------------------------------------


def test_stars_and_verdict_are_given_changed_and_taken_away(root):
    (image,) = pictures()
    steps = [
        ({"rating": 4}, (4, "")), ({"verdict": "approved"}, (4, "approved")), ({"verdict": "rejected"}, (4, "rejected")),
        ({"rating": 0}, (0, "rejected")), ({"verdict": ""}, (0, "")), ({"verdict": ""}, (0, "")),
    ]  # fmt: skip
    for change, expected in steps:
        for _ in range(2):  # sent twice, it is the same
            answer = root.post(address("review", image), change).json()
            assert (answer["rating"], answer["verdict"]) == expected
        assert ImageReview.objects.count() == (expected != (0, ""))


@pytest.mark.parametrize(
    "wrong", [{"rating": "6"}, {"rating": "-1"}, {"rating": "x"}, {"rating": "1" * 30}, {"verdict": "good"}]
)
def test_a_wrong_review_is_named_and_changes_nothing(root, wrong):
    (image,) = pictures()
    root.post(address("review", image), {"rating": 3})
    answer = root.post(address("review", image), wrong)
    (name,) = wrong
    assert answer.status_code == 400 and name in answer.json()["detail"] and ImageReview.objects.get().rating == 3


def test_only_a_picture_is_reviewed(root):
    image = RenderImage.objects.get(job=a_job())
    assert root.post(address("review", image), {"rating": 3}).status_code == 404
    with pytest.raises(InvalidRequestError, match="no picture"):
        review_set(image=image, user=User.objects.get(username="root"), rating=3)


def test_the_database_refuses_a_review_that_says_nothing(root):
    (image,) = pictures()
    with pytest.raises(IntegrityError), transaction.atomic():
        ImageReview.objects.create(image=image, user=User.objects.get(username="root"))


def test_p14_a_review_is_in_the_audit_log(root):
    (image,) = pictures()
    root.post(address("review", image), {"verdict": "approved"})
    entry = LogEntry.objects.get_for_object(ImageReview.objects.get()).get()
    assert entry.changes_dict["verdict"] == ["None", "approved"] and entry.additional_data["by"] == "root"


# --- comparing and rendering again ------------------------------------------------------------------------------------


def test_two_to_four_pictures_stand_beside_each_other_with_what_differs(root):
    (one,), (two,) = pictures(), pictures(prompt="a blue ring")
    answer = root.get(reverse("admin:renderjobs_compare"), {"image": [one.pk, two.pk]})
    names = [name for name, _ in answer.context["differences"]]
    assert "prompt" in names and "width" not in names and answer.content.decode().count("/files/") == 2


@pytest.mark.parametrize("asked", [[], ["1"], ["1", "1"], ["1", "2", "3", "4", "5"], ["1", "x"], ["1", "9" * 25]])
def test_other_numbers_of_pictures_are_not_compared(root, asked):
    pictures(3)
    assert root.get(reverse("admin:renderjobs_compare"), {"image": asked}).status_code == 404


def test_a_job_is_rendered_again_from_its_tile(root):
    (image,) = pictures()
    body = root.get(GALLERY).content.decode()
    assert 'form="again" name="_selected_action" value="' + str(image.job_id) in body
    form = {"action": "render_again", "_selected_action": [image.job_id]}
    root.post(reverse("admin:renderjobs_renderjob_changelist"), form)
    assert RenderJob.objects.count() == 2


@pytest.mark.slow
def test_u3_the_first_page_of_a_hundred_thousand_comes_within_half_a_second(root):
    """Of everybody's, of one's own among many, and of a text that nothing has."""
    (rare,) = pictures(team="team-b")
    for _ in range(20):
        pictures(5000)
    lead = staff("lea", Role.LEAD, "team-b")
    for client, asked in ((root, {}), (lead, {}), (root, {"text": "no such prompt"}), (root, {"tag": "a=b"})):
        client.get(GALLERY)
        began = time.monotonic()
        client.get(GALLERY, asked)
        took = time.monotonic() - began
        print(f"{asked or 'everything'} {took:.3f} s")
        assert took < 0.5
    assert shown(lead) == [rare.pk] and len(pictures_page(None, Choice())[0]) == 60
