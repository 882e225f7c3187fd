import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Country",
            fields=[
                ("code", models.CharField(help_text="ISO 3166-1.", max_length=2, primary_key=True, serialize=False)),
                (
                    "longest_flight",
                    models.FloatField(help_text="Between any two of its airports, in kilometres.", null=True),
                ),
            ],
            options={
                "verbose_name_plural": "countries",
                "ordering": ["code"],
            },
        ),
        migrations.CreateModel(
            name="Photo",
            fields=[
                ("slug", models.SlugField(primary_key=True, serialize=False)),
                ("file", models.CharField(help_text="Name in the folder of photographs.", max_length=100)),
                ("title", models.CharField(max_length=100)),
                ("author", models.CharField(max_length=100)),
                ("licence", models.CharField(max_length=50)),
                ("price", models.DecimalField(decimal_places=2, max_digits=6)),
                ("problem", models.TextField(blank=True, help_text="Why no prints can be made of it.")),
                (
                    "task_id",
                    models.CharField(blank=True, help_text="The last task that someone asked for.", max_length=64),
                ),
            ],
            options={
                "ordering": ["slug"],
            },
        ),
        migrations.CreateModel(
            name="Airport",
            fields=[
                ("iata", models.CharField(max_length=3, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100)),
                ("city", models.CharField(max_length=100)),
                ("latitude", models.FloatField(help_text="Degrees.")),
                ("longitude", models.FloatField(help_text="Degrees.")),
                ("elevation", models.IntegerField(help_text="Feet above the sea.")),
                (
                    "freight",
                    models.DecimalField(
                        blank=True,
                        decimal_places=2,
                        help_text="What sending a print there costs.",
                        max_digits=6,
                        null=True,
                    ),
                ),
                (
                    "country",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="airports", to="shop.country"
                    ),
                ),
            ],
            options={
                "ordering": ["iata"],
            },
        ),
    ]
