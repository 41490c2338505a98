"""The admin's site: who may enter, and the pages of the second factor. The rules of codes are in ``second_factor.py``."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME, login, update_session_auth_hash
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from unfold.sites import UnfoldAdminSite

ENROLMENT_KEY = "second_factor_key"


class CodeForm(forms.Form):
    code = forms.CharField(max_length=32)

    def __init__(self, *args: Any, **kwargs: Any):
        from unfold.widgets import UnfoldAdminTextInputWidget

        super().__init__(*args, **kwargs)
        attributes = {"autocomplete": "one-time-code", "autofocus": "", "spellcheck": "false", "autocapitalize": "off"}
        self.fields["code"].widget = UnfoldAdminTextInputWidget(attrs=attributes)


class PlatformSite(UnfoldAdminSite):
    """Models are imported inside: the site exists before they do."""

    def has_permission(self, request: HttpRequest) -> bool:
        """Staff; where the second factor is demanded, only with it."""
        return super().has_permission(request) and (not settings.REQUIRE_SECOND_FACTOR or is_verified(request))

    def get_urls(self) -> list[URLPattern]:
        return [
            path("login/code/", self.code_page, name="login_code"),
            path("login/second-factor/", self.enrolment_page, name="login_enrolment"),
            path("account/second-factor/", self.admin_view(self.second_factor_page), name="second_factor"),
            path("account/second-factor/new/", self.admin_view(self.new_second_factor_page), name="second_factor_new"),
            *super().get_urls(),
        ]

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Django's page. After the right password whoever has or needs a second factor goes on to it, not signed in yet."""
        from django.contrib.auth.views import LoginView

        from accounts.pending import pending_begin
        from accounts.second_factor import has_second_factor

        class SignIn(LoginView):
            def form_valid(self, form: Any) -> HttpResponse:
                user = form.get_user()
                if has_second_factor(user):
                    following = "admin:login_code"
                elif settings.REQUIRE_SECOND_FACTOR:
                    following = "admin:login_enrolment"
                else:
                    return super().form_valid(form)
                pending_begin(self.request, user, next_page=self.get_redirect_url())
                return redirect(following)

        if request.method == "GET" and self.has_permission(request):
            return redirect("admin:index")
        context = {**self.each_context(request), "title": "Log in", "app_path": request.get_full_path()}
        if REDIRECT_FIELD_NAME not in request.GET and REDIRECT_FIELD_NAME not in request.POST:
            context[REDIRECT_FIELD_NAME] = reverse("admin:index")
        view = SignIn.as_view(
            extra_context={**context, **(extra_context or {})},
            authentication_form=self.login_form,
            template_name="admin/login.html",
        )
        return never_cache(view)(request)

    # --- signing in ---------------------------------------------------------------------------------------------------

    def code_page(self, request: HttpRequest) -> HttpResponse:
        return _guarded(self._code_page)(request)

    def enrolment_page(self, request: HttpRequest) -> HttpResponse:
        return _guarded(self._enrolment_page)(request)

    def _code_page(self, request: HttpRequest) -> HttpResponse:
        from accounts.pending import pending_user

        user = pending_user(request)
        if user is None:
            return redirect("admin:login")
        form = CodeForm(request.POST or None)
        device = accepted(form, user) if request.method == "POST" else None
        if device is None:
            return self._page(request, "accounts/code.html", "Second factor", form=form)
        return enter(request, user, device)

    def _enrolment_page(self, request: HttpRequest) -> HttpResponse:
        """For whom the second factor is demanded of and has none: signing in and setting it up in one."""
        from accounts.pending import pending_user
        from accounts.second_factor import has_second_factor

        user = pending_user(request)
        if user is None or has_second_factor(user):
            return redirect("admin:login")
        return self._set_up(request, user)

    # --- of the signed in ---------------------------------------------------------------------------------------------

    def second_factor_page(self, request: HttpRequest) -> HttpResponse:
        """What there is, and, against a code, new recovery codes or an end."""
        from accounts.second_factor import has_second_factor, recovery_codes_renew, second_factor_remove

        user: Any = request.user
        if not has_second_factor(user):
            return redirect("admin:second_factor_new")
        form = CodeForm(request.POST or None)
        if request.method == "POST" and accepted(form, user):
            if request.POST.get("do") == "remove":
                second_factor_remove(user=user)
                return redirect("admin:login")  # with all the others this session has ended too
            codes = recovery_codes_renew(user=user)
            return self._page(request, "accounts/recovery_codes.html", "Recovery codes", codes=codes)
        left = user.recovery_codes.count()
        return self._page(request, "accounts/second_factor.html", "Second factor", form=form, codes_left=left)

    def new_second_factor_page(self, request: HttpRequest) -> HttpResponse:
        from accounts.second_factor import has_second_factor

        if has_second_factor(request.user):  # type: ignore[arg-type]
            return redirect("admin:second_factor")
        return self._set_up(request, request.user)

    def _set_up(self, request: HttpRequest, user: Any) -> HttpResponse:
        from accounts.second_factor import key_address, key_text, new_key, second_factor_set
        from common.errors import InvalidRequestError

        key = request.session.get(ENROLMENT_KEY)
        form = CodeForm(request.POST or None)
        if key and request.method == "POST" and form.is_valid():
            try:
                device, codes = second_factor_set(user=user, key=key, code=form.cleaned_data["code"].replace(" ", ""))
            except InvalidRequestError as error:
                form.add_error("code", error.errors[0].message)
            else:
                del request.session[ENROLMENT_KEY]
                following = enter(request, user, device)
                context = {"codes": codes, "following": following.url}
                return self._page(request, "accounts/recovery_codes.html", "Recovery codes", **context)
        key = request.session.setdefault(ENROLMENT_KEY, key or new_key())
        context = {"form": form, "key": key_text(key), "picture": qr_code(key_address(key, user))}
        return self._page(request, "accounts/enrolment.html", "Set up the second factor", **context)

    def _page(self, request: HttpRequest, template: str, title: str, **context: Any) -> HttpResponse:
        return render(request, template, {**self.each_context(request), "title": title, **context})


