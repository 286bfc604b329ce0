"""The stages: one file each, cached, locked, retried and versioned by `tasks.policy`."""

from tasks import _env as _env  # first: Prefect, MLflow and torch read their settings when they are imported
