"""The order of things."""

from tasks import _env as _env  # first: Prefect, MLflow and torch read their settings when they are imported
