"""How problem+json stands in the OpenAPI document of our own API."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiResponse
from rest_framework import serializers

from common.problem import CONTENT_TYPE


class ProblemItemSchema(serializers.Serializer):
    pointer = serializers.CharField()
    detail = serializers.CharField()


class ProblemSchema(serializers.Serializer):
    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    code = serializers.CharField()
    detail = serializers.CharField()
    errors = ProblemItemSchema(many=True, required=False)


def problems(
    *statuses: int, schema: type[serializers.Serializer] = ProblemSchema, description: str = ""
) -> dict[tuple[int, str], OpenApiResponse]:
    """For ``extend_schema(responses=…)``."""
    return {(status, CONTENT_TYPE): OpenApiResponse(schema, description=description) for status in statuses}
