"""What a person sees who opens a service's address in a browser: why there is no web UI, and how the service is called.

A browser sends no token; the session of the admin says who it is. To everybody else every name is answered alike.
"""

from __future__ import annotations

from importlib import import_module
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import reverse

from accounts.models import Role, User
from renderjobs.compat.eas.wire import Query
from renderjobs.models import EasService


def is_opened(request: HttpRequest, query: Query, path: str) -> bool:
    """Whether a person, not a program, asks for the address itself."""
    wants_a_page = "text/html" in request.headers.get("Accept", "")
    return request.method == "GET" and wants_a_page and not (path or query.own or request.headers.get("Authorization"))


def page_of(request: HttpRequest, name: str) -> HttpResponse:
    """401 without a session, else 404: there is a page, but nothing to use."""
    user = _signed_in(request)
    service = EasService.objects.visible_to(user).named(name).first() if user else None
    context = {
        "name": name,
        "is_signed_in": user is not None,
        "service": service,
        "login": f"{reverse('admin:login')}?{urlencode({'next': request.path})}",
        "calling": _calling(user, service) if user and service else "",
        "base": f"{request.scheme}://{request.get_host()}",
    }
    page = render_to_string("renderjobs/service_in_browser.html", context)
    response = HttpResponse(page, status=404 if user else 401)
    response["Cache-Control"] = "no-store"
    return response


def _signed_in(request: HttpRequest) -> User | None:
    """This door has no middleware, so the session is read here."""
    engine = import_module(settings.SESSION_ENGINE)
    request.session = engine.SessionStore(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    user = get_user(request)
    return user if isinstance(user, User) else None


def _calling(user: User, service: EasService) -> str:
    """The page that says how to call it, for those whom the admin shows it."""
    reads = user.is_superuser or (user.is_staff and user.role_in(service.team) == Role.LEAD)
    return reverse("admin:renderjobs_easservice_calling", args=[service.pk]) if reads else ""
