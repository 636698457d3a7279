# Completion of `celery` in bash: source it, or put it at /etc/bash_completion.d/celery.
eval "$(_CELERY_COMPLETE=bash_source celery)"
