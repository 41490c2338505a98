"""The file browser of the admin: folders of a team's files and of the public area; upload, download, deletion.

What lies in a folder is asked of the storage, one page at a time; whose a file is, of the database, for the page's keys together.
Only files that no job made have a row of their own and can be deleted here: what a job delivered stays as long as the job's record.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.files.storage import default_storage
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.admin import TeamAdmin, TeamFilter, is_superuser, teams_as
from accounts.models import Role, Team
from audit.recording import record
from common.errors import InvalidRequestError, PlatformError
from common.folders import Entry, folder_page
from renderjobs.compat.eas.paths import PART
from renderjobs.files import base_of, file_url
from renderjobs.models import FileState, ImageAttachment, RenderImage, TeamFile
from renderjobs.outputs import files_folder
from renderjobs.team_files import (
    MOST_PICTURE_BYTES,
    MOST_TEXT_BYTES,
    PICTURE_FORMATS,
    TEXT_ENDINGS,
    file_remove,
    file_upload,
    folder_checked,
)

PER_PAGE = 60
PUBLIC = "public"
"""The public area's name in addresses; teams go by their numbers."""
SCRIPT = "upload"
"""What ``files.js`` calls itself in X-Requested-With; it takes JSON."""


@admin.register(TeamFile)
class FilePage(TeamAdmin):
    """The list searches all files with rows of their own, whatever their folders; the browser goes by folders."""

    may_add = may_change = False
    readers = (Role.LEAD, Role.MEMBER, Role.VIEWER)
    writers = (Role.LEAD, Role.MEMBER)
    list_display = ("path", "team", "size", "origin", "uploaded_by", "created_at")
    list_filter = (TeamFilter, "origin")
    list_select_related = ("team", "uploaded_by")
    search_fields = ("path", "infotext")
    fields = readonly_fields = (
        "path", "team", "address", "key", "size", "picture_size", "sha256", "origin", "uploaded_by", "made_at", "created_at",
        "infotext",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        stored = TeamFile.objects.filter(state=FileState.STORED)
        if self.reads_all(request):
            return stored
        return stored.filter(Q(team__in=teams_as(request, *self.readers)) | Q(team=None))

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        file = super().get_object(request, *args, **kwargs)
        if file is not None:
            file.base = base_of(request)
        return file

    def delete_model(self, request: HttpRequest, obj: TeamFile) -> None:
        record(obj, "was deleted", key=obj.file_key, sha256=obj.sha256)
        file_remove(file_id=obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[TeamFile]) -> None:
        for file in queryset:
            self.delete_model(request, file)

    @display(description="Size", ordering="size_bytes")
    def size(self, file: TeamFile) -> str:
        return filesizeformat(file.size_bytes)

    @display(description="Picture")
    def picture_size(self, file: TeamFile) -> str:
        return f"{file.width} × {file.height}" if file.width else "no"

    @display(description="In the storage")
    def key(self, file: TeamFile) -> str:
        return file.file_key

    @display(description="Address, for an hour")
    def address(self, file: Any) -> SafeString:
        url = file_url(file.file_key, base=file.base)
        return format_html('<a class="rk-long" href="{}">{}</a>', url, url)

    # --- the browser --------------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("browse/", view(self.areas), name="renderjobs_files"),
            path("browse/<str:area>/", view(self.folder), name="renderjobs_files_folder"),
            path("browse/<str:area>/upload/", view(self.upload), name="renderjobs_files_upload"),
            path("browse/<str:area>/delete/", view(self.remove), name="renderjobs_files_delete"),
            *super().get_urls(),
        ]

    def areas(self, request: HttpRequest) -> HttpResponse:
        """Where somebody may look: the own teams, and what is public."""
        if not self.may_visit(request):
            raise Http404
        teams = Team.objects.order_by("name")
        if not is_superuser(request):
            teams = teams.filter(pk__in=teams_as(request, *self.readers))
        return self._shown(request, "renderjobs/files_areas.html", "Files", {"teams": teams, "public": PUBLIC})

    def folder(self, request: HttpRequest, area: str) -> HttpResponse:
        team = self._team(request, area)
        place = _place(request.GET.get("folder", ""))
        begins, after = _of_a_name(request, "begins"), _of_a_name(request, "after")
        root = "/".join(part for part in (files_folder(team), place) if part)
        found = folder_page(default_storage, root, begins=begins, after=after, limit=PER_PAGE)
        here = reverse("admin:renderjobs_files_folder", args=[area])
        parts = place.split("/") if place else []
        context = {
            "area": area,
            "team": team,
            "here": here,
            "folder": place,
            "begins": begins,
            "after": after,
            "crumbs": [(part, _query(here, "/".join(parts[: depth + 1]))) for depth, part in enumerate(parts)],
            "folders": [
                (one.name, _query(here, f"{place}/{one.name}".lstrip("/"))) for one in found.entries if one.is_folder
            ],
            "files": files_shown(root, [one for one in found.entries if not one.is_folder], base_of(request)),
            "first": _query(here, place, begins=begins),
            "following": found.after and _query(here, place, begins=begins, after=found.after),
            "may_write": self._may_write_to(request, team),
            "accepted": ",".join(f".{ending}" for ending in (*PICTURE_FORMATS, *TEXT_ENDINGS)),
            "most_picture": MOST_PICTURE_BYTES,
            "most_text": MOST_TEXT_BYTES,
            "types": ", ".join(sorted((*PICTURE_FORMATS, *TEXT_ENDINGS))),
        }
        return self._shown(request, "renderjobs/files.html", f"Files of {team or 'everybody'}", context)

    def upload(self, request: HttpRequest, area: str) -> HttpResponse:
        team, place = self._target(request, area)
        said = [self._take_in(request, team, place, file) for file in request.FILES.getlist("files")]
        if not said:
            said = [(False, "No file was sent.")]
        if request.headers.get("X-Requested-With") == SCRIPT:
            done = all(fine for fine, _ in said)
            return JsonResponse({"said": [text for _, text in said]}, status=201 if done else 422)
        for fine, text in said:
            self.message_user(request, text, messages.SUCCESS if fine else messages.ERROR)
        return redirect(_back(area, place))

    def _take_in(self, request: HttpRequest, team: Team | None, place: str, file: Any) -> tuple[bool, str]:
        try:
            kept = file_upload(team=team, folder=place, name=file.name, file=file, user=request.user)  # type: ignore[arg-type]
        except PlatformError as error:
            return False, error.message
        record(kept, "was uploaded", key=kept.file_key, sha256=kept.sha256)
        return True, f"{kept.file_key.rpartition('/')[2]} is here."

    def remove(self, request: HttpRequest, area: str) -> HttpResponse:
        """Asks before it does; what is gone by then is passed over."""
        team, place = self._target(request, area)
        ids = [text for text in request.POST.getlist("file") if text.isdecimal() and len(text) < 19][:PER_PAGE]
        files = TeamFile.objects.filter(pk__in=ids, team=team, state=FileState.STORED)
        back = _back(area, place)
        if "sure" not in request.POST and files:
            context = {"files": files, "folder": place, "back": back, "area": area}
            return self._shown(request, "renderjobs/files_delete.html", "Delete files", context)
        for file in files:
            self.delete_model(request, file)
            self.message_user(request, f"{file.file_key.rpartition('/')[2]} is deleted.", messages.SUCCESS)
        return redirect(back)

    def _team(self, request: HttpRequest, area: str) -> Team | None:
        """None is the public area. Raises: Http404: There is no such area for this person."""
        if not self.may_visit(request):
            raise Http404
        if area == PUBLIC:
            return None
        known = area.isascii() and area.isdecimal() and len(area) < 19
        may_read = known and (is_superuser(request) or int(area) in teams_as(request, *self.readers))
        team = Team.objects.filter(pk=area).first() if may_read else None
        if team is None:
            raise Http404
        return team

    def _target(self, request: HttpRequest, area: str) -> tuple[Team | None, str]:
        """Area and folder of a POST. Raises: Http404, PermissionDenied."""
        team = self._team(request, area)
        if not self._may_write_to(request, team):
            raise PermissionDenied
        if request.method != "POST":
            raise Http404
        return team, request.POST.get("folder", "").strip(" ").rstrip("/")

    def _may_write_to(self, request: HttpRequest, team: Team | None) -> bool:
        return is_superuser(request) or (team is not None and team.pk in teams_as(request, *self.writers))

    def _shown(self, request: HttpRequest, template: str, title: str, context: dict[str, Any]) -> HttpResponse:
        shared = {**self.admin_site.each_context(request), "title": title, "opts": self.opts}
        return render(request, template, {**shared, **context})


