"""Rows of a file into rows of the database, by django-import-export: shown first, then all of them or none.

Each row goes through the form that people fill in on the page, so a file can do nothing a person could not. Between showing and
doing, the file travels in the page, signed: no process keeps it, and a page that is left leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import messages
from django.core import signing
from django.core.exceptions import ValidationError
from django.db.models import Model
from django.forms.models import model_to_dict
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from import_export.admin import ImportMixin
from import_export.formats.base_formats import CSV, JSON
from import_export.resources import ModelResource
from import_export.tmp_storages import BaseStorage
from unfold.contrib.import_export.forms import ImportForm

from common.exporting import Cells

BOTH = "admin/import_export/change_list_import_export.html"
"""The list of a page that gives and takes."""
SALT = "common.importing"
KEPT_SECONDS = 3600
MOST_BYTES = 1024 * 1024
MOST_ROWS = 2000
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class InThePage(BaseStorage):
    """The file between the two steps: its name is its content, compressed and signed."""

    def save(self, data: bytes) -> None:
        self.name = signing.dumps(data.decode("utf-8-sig"), salt=SALT, compress=True)

    def read(self) -> str:
        try:
            return str(signing.loads(self.name, salt=SALT, max_age=KEPT_SECONDS))
        except signing.BadSignature:
            raise ValidationError("The page is too old; choose the file again.") from None

    def remove(self) -> None:
        """Nothing is kept."""


class SmallImportForm(ImportForm):
    def clean_import_file(self) -> Any:
        file = self.cleaned_data["import_file"]
        if file.size > MOST_BYTES:
            raise ValidationError(f"The file has {file.size} bytes; {MOST_BYTES} are accepted.")
        try:
            file.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValidationError("The file is not text in UTF-8.") from None
        file.seek(0)
        return file


class FormRows(ModelResource):
    """Rows of one model, each checked by ``form``. A row of a known ``key`` changes that one; columns that are not there stay."""

    form: type[forms.ModelForm]
    columns: tuple[str, ...]
    key: tuple[str, ...]
    """Columns that say which one it is; each has to be there."""
    also: tuple[str, ...] = ()
    """Columns beside the form's."""

    class Meta:
        use_transactions = True
        clean_model_instances = False  # the form does
        import_id_fields: tuple[str, ...] = ()

    def found(self, row: Mapping[str, str]) -> Model | None:
        """The one that the row's key names.

        Raises:
            ValidationError: A name in it leads nowhere.
        """
        raise NotImplementedError

    def form_data(self, instance: Model, row: Mapping[str, str]) -> dict[str, Any]:
        """What a person would have filled in. Raises: ValidationError: As ``found``."""
        raise NotImplementedError

    def before_import(self, dataset: Any, **kwargs: Any) -> None:
        """Raises: ValidationError: Columns are unknown or missing, or there are too many rows."""
        headers, known = set(dataset.headers or ()), {*self.columns, *self.also}
        if unknown := sorted(map(str, headers - known)):
            raise ValidationError(
                f"Column {unknown[0]!r} is unknown; known are {', '.join((*self.columns, *self.also))}."
            )
        if missing := [name for name in self.key if name not in headers]:
            raise ValidationError(f"Column {missing[0]!r} is missing.")
        if len(dataset) > MOST_ROWS:
            raise ValidationError(f"The file has {len(dataset)} rows; {MOST_ROWS} are accepted.")

    def before_import_row(self, row: dict[str, Any], **kwargs: Any) -> None:
        for name, value in row.items():
            row[name] = "" if value is None else str(value).strip()

    def get_or_init_instance(self, instance_loader: Any, row: Mapping[str, str]) -> tuple[Model, bool]:
        instance = self.found(row)
        return (instance, False) if instance else (self._meta.model(), True)

    def import_instance(self, instance: Model, row: Mapping[str, str], **kwargs: Any) -> None:
        filled = self.form(data=self.form_data(instance, row), instance=instance)
        if not filled.is_valid():
            named = {
                name if name in (*self.columns, "__all__") else "__all__": said for name, said in filled.errors.items()
            }
            raise ValidationError({name: list(said) for name, said in named.items()})

    def get_user_visible_fields(self) -> list[Cells]:
        return [Cells(column_name=name) for name in (*self.columns, *self.also)]


def as_filled_in(instance: Model, row: Mapping[str, str], columns: tuple[str, ...]) -> dict[str, Any]:
    """The instance's values with the row's over them; a switch is what a checkbox sends."""
    data = {**model_to_dict(instance, fields=columns), **{name: row[name] for name in columns if name in row}}
    for name in columns:
        if isinstance(data.get(name), bool):
            continue
        if name in row and instance._meta.get_field(name).get_internal_type() == "BooleanField":
            data[name] = switched(name, row[name])
    return data


def switched(name: str, text: str) -> bool:
    """Raises: ValidationError."""
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValidationError({name: f"{name} is {text!r}; true or false is accepted."})


def named(model: type[Model], column: str, text: str, **lookup: Any) -> Any:
    """The row of that name; None for an empty text. Raises: ValidationError: There is none."""
    if not text:
        return None
    found = model._default_manager.filter(**lookup).first() if "\x00" not in text else None
    if found is None:
        raise ValidationError({column: f"There is no {model._meta.verbose_name} {text!r}."})
    return found


class ListImport(ImportMixin):
    """A page whose rows can be given as a file by those who run the platform."""

    import_rows: tuple[type[FormRows], ...] = ()
    import_formats = (CSV, JSON)
    import_form_class = SmallImportForm
    tmp_storage_class = InThePage
    skip_admin_log = True  # the audit log has every row's change with its values

    def has_import_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    def get_import_resource_classes(self, request: HttpRequest) -> tuple[type[FormRows], ...]:
        return self.import_rows

    def get_import_data_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_import_data_kwargs(**kwargs), "rollback_on_validation_errors": True}

    def process_import(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        try:
            return super().process_import(request, **kwargs)
        except ValidationError as error:
            return self._refused(request, error.messages)
        except (ValueError, LookupError):
            return self._refused(request, ["The page was not sent as it was shown; choose the file again."])

    def process_result(self, result: Any, request: HttpRequest) -> HttpResponse:
        """Nothing was stored if anything was wrong, for the world may have changed since the rows were shown."""
        wrong = [f"Row {row.number}: {' '.join(row.error.messages)}" for row in result.invalid_rows]
        wrong += [f"Row {number}: {error.error}" for number, errors in result.row_errors() for error in errors]
        wrong += [str(error.error) for error in result.base_errors]
        if wrong:
            return self._refused(request, wrong[:10])
        return super().process_result(result, request)

    def add_success_message(self, result: Any, request: HttpRequest) -> None:
        made, changed = result.totals["new"], result.totals["update"]
        self.message_user(
            request, f"{made} rows are new, {changed} were there and are as the file says.", messages.SUCCESS
        )  # type: ignore[attr-defined]

    def _refused(self, request: HttpRequest, sentences: list[str]) -> HttpResponse:
        for sentence in sentences:
            self.message_user(request, f"Nothing was stored. {sentence}", messages.ERROR)  # type: ignore[attr-defined]
        return redirect(reverse("admin:{}_{}_import".format(*self.get_model_info())))
