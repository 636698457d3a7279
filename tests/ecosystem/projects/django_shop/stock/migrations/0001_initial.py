from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Item",
            fields=[
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=50, unique=True)),
                ("pid", models.IntegerField(default=0)),
                ("made_at", models.DateTimeField(auto_now_add=True)),
            ],
        )
    ]
