"""`/api/v1/quotas`: what the caller may still ask for."""

from __future__ import annotations

import uuid

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import Scope
from billing.errors import whose
from billing.models import Measure
from billing.quotas import quotas_of, uses_of
from billing.subjects import Subject
from common.schema import problems
from renderjobs.api.views import caller_with


class QuotaUseSchema(serializers.Serializer):
    quota = serializers.ChoiceField(Measure.values)
    whose = serializers.ChoiceField(("token", "member", "team", "organisation"))
    limit = serializers.IntegerField()
    used = serializers.IntegerField()
    left = serializers.IntegerField()
    resets_at = serializers.DateTimeField(allow_null=True, help_text="Null where it is free again as work goes on.")


class QuotasSchema(serializers.Serializer):
    results = QuotaUseSchema(many=True)


class QuotasView(APIView):
    @extend_schema(operation_id="quotas", responses={200: QuotasSchema, **problems(401, 403)})
    def get(self, request: Request) -> Response:
        """Every quota that concerns the caller, with what is used of it: the numbers of a refusal, beforehand."""
        caller = caller_with(request, Scope.USAGE_READ)
        assert caller.token is not None
        subject = Subject(
            job_id=uuid.UUID(int=0), team_id=caller.team.pk, user_id=caller.user.pk, token_id=caller.token.pk
        )
        rows = [
            {
                "quota": use.quota.measure,
                "whose": whose(use.quota),
                "limit": use.quota.limit,
                "used": use.used,
                "left": max(0, use.quota.limit - use.used),
                "resets_at": use.resets_at.isoformat() if use.resets_at else None,
            }
            for use in uses_of(quotas_of(subject).order_by("measure", "pk"))
        ]
        return Response({"results": rows})
