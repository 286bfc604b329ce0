# One image for the Prefect server, the MLflow server, the deployments and the workers: compose.yaml says which is which.
FROM python:3.12-slim

RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mergeline mergeline
COPY tasks tasks
COPY flows flows
RUN pip install --no-cache-dir -c constraints.txt -e ".[s3,postgres,dask]"

COPY params.yaml prefect.yaml prefect.toml dvc.yaml dvc.lock ./
COPY params params
COPY data data

# Checkpoints, results and locks that runs share: a volume, the same for all workers of a machine.
ENV MERGELINE_ROOT=/app MERGELINE_STATE=/state PYTHONUNBUFFERED=1
RUN useradd --create-home mergeline && mkdir /state && chown -R mergeline /state /app
USER mergeline
VOLUME /state

# The image has no repository: what it was built from becomes a tag of its runs. Last, so that layers are reused.
ARG MERGELINE_COMMIT=""
ENV MERGELINE_COMMIT=$MERGELINE_COMMIT

CMD ["python", "-m", "prefect", "worker", "start", "--pool", "merges", "--type", "process", "--limit", "1"]
