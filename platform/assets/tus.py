"""Resumable uploads over HTTP: the tus protocol 1.0.0 with its extensions creation, termination and expiration.

Any tus client works (tus-js-client in the admin's page, tus-py-client, uppy). Only HTTP here; what a part means is in ``uploads``.

Source: https://tus.io/protocols/resumable-upload
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from uuid import UUID

from django.urls import reverse
from django.utils.http import http_date
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from kombu.exceptions import OperationalError
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.authentication import AdminSessionAuthentication, ApiTokenAuthentication, Caller
from accounts.models import Role, Scope, Team, User
from assets.cards import FIELDS
from assets.hashing import CHUNK_BYTES
from assets.models import Access, Upload
from assets.tasks import join
from assets.uploads import KEPT, MOST_BYTES, MOST_PART_BYTES, upload_append, upload_begin, upload_give_up
from common.errors import FieldError, ForbiddenError, InvalidRequestError, NotFoundError, PlatformError
from common.schema import problems

logger = logging.getLogger(__name__)
VERSION = "1.0.0"
SPOOLED_IN_MEMORY = 4 * 1024**2
PART_TYPE = "application/offset+octet-stream"
WHO_UPLOADS = "Models are uploaded by those who run the platform and by team leads."
RESUMABLE = OpenApiParameter(
    "Tus-Resumable", str, OpenApiParameter.HEADER, required=True, enum=[VERSION], description="The protocol's version."
)
OFFSET = OpenApiParameter(
    "Upload-Offset", int, OpenApiParameter.HEADER, required=True, description="Bytes already here."
)
LENGTH = OpenApiParameter(
    "Upload-Length", int, OpenApiParameter.HEADER, required=True, description="Bytes of the file."
)
METADATA = OpenApiParameter(
    "Upload-Metadata",
    str,
    OpenApiParameter.HEADER,
    required=True,
    description="Pairs of a key and its base64 value: `filename`, `kind`; optional `name`, `sha256`, `config` (YAML), "
    "`access`, `teams`, `users` (ids), and what is known about the file: `description`, `trigger_words`, `preferred_weight`, "
    "`licence`, `source_page`, `base_model`, `notes`.",
)


class UnsupportedVersionError(PlatformError):
    code = "unsupported_tus_version"
    status = 412


class UnsupportedTypeError(PlatformError):
    code = "unsupported_media_type"
    status = 415


class TusView(APIView):
    """Anybody who may upload models: a token of scope ``models:write``, or somebody signed in to the admin."""

    authentication_classes = [ApiTokenAuthentication, AdminSessionAuthentication]
    permission_classes = [IsAuthenticated]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if isinstance(request.auth, Caller):
            request.auth.require(Scope.MODELS_WRITE)
        if request.headers.get("Tus-Resumable") != VERSION:
            raise UnsupportedVersionError(f"Header Tus-Resumable has to say {VERSION}.")

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response["Tus-Resumable"] = VERSION
        response["Cache-Control"] = "no-store"
        if response.status_code == UnsupportedVersionError.status:
            response["Tus-Version"] = VERSION
        return response


class UploadsView(TusView):
    @extend_schema(
        operation_id="upload_begin",
        summary="Announce a file of weights (tus creation)",
        parameters=[RESUMABLE, LENGTH, METADATA],
        request=None,
        responses={
            201: OpenApiResponse(description="`Location` is where its parts go."),
            **problems(401, 403, 409, 412, 413, 422),
        },
    )
    def post(self, request: Request) -> Response:
        values = metadata_of(request.headers.get("Upload-Metadata", ""))
        user = uploader(request)
        access, teams, users = who_may_use(request, values)
        upload = upload_begin(
            uploaded_by=user,
            name=values.get("name") or values.get("filename", ""),
            kind=values.get("kind", ""),
            size_bytes=whole_number(request, "Upload-Length"),
            sha256=values.get("sha256", ""),
            config=values.get("config", ""),
            access=access,
            teams=teams,
            users=users,
            card={name: values[name] for name in FIELDS if name in values},
        )
        return Response(status=201, headers={"Location": reverse("upload", args=[upload.pk]), **expires(upload)})


class UploadView(TusView):
    @extend_schema(
        operation_id="upload_state",
        summary="How much of a file is here (tus)",
        parameters=[RESUMABLE],
        responses={
            200: OpenApiResponse(description="Headers `Upload-Offset` and `Upload-Length`."),
            **problems(401, 403, 404, 412),
        },
    )
    def head(self, request: Request, upload_id: UUID) -> Response:
        upload = own_upload(request, upload_id)
        return Response(headers={**state(upload), **expires(upload)})

    @extend_schema(
        operation_id="upload_append",
        summary="Send the next part of a file (tus)",
        parameters=[RESUMABLE, OFFSET],
        request={PART_TYPE: bytes},
        responses={
            204: OpenApiResponse(description="`Upload-Offset` is where the next part begins."),
            **problems(401, 403, 404, 409, 412, 413, 415, 422),
        },
    )
    def patch(self, request: Request, upload_id: UUID) -> Response:
        upload = own_upload(request, upload_id)
        require_still_uploads(uploader(request), upload)
        if request.content_type != PART_TYPE:
            raise UnsupportedTypeError(f"A part is sent as {PART_TYPE}.")
        with spooled(request) as part:
            upload.received_bytes = upload_append(
                upload=upload, offset=whole_number(request, "Upload-Offset"), part=part
            )
        if upload.is_complete:
            join_soon(upload)
            return Response(status=204, headers=state(upload))
        return Response(status=204, headers={**state(upload), **expires(upload)})

    @extend_schema(
        operation_id="upload_give_up",
        summary="Give a file up (tus termination)",
        parameters=[RESUMABLE],
        responses={
            204: OpenApiResponse(description="Nothing of it is kept."),
            **problems(401, 403, 404, 409, 412),
        },
    )
    def delete(self, request: Request, upload_id: UUID) -> Response:
        upload_give_up(own_upload(request, upload_id))
        return Response(status=204)


def spooled(request: Request) -> IO[bytes]:
    """The body as a file that storages can read twice; of one that is too large only enough to see that."""
    part = SpooledTemporaryFile(max_size=SPOOLED_IN_MEMORY)  # noqa: SIM115 - the caller closes it
    while (chunk := request._request.read(CHUNK_BYTES)) and part.tell() <= MOST_PART_BYTES:
        part.write(chunk)
    part.seek(0)
    return part  # type: ignore[return-value]


def join_soon(upload: Upload) -> None:
    try:
        join.delay(str(upload.pk))
    except OperationalError:
        logger.warning("The broker does not answer; upload %s is joined when intakes are resumed.", upload.pk)


def uploader(request: Request) -> User:
    user = request.user
    assert isinstance(user, User)
    return user


def own_upload(request: Request, upload_id: UUID) -> Upload:
    """Raises: NotFoundError: There is none, or it is somebody else's."""
    upload = Upload.objects.select_related("asset").filter(pk=upload_id, asset__uploaded_by=uploader(request)).first()
    if upload is None:
        raise NotFoundError("There is no such upload.")
    return upload


