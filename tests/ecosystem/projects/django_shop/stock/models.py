from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=50, unique=True)
    pid = models.IntegerField(default=0)
    made_at = models.DateTimeField(auto_now_add=True)
