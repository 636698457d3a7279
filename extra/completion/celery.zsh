# Completion of `celery` in zsh: source it from ~/.zshrc, after compinit.
eval "$(_CELERY_COMPLETE=zsh_source celery)"
