from celery import shared_task


@shared_task
def add(x, y):
    return x + y


@shared_task
def total(numbers):
    return sum(numbers)


@shared_task
def fail():
    raise ValueError("as asked")


@shared_task
def tick(word):
    return word
