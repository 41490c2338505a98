"""`/api/v1/models`: what a caller may use, with its card; and changes of cards by those who may make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.authentication import Caller
from accounts.models import Role, Scope
from assets.cards import FIELDS
from assets.models import Access, Asset, AssetKind, AssetQuerySet
from assets.previews import preview_from_text, preview_url
from assets.selectors import same_bytes
from assets.services import asset_describe
from assets.uses import uses_of
from common.errors import FieldError, ForbiddenError, InvalidRequestError, NotFoundError
from common.schema import problems

PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000
UNKNOWN = problems(401, 403, 404)


class CardSchema(serializers.Serializer):
    description = serializers.CharField()
    trigger_words = serializers.CharField()
    preferred_weight = serializers.FloatField(allow_null=True)
    licence = serializers.CharField()
    source_page = serializers.CharField()
    base_model = serializers.CharField()
    notes = serializers.CharField()


class ModelSchema(CardSchema):
    id = serializers.IntegerField()
    kind = serializers.ChoiceField(choices=AssetKind.choices)
    name = serializers.CharField()
    title = serializers.CharField(help_text="As A1111 shows it: file name and short hash.")
    alias = serializers.CharField()
    family = serializers.CharField()
    sha256 = serializers.CharField()
    short_hash = serializers.CharField()
    size_bytes = serializers.IntegerField()
    is_default = serializers.BooleanField()
    same_bytes_as = serializers.ListField(
        child=serializers.CharField(), help_text="Other names under which the same file is here."
    )
    pools = serializers.ListField(child=serializers.CharField(), help_text="Where it may run; empty: anywhere.")
    approved_at = serializers.DateTimeField()
    preview = serializers.CharField(
        allow_null=True, help_text="A signed address that needs no header and expires in an hour."
    )


class ModelPageSchema(serializers.Serializer):
    results = ModelSchema(many=True)
    next = serializers.CharField(allow_null=True)


class ModelChangesSchema(serializers.Serializer):
    description = serializers.CharField(required=False)
    trigger_words = serializers.CharField(required=False)
    preferred_weight = serializers.FloatField(required=False, allow_null=True)
    licence = serializers.CharField(required=False)
    source_page = serializers.CharField(required=False)
    base_model = serializers.CharField(required=False)
    notes = serializers.CharField(required=False)
    preview = serializers.CharField(
        required=False, allow_null=True, help_text="A picture in base64 or as a data URI; null for none."
    )


class UseSchema(serializers.Serializer):
    what = serializers.ChoiceField(choices=["default", "template", "schedule", "options", "style"])
    name = serializers.CharField()
    team = serializers.CharField()
    next_run = serializers.DateTimeField(allow_null=True)
    then = serializers.CharField()
    breaks = serializers.BooleanField(
        help_text="It would be refused; else it goes on with another file or without one."
    )


class UsesSchema(serializers.Serializer):
    uses = UseSchema(many=True)
    more = serializers.BooleanField(help_text="More was found than is listed.")
    open_jobs = serializers.DictField(
        child=serializers.IntegerField(), help_text="By state; they keep what they pinned."
    )


class ModelsView(APIView):
    @extend_schema(
        operation_id="models_list",
        parameters=[
            OpenApiParameter("kind", str, enum=AssetKind.values),
            OpenApiParameter("name", str, description="A part of the name, the trigger words or the base model."),
            OpenApiParameter("limit", int),
            OpenApiParameter("before", int, description="The id of the last model of the page before."),
        ],
        responses={200: ModelPageSchema, **problems(401, 403, 422)},
    )
    def get(self, request: Request) -> Response:
        """The models the caller may use, newest first."""
        caller = caller_with(request, Scope.MODELS_READ)
        limit = number(request, "limit", PAGE_SIZE, most=MAX_PAGE_SIZE)
        rows = list(asked(models_of(caller), request)[: limit + 1])
        query = {**request.query_params.dict(), "before": str(rows[limit - 1].pk)} if len(rows) > limit else None
        following = f"{base_of(request)}{request.path}?{urlencode(query)}" if query else None
        same = same_bytes(models_of(caller).filter(sha256__in={asset.sha256 for asset in rows}))
        return Response({"results": [shown(request, asset, same) for asset in rows[:limit]], "next": following})


class ModelView(APIView):
    @extend_schema(operation_id="models_get", responses={200: ModelSchema, **UNKNOWN})
    def get(self, request: Request, model_id: int) -> Response:
        """One model."""
        caller = caller_with(request, Scope.MODELS_READ)
        return Response(shown_alone(request, caller, model_get(caller, model_id)))

    @extend_schema(
        operation_id="models_describe",
        request=ModelChangesSchema,
        responses={200: ModelSchema, **problems(400, 413, 415, 422), **UNKNOWN},
    )
    def patch(self, request: Request, model_id: int) -> Response:
        """Change a model's card; fields that are not named stay. By platform admins, and by leads for their own team's models."""
        caller = caller_with(request, Scope.MODELS_WRITE)
        asset = model_get(caller, model_id)
        require_may_describe(caller, asset)
        said, preview = changes_of(request.data)
        return Response(shown_alone(request, caller, asset_describe(asset=asset, said=said, preview=preview)))


class ModelUsesView(APIView):
    @extend_schema(operation_id="models_uses", responses={200: UsesSchema, **UNKNOWN})
    def get(self, request: Request, model_id: int) -> Response:
        """What leads to this model today, and what it would lead to if the model were retired; for those who may write its card."""
        caller = caller_with(request, Scope.MODELS_WRITE)
        asset = model_get(caller, model_id)
        require_may_describe(caller, asset)
        uses = uses_of(asset, team=None if caller.user.is_superuser else caller.team)
        found = [
            {
                "what": use.what,
                "name": use.name,
                "team": use.team,
                "next_run": use.when,
                "then": use.then,
                "breaks": use.breaks,
            }
            for use in uses.found
        ]
        return Response({"uses": found, "more": uses.more, "open_jobs": uses.jobs})


def caller_with(request: Request, scope: str) -> Caller:
    """Raises: ForbiddenError."""
    caller = request.auth
    assert isinstance(caller, Caller)
    caller.require(scope)
    return caller


def models_of(caller: Caller) -> AssetQuerySet:
    return Asset.objects.visible_to(user=caller.user, team=caller.team).prefetch_related("pools")


def model_get(caller: Caller, model_id: int) -> Asset:
    """Raises: NotFoundError: There is none, or the caller may not use it."""
    asset = models_of(caller).filter(pk=model_id).first()
    if asset is None:
        raise NotFoundError("There is no such model.")
    return asset


def require_may_describe(caller: Caller, asset: Asset) -> None:
    """Raises: ForbiddenError: The caller neither runs the platform nor leads the one team whose model it is."""
    if caller.user.is_superuser:
        return
    own = asset.access == Access.TEAMS and set(asset.teams.values_list("pk", flat=True)) == {caller.team.pk}
    if not (own and caller.user.role_in(caller.team) == Role.LEAD):
        raise ForbiddenError(
            "Cards are written by those who run the platform, and by leads for models of their team alone."
        )


def changes_of(body: Any) -> tuple[dict[str, Any], bytes | None]:
    """Raises: InvalidRequestError: No object, a field that no card has, or no picture."""
    if not isinstance(body, dict):
        raise InvalidRequestError([FieldError("", "The body is not an object.")])
    unknown = [name for name in body if name not in (*FIELDS, "preview")]
    if unknown:
        raise InvalidRequestError([FieldError(name, f"Field {name[:80]!r} is unknown.", None) for name in unknown[:20]])
    said = {name: value for name, value in body.items() if name != "preview"}
    if "preview" not in body:
        return said, None
    picture = body["preview"]
    if picture is None:
        return said, b""
    if not isinstance(picture, str):
        raise InvalidRequestError([FieldError("preview", "The preview is a picture in base64, or null for none.")])
    return said, preview_from_text(picture)


def asked(models: AssetQuerySet, request: Request) -> AssetQuerySet:
    """Raises: InvalidRequestError: A filter that cannot be read."""
    kind, text = request.query_params.get("kind"), request.query_params.get("name", "")
    if kind:
        if kind not in AssetKind.values:
            accepted = ", ".join(AssetKind.values)
            raise InvalidRequestError([FieldError("kind", f"kind is {kind!r:.80}; accepted are {accepted}.", kind)])
        models = models.filter(kind=kind)
    if text and "\x00" not in text:
        models = models.filter(
            Q(name__icontains=text) | Q(trigger_words__icontains=text) | Q(base_model__icontains=text)
        )
    if before := number(request, "before", 0):
        models = models.filter(pk__lt=before)
    return models.order_by("-pk")


def number(request: Request, name: str, default: int, *, most: int = 2**62) -> int:
    """Raises: InvalidRequestError."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and 1 <= int(text) <= most):
        raise InvalidRequestError(
            [FieldError(name, f"{name} is {text!r:.80}; a whole number of at least 1 is accepted.")]
        )
    return int(text)


def base_of(request: Request) -> str:
    return f"{request._request.scheme}://{request.get_host()}"


def shown_alone(request: Request, caller: Caller, asset: Asset) -> dict[str, Any]:
    return shown(request, asset, same_bytes(models_of(caller).filter(sha256=asset.sha256)))


def shown(request: Request, asset: Asset, same: Mapping[int, list[str]]) -> dict[str, Any]:
    """Args: same: What ``same_bytes`` says of it and others."""
    return {
        "id": asset.pk,
        "kind": asset.kind,
        "name": asset.name,
        "title": asset.title,
        "alias": asset.alias,
        "family": asset.family,
        "sha256": asset.sha256,
        "short_hash": asset.short_hash,
        "size_bytes": asset.size_bytes,
        "is_default": asset.is_default,
        "same_bytes_as": same.get(asset.pk, []),
        "pools": [pool.name for pool in asset.pools.all()],
        "approved_at": asset.approved_at,
        **asset.card.values(),
        "preview": preview_url(asset, base=base_of(request)),
    }
