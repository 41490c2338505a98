"""Money in the admin: rate cards can be added, never edited; the book and the usage can only be read."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import TabularInline
from unfold.decorators import display

from accounts.admin import PlatformAdmin, TeamAdmin, TeamFilter, is_superuser
from billing.models import Account, LedgerLine, LedgerTransaction, RateCard, RatePrice, UsageRecord


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
        fields = ("pool", "per_gpu_second")

    def clean_per_gpu_second(self) -> Any:
        price = self.cleaned_data["per_gpu_second"]
        if price < 0:
            raise forms.ValidationError(f"The price is {price}; zero or more is accepted.")
        return price


class PriceInline(ReadOnlyInline):
    model = RatePrice
    form = PriceForm
    extra = 0
    min_num = 1
    fields = ("pool", "per_gpu_second")
    verbose_name_plural = "prices (no pool: every other pool)"

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        return super().get_formset(request, obj, validate_min=True, **kwargs)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is None and is_superuser(request)


class RateCardForm(forms.ModelForm):
    class Meta:
        model = RateCard
        fields = ("name", "currency", "valid_from")

    def clean_currency(self) -> str:
        currency = self.cleaned_data["currency"]
        if not (len(currency) == 3 and currency.isascii() and currency.isalpha() and currency.isupper()):
            raise forms.ValidationError(f"{currency!r} is no currency; three capital letters such as USD are accepted.")
        return str(currency)

    def clean_valid_from(self) -> Any:
        """A card that were valid in the past would not match what was charged then."""
        valid_from = self.cleaned_data["valid_from"]
        if valid_from < timezone.now():
            raise forms.ValidationError("The card would be valid in the past; a time to come is accepted.")
        return valid_from


@admin.register(RateCard)
class RateCardPage(PlatformAdmin):
    may_change = may_delete = False  # what was charged by a card must stay explainable by it
    form = RateCardForm
    list_display = ("name", "currency", "valid_from", "created_at")
    fields = ("name", "currency", "valid_from")
    inlines = (PriceInline,)


class LineInline(ReadOnlyInline):
    model = LedgerLine
    fields = ("account", "amount")


@admin.register(LedgerTransaction)
class LedgerPage(TeamAdmin):
    may_add = may_change = may_delete = False
    list_display = (
        "occurred_at",
        "kind",
        "team",
        "user",
        "checkpoint_name",
        "pool",
        "gpu_seconds",
        "amount",
        "currency",
    )
    list_filter = (TeamFilter, "kind")
    list_select_related = ("team", "user", "pool")
    search_fields = ("event_id", "checkpoint_name")
    ordering = ("-pk",)
    inlines = (LineInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # Looked up for the rows of the page only; a sum over a join would group the whole book first.
        spent = LedgerLine.objects.filter(transaction=OuterRef("pk"), account=Account.TEAM_SPEND).values("amount")
        return super().get_queryset(request).annotate(amount=Subquery(spent))

    @display(description="GPU seconds", ordering="gpu_us")
    def gpu_seconds(self, entry: Any) -> str:
        return f"{entry.gpu_us / 1_000_000:.3f}"

    @display(description="Amount", ordering="amount")
    def amount(self, entry: Any) -> str:
        return "no line" if entry.amount is None else f"{entry.amount:.6f}"


@admin.register(UsageRecord)
class UsagePage(TeamAdmin):
    may_add = may_change = may_delete = False
    list_display = ("ended_at", "team", "user", "checkpoint_name", "pool", "outcome", "gpu_seconds", "charged")
    list_filter = (TeamFilter, "charged", "outcome")
    list_select_related = ("team", "user", "pool")
    search_fields = ("checkpoint_name",)
    ordering = ("-pk",)

    @display(description="GPU seconds", ordering="gpu_us")
    def gpu_seconds(self, record: UsageRecord) -> str:
        return f"{record.gpu_us / 1_000_000:.3f}"
