"""The gallery in the admin: tiles that go on without end, small pictures, reviews by key, two to four beside each other.

A mixin of the jobs' page, whose rights hold here too; what is asked and written is in ``gallery.py``.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, path, reverse

from accounts.admin import is_superuser, teams_as
from accounts.models import Project, Role, Team
from audit.reading import readings_note
from common.errors import FieldError, InvalidRequestError
from renderjobs.expansion import recipe_from
from renderjobs.files import base_of, file_url
from renderjobs.gallery import LARGEST_ID, UNDECIDED, Choice, pictures_of, pictures_page, review_set
from renderjobs.models import RenderImage
from renderjobs.models.reviews import MOST_STARS
from renderjobs.thumbnails import CONTENT_TYPE, thumbnail_of

MOST_COMPARED = 4
LOOKED = "looked at the pictures"
KEPT_SECONDS = 86_400
"""Of a small picture in its reader's browser; behind one address it never changes."""
REVIEWERS = (Role.LEAD, Role.MEMBER)


class GalleryPages:
    """``self`` is the jobs' page."""

    def gallery_urls(self: Any) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("gallery/", view(self.gallery), name="renderjobs_gallery"),
            path("gallery/compare/", view(self.compare), name="renderjobs_compare"),
            path(
                "gallery/<int:image_id>/thumbnail/", view(self.thumbnail, cacheable=True), name="renderjobs_thumbnail"
            ),
            path("gallery/<int:image_id>/review/", view(self.review), name="renderjobs_review"),
        ]

    def gallery(self: Any, request: HttpRequest) -> HttpResponse:
        teams = self._teams_seen(request)
        refusal, choice = "", Choice()
        try:
            choice = Choice.from_query(request.GET)  # type: ignore[arg-type]
        except InvalidRequestError as error:
            refusal = " ".join(item.message for item in error.errors)
        images, before = pictures_page(teams, choice, before=_id_in(request.GET.get("before", "")))
        _note_readings(request, images)
        following = f"?{urlencode({**choice.given(), 'before': before})}" if before else ""
        shown = {"tiles": [tile(image) for image in images], "following": following, "stars": range(MOST_STARS + 1)}
        if "tiles" in request.GET:
            return render(
                request, "renderjobs/gallery_tiles.html", {**shown, "may_review": self._may_review_any(request)}
            )
        context = {
            **self.admin_site.each_context(request),
            "title": "Gallery",
            "choice": choice,
            "refusal": refusal,
            "may_review": self._may_review_any(request),
            **choices_offered(teams),
            **shown,
        }
        return render(request, "renderjobs/gallery.html", context, status=400 if refusal else 200)

    def compare(self: Any, request: HttpRequest) -> HttpResponse:
        asked = [_id_in(text) for text in request.GET.getlist("image")]
        if not 2 <= len(set(asked)) == len(asked) <= MOST_COMPARED:
            raise Http404
        found = {image.pk: image for image in pictures_of(self._teams_seen(request)).filter(pk__in=asked)}
        if len(found) < len(asked):
            raise Http404
        _note_readings(request, list(found.values()))
        context = {
            **self.admin_site.each_context(request),
            "title": "Compare",
            **compared([found[pk] for pk in asked], base_of(request)),
        }
        return render(request, "renderjobs/compare.html", context)

    def thumbnail(self: Any, request: HttpRequest, image_id: int) -> HttpResponse:
        image = self._picture(request, image_id)
        try:
            data = thumbnail_of(sha256=image.sha256, file_key=image.file_key)
        except OSError as error:
            raise Http404 from error
        headers = {"Cache-Control": f"private, max-age={KEPT_SECONDS}, immutable"}
        return HttpResponse(data, content_type=CONTENT_TYPE, headers=headers)

    def review(self: Any, request: HttpRequest, image_id: int) -> HttpResponse:
        """Stars or verdict of one image, as a form; the answer is what holds now."""
        image = self._picture(request, image_id)
        if not (is_superuser(request) or image.job.team_id in teams_as(request, *REVIEWERS)):
            raise Http404
        if request.method != "POST":
            return JsonResponse({"detail": "A review is sent by POST."}, status=405, headers={"Allow": "POST"})
        stars, verdict = request.POST.get("rating"), request.POST.get("verdict")
        rating = int(stars) if stars and stars.isascii() and stars.isdecimal() and len(stars) < 4 else None
        try:
            if stars is not None and rating is None:
                message = f"rating is {stars[:20]!r}; accepted are 0 to {MOST_STARS}."
                raise InvalidRequestError([FieldError("rating", message)])
            review = review_set(image=image, user=request.user, rating=rating, verdict=verdict)
        except InvalidRequestError as error:
            return JsonResponse({"detail": " ".join(item.message for item in error.errors)}, status=400)
        return JsonResponse({"rating": review.rating if review else 0, "verdict": review.verdict if review else ""})

    def _picture(self: Any, request: HttpRequest, image_id: int) -> RenderImage:
        image = pictures_of(self._teams_seen(request)).filter(pk=_id_in(str(image_id))).first()
        if image is None:
            raise Http404
        return image

    def _teams_seen(self: Any, request: HttpRequest) -> frozenset[int] | None:
        """None: all. Raises: Http404: Nobody's work may be seen by this person."""
        if not self.may_visit(request):
            raise Http404
        return None if self.reads_all(request) else teams_as(request, *self.readers)

    def _may_review_any(self: Any, request: HttpRequest) -> bool:
        return is_superuser(request) or bool(teams_as(request, *REVIEWERS))


def _note_readings(request: HttpRequest, images: list[RenderImage]) -> None:
    shown = [(image.job, image.job.user_id) for image in images]
    readings_note(reader=request.user, shown=shown, what=LOOKED)  # type: ignore[arg-type]


def choices_offered(team_ids: frozenset[int] | None) -> dict[str, Any]:
    teams, projects = Team.objects.all(), Project.objects.select_related("team")
    if team_ids is not None:
        teams, projects = teams.filter(pk__in=team_ids), projects.filter(team__in=team_ids)
    names = sorted(set(projects.values_list("name", flat=True)))
    return {"teams": list(teams), "projects": names, "verdicts": (UNDECIDED, "approved", "rejected")}


def tile(image: RenderImage) -> dict[str, Any]:
    job, review = image.job, getattr(image, "review", None)
    return {
        "image": image,
        "team": job.team,
        "model": job.checkpoint.name if job.checkpoint else "",
        "prompt": image.infotext.split("\n", 1)[0][:300],
        "rating": review.rating if review else 0,
        "verdict": review.verdict if review else "",
        "page": reverse("admin:renderjobs_image", args=[job.pk, image.index]),
        "small": reverse("admin:renderjobs_thumbnail", args=[image.pk]),
    }


def compared(images: list[RenderImage], base: str) -> dict[str, Any]:
    """The pictures, and what of their recipes is not the same."""
    recipes = [
        {**recipe_from(image.job.lock, image.index).to_json(), "seed": image.seed, "subseed": image.subseed}
        for image in images
    ]
    names = sorted({name for recipe in recipes for name in recipe})
    rows = [(name, [json.dumps(recipe.get(name), ensure_ascii=False) for recipe in recipes]) for name in names]
    pictures = [{**tile(image), "url": file_url(image.file_key, base=base)} for image in images]
    return {"pictures": pictures, "differences": [row for row in rows if len(set(row[1])) > 1]}


def _id_in(text: str) -> int:
    """0 for what is none."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
    return number if number <= LARGEST_ID else 0
