"""The GPU side: Celery tasks that claim, render and deliver. Importing this package costs nothing; `gpuworker.celery` starts it."""
