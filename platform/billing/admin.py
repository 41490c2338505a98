"""Money in the admin: budgets and quotas; rate cards until they are published; the book, holds and the usage to read."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path, re_path
from django.utils import timezone
from unfold.admin import TabularInline
from unfold.decorators import action, display
from unfold.forms import PaginationInlineFormSet

from accounts.admin import PartInline, PlatformAdmin, TeamAdmin, TeamFilter, TeamPage, is_superuser, teams_as
from accounts.models import ApiToken, Role
from billing import costs
from billing.corrections import MOST_REASON, charges_take_back
from billing.forms import BudgetForm, QuotaForm, a_currency
from billing.imports import BudgetRows, QuotaRows
from billing.mails import mail_again
from billing.models import (
    Account,
    BillingProfile,
    Budget,
    BudgetNotice,
    BudgetPeriod,
    BudgetScope,
    BudgetThreshold,
    DeploymentSpan,
    Hold,
    LedgerLine,
    LedgerTransaction,
    OutgoingMail,
    Quota,
    RateCard,
    RatePrice,
    UsageRecord,
)
from billing.models.money import MOST_PRICE, MOST_PRICE_OF_INSTANCES
from billing.quotas import uses_of
from billing.ratecards import draft_publish
from common.errors import InvalidRequestError, PlatformError
from common.exporting import ListExport
from common.importing import BOTH, ListImport

MOST_CHOSEN = 500
"""Entries of the book on the page that asks why they are taken back."""


class ReadOnlyInline(TabularInline):
    extra = 0
    can_delete = False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True  # as far as the page it is on

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class PriceForm(forms.ModelForm):
    class Meta:
        model = RatePrice
        fields = ("pool", "lane", "per_gpu_second", "per_megapixel_step", "per_instance_hour")

    def clean_per_gpu_second(self) -> Any:
        return a_price(self.cleaned_data["per_gpu_second"], MOST_PRICE)

    def clean_per_megapixel_step(self) -> Any:
        return a_price(self.cleaned_data["per_megapixel_step"], MOST_PRICE)

    def clean_per_instance_hour(self) -> Any:
        price = a_price(self.cleaned_data["per_instance_hour"], MOST_PRICE_OF_INSTANCES)
        if price is not None and self.cleaned_data.get("lane") is not None:
            raise forms.ValidationError(
                "Instances are deployed in a pool, for every lane; it is accepted where no lane is named."
            )
        return price


def a_price(price: Any, most: Decimal) -> Any:
    if price is not None and not 0 <= price <= most:
        raise forms.ValidationError(f"The price is {price}; zero to {most:f} is accepted.")
    return price


class PriceInline(ReadOnlyInline):
    model = RatePrice
    form = PriceForm
    extra = 0
    min_num = 1
    fields = ("pool", "lane", "per_gpu_second", "per_megapixel_step", "per_instance_hour")
    verbose_name_plural = "prices (no pool, no lane: every other)"

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        return super().get_formset(request, obj, validate_min=True, **kwargs)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_draft(obj) and is_superuser(request)

    has_change_permission = has_delete_permission = has_add_permission


def is_draft(card: RateCard | None) -> bool:
    return card is None or card.published_at is None


class RateCardForm(forms.ModelForm):
    class Meta:
        model = RateCard
        fields = ("name", "currency", "valid_from", "placement")

    def clean_currency(self) -> str:
        return a_currency(self.cleaned_data["currency"])

    def clean_valid_from(self) -> Any:
        """A card that were valid in the past would not match what was charged then."""
        valid_from = self.cleaned_data["valid_from"]
        if valid_from < timezone.now():
            raise forms.ValidationError("The card would be valid in the past; a time to come is accepted.")
        return valid_from


@admin.register(RateCard)
class RateCardPage(PlatformAdmin):
    """A card is a draft until it is published; after that nothing changes it, for what it charged must stay explainable."""

    about_money = True
    form = RateCardForm
    list_display = ("name", "currency", "valid_from", "status", "created_at")
    fields = ("name", "currency", "valid_from", "placement")
    inlines = (PriceInline,)
    actions = ("publish",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_draft(obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_draft(obj) and super().has_delete_permission(request, obj)

    def has_publish_permission(self, request: HttpRequest) -> bool:
        return self.may_write(request)

    @action(description="Publish", permissions=["publish"])
    def publish(self, request: HttpRequest, queryset: QuerySet[RateCard]) -> None:
        for card in queryset.filter(published_at=None):
            if card.valid_from < timezone.now():
                self.message_user(request, f"{card} would be valid in the past; give it a later date.", messages.ERROR)
                continue
            try:
                draft_publish(card=card)
            except PlatformError as error:
                self.message_user(request, error.message, messages.ERROR)
            else:
                self.log_change(request, card, "published")
                self.message_user(request, f"{card} is published.", messages.SUCCESS)

    @display(description="Status", label={"draft": "warning", "published": "success"})
    def status(self, card: RateCard) -> str:
        return "draft" if is_draft(card) else "published"


class LineInline(ReadOnlyInline):
    model = LedgerLine
    fields = ("account", "amount")


class MoneyAdmin(TeamAdmin):
    readers = (Role.LEAD, Role.FINANCE)
    about_money = True


@admin.register(LedgerTransaction)
class LedgerPage(ListExport, MoneyAdmin):
    may_add = may_change = may_delete = False
    export_columns = (
        "id", "event_id", "kind", "occurred_at", "team__name", "project__name", "user__username", "pool__name", "lane",
        "job_id", "image_id", "checkpoint_name", "checkpoint_sha256", "gpu_us", "amount", "currency", "note",
    )  # fmt: skip
    list_display = (
        "occurred_at",
        "kind",
        "team",
        "user",
        "checkpoint_name",
        "service",
        "pool",
        "gpu_seconds",
        "amount",
        "currency",
    )
    list_filter = (TeamFilter, "kind")
    list_select_related = ("team", "user", "pool")
    search_fields = ("event_id", "checkpoint_name", "service")
    ordering = ("-pk",)
    inlines = (LineInline,)
    actions = ("take_back",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # Looked up for the rows of the page only; a sum over a join would group the whole book first.
        spent = LedgerLine.objects.filter(transaction=OuterRef("pk"), account=Account.TEAM_SPEND).values("amount")
        return super().get_queryset(request).annotate(amount=Subquery(spent))

    def get_urls(self) -> list[URLPattern]:
        files = "|".join(costs.FORMS)
        return [
            path("costs/", self.admin_site.admin_view(self.costs), name="billing_costs"),
            re_path(
                f"^costs/costs[.]({files})$", self.admin_site.admin_view(self.costs_file), name="billing_costs_file"
            ),
            *super().get_urls(),
        ]

    def costs(self, request: HttpRequest) -> HttpResponse:
        return costs.costs_page(request, self._teams(request), self.admin_site.each_context(request))

    def costs_file(self, request: HttpRequest, form: str) -> HttpResponse:
        return costs.costs_file(request, form, self._teams(request))

    def _teams(self, request: HttpRequest) -> list[int] | None:
        """Whose costs are shown; None for everybody's."""
        if not self.may_visit(request):
            raise PermissionDenied
        return None if self.reads_all(request) else sorted(teams_as(request, *self.readers))

    def has_take_back_permission(self, request: HttpRequest) -> bool:
        return self.reads_all(request)

    @action(description="Take charges back", permissions=["take_back"])
    def take_back(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Asks for the reason first."""
        chosen = list(queryset.values_list("pk", flat=True)[: MOST_CHOSEN + 1])
        if len(chosen) > MOST_CHOSEN:
            told = f"Choose up to {MOST_CHOSEN}; of one of a job's charges the next page takes the others along."
            self.message_user(request, told, messages.ERROR)
            return None
        reason, whole_jobs = request.POST.get("reason", ""), "whole_jobs" in request.POST
        refusal = ""
        if "confirmed" in request.POST:
            try:
                taken = charges_take_back(entries=chosen, whole_jobs=whole_jobs, reason=reason, by=request.user)  # type: ignore[arg-type]
            except InvalidRequestError as error:
                refusal = error.message
            else:
                amounts = ", ".join(f"{amount:.6f} {currency}" for currency, amount in sorted(taken.amounts.items()))
                told = f"Charges taken back: {taken.charges}{amounts and f' ({amounts})'}."
                self.message_user(request, told, messages.SUCCESS if taken.charges else messages.WARNING)
                return None
        return self.ask_first(
            request,
            "billing/take_back.html",
            action="take_back",
            title="Take charges back",
            button="Take back",
            chosen=chosen,
            refusal=refusal,
            reason=reason,
            most_reason=MOST_REASON,
            whole_jobs=whole_jobs,
        )

    @display(description="GPU seconds", ordering="gpu_us")
    def gpu_seconds(self, entry: Any) -> str:
        return f"{entry.gpu_us / 1_000_000:.3f}"

    @display(description="Amount", ordering="amount")
    def amount(self, entry: Any) -> str:
        return "no line" if entry.amount is None else f"{entry.amount:.6f}"


@admin.register(DeploymentSpan)
class DeploymentPage(MoneyAdmin):
    """The log that instances are billed by."""

    may_add = may_change = may_delete = False
    list_display = ("service", "team", "edition", "replicas", "pool", "started_at", "ended_at")
    list_filter = (TeamFilter, "edition")
    list_select_related = ("team", "pool")
    search_fields = ("service",)
    ordering = ("-started_at", "-pk")
    fields = readonly_fields = (*list_display, "by_time")


@admin.register(UsageRecord)
class UsagePage(ListExport, MoneyAdmin):
    may_add = may_change = may_delete = False
    export_columns = (
        "id", "ended_at", "team__name", "project__name", "user__username", "pool__name", "job_id", "image_id", "checkpoint_name",
        "outcome", "gpu_us", "charged",
    )  # fmt: skip
    list_display = ("ended_at", "team", "user", "checkpoint_name", "pool", "outcome", "gpu_seconds", "charged")
    list_filter = (TeamFilter, "charged", "outcome")
    list_select_related = ("team", "user", "pool")
    search_fields = ("checkpoint_name",)
    ordering = ("-pk",)

    @display(description="GPU seconds", ordering="gpu_us")
    def gpu_seconds(self, record: UsageRecord) -> str:
        return f"{record.gpu_us / 1_000_000:.3f}"


class ThresholdForm(forms.ModelForm):
    class Meta:
        model = BudgetThreshold
        fields = ("percent", "action")

    def has_changed(self) -> bool:
        """A new row counts as it stands: Django would drop one that is left at its defaults, and the budget would not block."""
        if self.instance.pk:
            return super().has_changed()
        return bool(self.data.get(self.add_prefix("percent")))


class ThresholdInline(PartInline):
    model = BudgetThreshold
    form = ThresholdForm
    fields = ("percent", "action")
    verbose_name_plural = "thresholds (without one that blocks, the budget only warns)"

    def get_extra(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> int:
        return 1 if obj is None else 0


class AccountInline(ReadOnlyInline):
    model = BudgetPeriod
    fields = ("period", "spent", "held")
    ordering = ("-pk",)
    per_page = 24


@admin.register(Budget)
class BudgetPage(ListImport, ListExport, MoneyAdmin):
    """What a budget is about stays as it is, for its accounts are of that; its limit can be changed."""

    may_delete = False  # switching it off ends its use, and its accounts stay explainable
    form = BudgetForm
    import_export_change_list_template = BOTH
    import_rows = (BudgetRows,)
    export_columns = (
        "id", "name", "scope", "team__name", "project__name", "user__username", "tag_key", "tag_value", "span", "limit",
        "currency", "enabled", "created_at",
    )  # fmt: skip
    list_display = ("name", "scope", "team", "project", "user", "tag", "span", "limit", "currency", "enabled")
    list_filter = (TeamFilter, "scope", "enabled")
    list_select_related = ("team", "project", "user")
    search_fields = ("name",)
    inlines = (ThresholdInline, AccountInline)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return () if obj is None else ("scope", "team", "project", "user", "tag_key", "tag_value", "span", "currency")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change=change, **kwargs)
        if not is_superuser(request) and "team" in form.base_fields:
            # A budget of no team is everybody's; a lead has one of the own teams to choose.
            form.base_fields["team"].required = True
            scopes = [choice for choice in BudgetScope.choices if choice[0] != BudgetScope.ORGANISATION]
            form.base_fields["scope"].choices = scopes
        return form

    @display(description="Tag")
    def tag(self, budget: Budget) -> str:
        return f"{budget.tag_key}={budget.tag_value}" if budget.tag_key else ""


@admin.register(BudgetNotice)
class NoticePage(MoneyAdmin):
    team_path = "period__budget__team"
    may_add = may_change = may_delete = False
    list_display = ("created_at", "period", "threshold", "job_id")
    list_select_related = ("period__budget", "threshold")


@admin.register(OutgoingMail)
class MailPage(PlatformAdmin):
    """The outbox of mails about money."""

    may_add = may_change = may_delete = False
    list_display = ("created_at", "to", "subject", "sent_at", "due_at", "tries", "error")
    search_fields = ("to", "subject")
    ordering = ("-pk",)
    actions = ("send_again",)

    def has_send_again_permission(self, request: HttpRequest) -> bool:
        return self.may_write(request)

    @action(description="Send again", permissions=["send_again"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[OutgoingMail]) -> None:
        for mail in queryset:
            mail_again(mail)
            self.log_change(request, mail, "sent again")
        self.message_user(request, "They are due now.", messages.SUCCESS)


@admin.register(Hold)
class HoldPage(PlatformAdmin):
    about_money = True
    may_add = may_change = may_delete = False
    list_display = ("job_id", "amount", "settled", "remaining", "released", "created_at", "ended_at")
    search_fields = ("job_id",)
    ordering = ("-pk",)


class UsedOfQuota:
    """Lists and parts of pages that show quotas with what is used of them: all rows of a page together."""

    @display(description="Used")
    def used(self, quota: Any) -> str:
        return f"{quota.use.used:,}".replace(",", "\N{NO-BREAK SPACE}")

    @display(description="Reset at (UTC)")
    def resets_at(self, quota: Any) -> str:
        return f"{quota.use.resets_at:%Y-%m-%d %H:%M}" if quota.use.resets_at else "as work goes on"


def with_use(quotas: Iterable[Quota]) -> list[Quota]:
    uses = uses_of(quotas)
    for use in uses:
        use.quota.use = use  # type: ignore[attr-defined]
    return [use.quota for use in uses]


class QuotaFormSet(PaginationInlineFormSet):
    def get_queryset(self) -> Any:
        if not hasattr(self, "_with_use"):
            self._with_use = with_use(super().get_queryset())
        return self._with_use


class QuotaInline(UsedOfQuota, ReadOnlyInline):
    """On a team's page: its quotas and those of its members, with what is used."""

    model = Quota
    formset = QuotaFormSet
    fields = readonly_fields = ("measure", "user", "token", "limit", "used", "resets_at", "enabled")
    ordering = ("measure", "pk")
    per_page = 24

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("user", "token__user", "token__team")


TeamPage.inlines = (*TeamPage.inlines, QuotaInline)


@admin.register(Quota)
class QuotaPage(UsedOfQuota, ListImport, ListExport, MoneyAdmin):
    """Set by who runs the platform, read by those whom it limits."""

    writers = ()
    form = QuotaForm
    import_export_change_list_template = BOTH
    import_rows = (QuotaRows,)
    export_columns = ("id", "measure", "team__name", "user__username", "token__prefix", "limit", "enabled")
    list_display = ("measure", "team", "user", "token", "limit", "used", "resets_at", "enabled")
    list_filter = ("measure", "enabled")
    list_select_related = ("team", "user", "token__team", "token__user")

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        found = super().get_changelist_instance(request)
        found.result_list = with_use(found.result_list)
        return found

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "token":
            kwargs["queryset"] = ApiToken.objects.select_related("user", "team")
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


@admin.register(BillingProfile)
class ProfilePage(MoneyAdmin):
    list_display = ("team", "cost_in_files")
    list_select_related = ("team",)
