from collections import Counter

from django.conf import settings
from django.db import migrations, models
from django.db.models import Sum


def count_what_is_stored(apps, schema_editor):
    """From now on the counter moves with the rows."""
    found = Counter()
    of_jobs = (
        ("RenderImage", "job", {"state": "delivered"}),
        ("ImageAttachment", "image__job", {}),
    )
    for name, job, chosen in of_jobs:
        rows = apps.get_model("renderjobs", name).objects.filter(**chosen).order_by()
        origin = (f"{job}__team_id", f"{job}__user_id", f"{job}__token_id")
        for team, user, token, total in rows.values_list(*origin).annotate(total=Sum("size_bytes")):
            found[team, user, token or 0] += total
    inputs = apps.get_model("renderjobs", "InputFile").objects.order_by().values_list("team_id")
    for team, total in inputs.annotate(total=Sum("size_bytes")):
        found[team, 0, 0] += total
    files = apps.get_model("renderjobs", "TeamFile").objects.filter(team__isnull=False).order_by()
    for team, user, total in files.values_list("team_id", "uploaded_by_id").annotate(total=Sum("size_bytes")):
        found[team, user or 0, 0] += total
    stored = apps.get_model("billing", "StoredBytes")
    stored.objects.bulk_create(
        stored(team_id=team, user_id=user, token_id=token, size_bytes=total)
        for (team, user, token), total in found.items()
    )


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_sign_in"),
        ("assets", "0009_zoo"),
        ("billing", "0006_quotas_and_mails"),
        ("fleet", "0003_quarantine"),
        ("renderjobs", "0019_prompt_expansions_and_safety"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name="renderjob",
            name="image_bytes",
            field=models.BigIntegerField(
                db_default=0, default=0, help_text="The most that one of its images may take in the storage."
            ),
        ),
        migrations.AddIndex(
            model_name="renderjob",
            index=models.Index(
                condition=models.Q(("state__in", ("held", "queued", "running"))), fields=["team"], name="job_open"
            ),
        ),
        migrations.RunPython(count_what_is_stored, migrations.RunPython.noop),
    ]
