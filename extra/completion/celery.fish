# Completion of `celery` in fish: put it at ~/.config/fish/completions/celery.fish
_CELERY_COMPLETE=fish_source celery | source