def _guarded(view: Any) -> Any:
    return never_cache(csrf_protect(view))


def is_verified(request: HttpRequest) -> bool:
    """Whether this session was begun with a second factor. Whoever loses the device loses the sessions with it."""
    from django_otp import DEVICE_ID_SESSION_KEY

    return DEVICE_ID_SESSION_KEY in request.session


def accepted(form: CodeForm, user: Any) -> Any:
    """The device if the form has its code; else None, and the form says why."""
    from accounts.second_factor import second_factor_accept
    from common.errors import InvalidRequestError

    if not form.is_valid():
        return None
    try:
        device = second_factor_accept(user=user, code=form.cleaned_data["code"])
    except InvalidRequestError as error:
        form.add_error("code", error.errors[0].message)
        return None
    if device is None:
        form.add_error("code", "This code is wrong or was used already.")
    return device


def enter(request: HttpRequest, user: Any, device: Any) -> HttpResponseRedirect:
    """Sign in, or renew the session of whoever is signed in, with the second factor; then to the page that was asked for."""
    import django_otp

    from accounts.pending import pending_end

    following = pending_end(request)
    user.refresh_from_db(fields=["session_epoch"])
    if request.user.is_authenticated and request.user.pk == user.pk:
        update_session_auth_hash(request, user)
    else:
        login(request, user)
    django_otp.login(request, device)
    return HttpResponseRedirect(following or reverse("admin:index"))


def qr_code(text: str) -> SafeString:
    """An SVG made here; nothing is asked of anybody else."""
    import segno

    return mark_safe(segno.make(text, error="m").svg_inline(omitsize=True, border=4, dark="#000", light="#fff"))  # noqa: S308 our own drawing
