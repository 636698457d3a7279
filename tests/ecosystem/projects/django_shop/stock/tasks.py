import os
import time

from celery import current_app, shared_task
from django.db import connections, transaction

from stock.models import Item


@shared_task
def store(name):
    time.sleep(0.05)
    return Item.objects.create(name=name, pid=os.getpid()).pk


@shared_task
def count():
    return Item.objects.count()


@shared_task
def open_connections():
    """Connections that were open when this task began."""
    return len([one for one in connections.all(initialized_only=True) if one.connection is not None])


@shared_task
def fail_in_transaction(name):
    with transaction.atomic():
        Item.objects.create(name=name)
        raise ValueError("as asked")


@shared_task
def now_in():
    return str(current_app.now().tzinfo), current_app.loader.now().isoformat()