def require_still_uploads(user: User, upload: Upload) -> None:
    """Raises: ForbiddenError: The role with which it was begun is another now."""
    if not user.is_superuser and not any(user.role_in(team) == Role.LEAD for team in upload.asset.teams.all()):
        raise ForbiddenError(WHO_UPLOADS)


def who_may_use(request: Request, values: Mapping[str, str]) -> tuple[str, tuple[Team, ...], tuple[User, ...]]:
    """Those who run the platform decide; a team's lead uploads for the own team.

    Raises:
        ForbiddenError: The caller is neither.
        InvalidRequestError: Nobody could use the file.
    """
    access = values.get("access", "")
    team = request.auth.team if isinstance(request.auth, Caller) else None
    if uploader(request).is_superuser:
        teams, users = chosen(Team, values.get("teams", "")), chosen(User, values.get("users", ""))
        for field, rows, needs in (("teams", teams, Access.TEAMS), ("users", users, Access.USERS)):
            if access == needs and not rows:
                raise InvalidRequestError([FieldError(field, f"Choose {field}: nobody could use the model otherwise.")])
        return access or Access.PUBLIC, teams, users
    if team and uploader(request).role_in(team) == Role.LEAD:
        if access not in ("", Access.TEAMS):
            raise ForbiddenError("A team's lead uploads models for the own team: access `teams`.")
        return Access.TEAMS, (team,), ()
    raise ForbiddenError(WHO_UPLOADS)


def chosen(model: type[Any], ids: str) -> tuple[Any, ...]:
    """Raises: InvalidRequestError: An id is not a number; unknown ones are passed over."""
    parts = [part.strip() for part in ids.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        field = f"{model._meta.model_name}s"
        raise InvalidRequestError([FieldError(field, f"{ids[:80]!r} is not a list of ids.", ids)])
    return tuple(model.objects.filter(pk__in=parts))


def metadata_of(header: str) -> dict[str, str]:
    """Raises: InvalidRequestError: It is not pairs of a key and base64."""
    values = {}
    for pair in filter(None, (pair.strip() for pair in header.split(","))):
        key, _, encoded = pair.partition(" ")
        try:
            values[key] = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            message = f"The value of {key[:40]!r} in Upload-Metadata is not text in base64."
            raise InvalidRequestError([FieldError("Upload-Metadata", message, encoded[:80])]) from error
    return values


def whole_number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidRequestError(
            [FieldError(header, f"Header {header} is {text[:40]!r}; a whole number is needed.", text)]
        )
    return int(text)


def state(upload: Upload) -> dict[str, str]:
    return {"Upload-Offset": str(upload.received_bytes), "Upload-Length": str(upload.size_bytes)}


def expires(upload: Upload) -> dict[str, str]:
    upload.refresh_from_db(fields=["touched_at"])
    return {"Upload-Expires": http_date((upload.touched_at + KEPT).timestamp()), "Tus-Max-Size": str(MOST_BYTES)}
