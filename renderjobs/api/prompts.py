"""`/api/v1/prompts…`: a short prompt in, long ones out. The body and its answer are both here: they are small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import Scope
from common.errors import FieldError, InvalidRequestError
from common.schema import problems
from renderjobs.api.serializers import ErrorSchema, given, seconds, unknown_fields
from renderjobs.api.views import UNKNOWN, caller_with
from renderjobs.choices import ExpansionState
from renderjobs.files import base_of
from renderjobs.models import PromptExpansion
from renderjobs.prompt_expansions import (
    DEFAULT_PROMPTS,
    MAX_SEED,
    MOST_PROMPTS,
    expansion_get,
    expansion_submit,
)

FIELDS = {"prompt", "model", "count", "seed"}


class NewExpansionSchema(serializers.Serializer):
    prompt = serializers.CharField(help_text="At most 16384 bytes.")
    model = serializers.CharField(required=False, help_text="A text generator's name; absent takes the first by name.")
    count = serializers.IntegerField(required=False, default=DEFAULT_PROMPTS, min_value=1, max_value=MOST_PROMPTS)
    seed = serializers.IntegerField(required=False, default=-1, min_value=-1, max_value=MAX_SEED)


class ExpansionLinksSchema(serializers.Serializer):
    self = serializers.URLField()


class ExpansionSchema(serializers.Serializer):
    id = serializers.UUIDField()
    state = serializers.ChoiceField(ExpansionState.values)
    prompt = serializers.CharField()
    model = serializers.CharField()
    count = serializers.IntegerField()
    seed = serializers.IntegerField(help_text="Of the first prompt; each one more has the next.")
    prompts = serializers.ListField(child=serializers.CharField(), help_text="Empty until they are written.")
    gpu_seconds = serializers.FloatField(help_text="On no bill.")
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)
    error = ErrorSchema(allow_null=True)
    links = ExpansionLinksSchema()


class ExpandView(APIView):
    @extend_schema(
        operation_id="prompts_expand",
        request=NewExpansionSchema,
        responses={201: ExpansionSchema, **problems(400, 401, 403, 413, 415, 422, 429, 501, 503)},
    )
    def post(self, request: Request) -> Response:
        """Have a language model make long prompts of a short one: follow `links.self` until they are written."""
        caller = caller_with(request, Scope.JOBS_WRITE)
        answer = expansion_json(expansion_submit(caller=caller, **expansion_body(request.data)), base=base_of(request))
        return Response(answer, status=201, headers={"Location": answer["links"]["self"]})


class ExpansionView(APIView):
    @extend_schema(operation_id="prompts_get", responses={200: ExpansionSchema, **UNKNOWN})
    def get(self, request: Request, expansion_id: str) -> Response:
        """A prompt and what was made of it."""
        expansion = expansion_get(caller_with(request, Scope.JOBS_READ), expansion_id)
        return Response(expansion_json(expansion, base=base_of(request)))


def expansion_body(body: Any) -> dict[str, Any]:
    """Raises: InvalidRequestError: It is no object, or has fields nobody knows; what they hold is looked at later."""
    if not isinstance(body, Mapping):
        raise InvalidRequestError([FieldError("", "The body must be a JSON object.")])
    if errors := unknown_fields(body, FIELDS, ""):
        raise InvalidRequestError(errors)
    defaults = {"prompt": "", "model": "", "count": DEFAULT_PROMPTS, "seed": -1}
    return {name: given(body, name, default) for name, default in defaults.items()}


def expansion_json(expansion: PromptExpansion, *, base: str) -> dict[str, Any]:
    failed = {"code": expansion.error_code, "message": expansion.error_message}
    return {
        "id": str(expansion.pk),
        "state": expansion.state,
        "prompt": expansion.prompt,
        "model": expansion.model.name,
        "count": expansion.count,
        "seed": expansion.seed,
        "prompts": expansion.prompts,
        "gpu_seconds": seconds(expansion.gpu_us),
        "created_at": expansion.created_at.isoformat(),
        "finished_at": expansion.finished_at.isoformat() if expansion.finished_at else None,
        "error": failed if expansion.error_code else None,
        "links": {"self": f"{base}/api/v1/prompts/{expansion.pk}"},
    }
