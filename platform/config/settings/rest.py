"""Django REST Framework and the OpenAPI document."""

from __future__ import annotations

from config import env

SDAPI_AUTHENTICATION = env.choices(
    "SDAPI_AUTHENTICATION", ("bearer", "token", "basic", "basic-user"), "bearer,token,basic"
)
"""How clients of A1111's interface may send their token: ``Bearer``, bare, as the password of any user name, or of its owner's."""
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.ApiTokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["common.parsers.BoundedJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "common.problem.exception_handler",
    "STRICT_JSON": True,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Renderkiln job API",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SCHEMA_PATH_PREFIX": "/api/v1",
    # Two fields are called kind: of a job and of a model.
    "ENUM_NAME_OVERRIDES": {"AssetKindEnum": "assets.models.AssetKind", "JobKindEnum": "renderjobs.choices.JobKind"},
}
