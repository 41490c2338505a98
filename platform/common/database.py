"""What the two databases do differently, in one place: the clock, row locks, refusing to change a row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection, connections, migrations, models, router
from django.db.models import ExpressionWrapper, QuerySet, Value
from django.db.models.functions import Now


def now_plus(seconds: float) -> ExpressionWrapper:
    """The database's clock plus an interval; no worker's or web server's clock decides anything."""
    return ExpressionWrapper(Now() + Value(timedelta(seconds=seconds)), output_field=models.DateTimeField())


def skip_locked(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Lock the rows and pass over those that another transaction holds. SQLite's write transactions exclude one another anyway."""
    if connections[rows.db].features.has_select_for_update_skip_locked:
        return rows.select_for_update(skip_locked=True, of=("self",))
    return rows


def insert_rows(pattern: models.Model, *, varying: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    """Insert one row per item of ``rows`` in a single statement, however many there are.

    Args:
        pattern: An unsaved instance; its values are every row's values except for the ``varying`` fields.
        varying: Names of integer fields whose values come from ``rows``.
    """
    connection = connections[router.db_for_write(type(pattern))]
    fields = [field for field in pattern._meta.local_concrete_fields if not field.primary_key]
    columns, values, parameters = [], [], []
    for field in fields:
        columns.append(connection.ops.quote_name(field.column))
        if field.name in varying:
            values.append(_json_item[connection.vendor].format(varying.index(field.name)))
            continue
        values.append("%s" if connection.vendor == "sqlite" else f"CAST(%s AS {field.db_type(connection)})")
        value = field.pre_save(pattern, add=True)
        parameters.append(field.get_db_prep_save(value, connection))
    table = connection.ops.quote_name(pattern._meta.db_table)
    source = _json_rows[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {source}",  # noqa: S608
            [*parameters, json.dumps(rows)],
        )


_json_rows = {"sqlite": "json_each(%s) AS item", "postgresql": "jsonb_array_elements(CAST(%s AS jsonb)) AS item(value)"}
_json_item = {"sqlite": "json_extract(item.value, '$[{0}]')", "postgresql": "CAST(item.value->>{0} AS bigint)"}


def append_only(table: str) -> migrations.RunPython:
    """A migration step after which the database itself refuses UPDATE and DELETE on ``table``."""

    def install(apps: Any, schema_editor: Any) -> None:
        for statement in append_only_sql(table, schema_editor.connection.vendor):
            schema_editor.execute(statement)

    def remove(apps: Any, schema_editor: Any) -> None:
        for statement in append_only_removal_sql(table, schema_editor.connection.vendor):
            schema_editor.execute(statement)

    return migrations.RunPython(install, remove)


def append_only_sql(table: str, vendor: str) -> list[str]:
    if vendor == "sqlite":
        return [
            f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            for verb in ("update", "delete")
        ]
    return [
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$",
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()",
    ]


def append_only_removal_sql(table: str, vendor: str) -> list[str]:
    if vendor == "sqlite":
        return [f"DROP TRIGGER {table}_no_{verb}" for verb in ("update", "delete")]
    return [f"DROP TRIGGER {table}_append_only ON {table}", f"DROP FUNCTION {table}_append_only()"]


def never_replaced(table: str, *keys: Sequence[str]) -> migrations.RunPython:
    """A migration step after which SQLite's ``INSERT OR REPLACE`` does not replace a row either: it removes the old one without
    asking the triggers of DELETE. PostgreSQL has no such statement; its ``ON CONFLICT`` updates, which triggers see.

    Args:
        keys: The columns of each unique key beside ``id``.
    """
    same = " OR ".join(
        "({})".format(" AND ".join(f"{column} = NEW.{column}" for column in key)) for key in (("id",), *keys)
    )

    def install(apps: Any, schema_editor: Any) -> None:
        if schema_editor.connection.vendor == "sqlite":
            schema_editor.execute(
                f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
                f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )

    def remove(apps: Any, schema_editor: Any) -> None:
        if schema_editor.connection.vendor == "sqlite":
            schema_editor.execute(f"DROP TRIGGER {table}_no_replace")

    return migrations.RunPython(install, remove)


def frozen_when(table: str, condition: str, *, inserts: bool = False) -> migrations.RunPython:
    """A migration step after which the database refuses UPDATE and DELETE of rows for which ``condition`` holds.

    Args:
        condition: SQL over the row, written ``{row}.column``; of an update both the old and the new row are asked.
        inserts: Also refuse to add such rows.
    """

    def install(apps: Any, schema_editor: Any) -> None:
        for statement in frozen_sql(table, condition, schema_editor.connection.vendor, inserts=inserts):
            schema_editor.execute(statement)

    def remove(apps: Any, schema_editor: Any) -> None:
        for statement in frozen_removal_sql(table, schema_editor.connection.vendor, inserts=inserts):
            schema_editor.execute(statement)

    return migrations.RunPython(install, remove)


_rows_of = {"insert": ("NEW",), "update": ("OLD", "NEW"), "delete": ("OLD",)}


def frozen_sql(table: str, condition: str, vendor: str, *, inserts: bool) -> list[str]:
    verbs = (*(["insert"] if inserts else []), "update", "delete")
    message = f"{table} is append-only"
    asked = {
        # An update that freezes the row itself (publishing) sees it frozen only in its new form.
        verb: " OR ".join(
            f"({condition.format(row=row)})" for row in (_rows_of[verb] if inserts else _rows_of[verb][:1])
        )
        for verb in verbs
    }
    if vendor == "sqlite":
        return [
            f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table} WHEN {asked[verb]} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
            for verb in verbs
        ]
    branches = " ".join(
        f"IF TG_OP = '{verb.upper()}' THEN "
        f"IF {asked[verb]} THEN RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; END IF; "
        f"RETURN {'OLD' if verb == 'delete' else 'NEW'}; END IF;"
        for verb in verbs
    )
    return [
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {branches} END $$",
        f"CREATE TRIGGER {table}_append_only BEFORE {' OR '.join(verb.upper() for verb in verbs)} ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()",
    ]


def frozen_removal_sql(table: str, vendor: str, *, inserts: bool) -> list[str]:
    removal = append_only_removal_sql(table, vendor)
    return [*removal, f"DROP TRIGGER {table}_no_insert"] if inserts and vendor == "sqlite" else removal


def database_now() -> datetime:
    """The database's clock, aware, in UTC. Inside a transaction on PostgreSQL it is that of its beginning."""
    with connection.cursor() as cursor:
        cursor.execute(_clock[connection.vendor])
        (now,) = cursor.fetchone()
    return (datetime.fromisoformat(now) if isinstance(now, str) else now).astimezone(UTC)


_clock = {"sqlite": "SELECT strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')", "postgresql": "SELECT CURRENT_TIMESTAMP"}


class UtcDay(models.Func):
    """The day of a moment, UTC. Django's own calls Python for every row on SQLite, which is most of a report's time there."""

    function = "DATE"
    output_field = models.DateField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="CAST(%(expressions)s AT TIME ZONE 'UTC' AS date)", **context)


class ValueOfKey(models.Func):
    """A JSON object's text at a key, whatever the key looks like: Django's transform takes digits for a list's index."""

    template, arg_joiner = "(%(expressions)s)", " ->> "
    output_field = models.TextField()

    def __init__(self, column: str, key: str, **extra: Any):
        super().__init__(column, models.Value(key), **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        rows = "(SELECT value FROM json_each(%(expressions)s))"
        return self.as_sql(compiler, connection, template=rows, arg_joiner=") WHERE key = (", **context)