def files_shown(folder: str, entries: list[Entry], base: str) -> list[dict[str, Any]]:
    """Files of one page with what is known of them: three questions to the database, however many there are."""
    keys = [f"{folder}/{entry.name}" for entry in entries]
    own = {file.file_key: file for file in TeamFile.objects.filter(file_key__in=keys)}
    images = {image.file_key: image for image in RenderImage.objects.filter(file_key__in=keys)}
    maps = ImageAttachment.objects.filter(file_key__in=keys).select_related("image")
    of_maps = {one.file_key: one.image for one in maps}
    return [
        _file_shown(entry, key, own.get(key), images.get(key) or of_maps.get(key), base)
        for entry, key in zip(entries, keys, strict=True)
    ]


def _file_shown(entry: Entry, key: str, file: TeamFile | None, image: RenderImage | None, base: str) -> dict[str, Any]:
    on_its_way = file is not None and file.state != FileState.STORED
    is_picture = entry.name.rpartition(".")[2].lower() in PICTURE_FORMATS
    return {
        "entry": entry,
        "row": file,
        "on_its_way": on_its_way,
        "is_picture": is_picture and not on_its_way,
        "url": "" if on_its_way else file_url(key, base=base),
        "save_url": "" if on_its_way else file_url(key, base=base, to_save=True),
        "page": reverse("admin:renderjobs_teamfile_change", args=[file.pk])
        if file
        else reverse("admin:renderjobs_image", args=[image.job_id, image.index])
        if image
        else "",
        "image": image,
        "infotext": (file and file.infotext) or (image.infotext if image and image.file_key == key else ""),
    }


def _place(folder: str) -> str:
    """Raises: Http404: No folder can have this name."""
    try:
        return folder_checked(folder)
    except InvalidRequestError as error:
        raise Http404 from error


def _of_a_name(request: HttpRequest, parameter: str) -> str:
    """The beginning or the whole of an entry's name; what no entry can be called is passed over."""
    text = request.GET.get(parameter, "")[:200]
    return text if PART.fullmatch(text.removesuffix("/")) else ""


def _back(area: str, folder: str) -> str:
    """To the folder, or to the uppermost where the name is none of a folder."""
    here = reverse("admin:renderjobs_files_folder", args=[area])
    try:
        return _query(here, folder_checked(folder))
    except InvalidRequestError:
        return here


def _query(here: str, folder: str, **more: str) -> str:
    values = {name: value for name, value in {"folder": folder, **more}.items() if value}
    return f"{here}?{urlencode(values)}" if values else here
