# Every target sets up what it needs by itself: a virtual environment in .venv with pinned packages.
VENV ?= .venv
CACHE ?= --older-than 30d
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY := $(VENV)/.ready
DATA_READY := $(VENV)/.ready-data

.DEFAULT_GOAL := help

help: ## show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

merge: $(READY) ## merge the checkpoints of params.yaml, evaluate, publish into data/merged; then show the result
	@dvc repro --quiet
	@python -m flows.show_result

test: $(READY) ## run the tests
	python -m pytest

fuzz: $(READY) ## try the derivation of symmetries on 5000 random programs
	python -m tests.symmetry.fuzz --programs 5000

chaos: $(READY) ## kill the main job 500 times at random and check what is left (an hour)
	python -m tests.chaos.attempts --kills 500

lint: $(READY) ## check style and types
	ruff check .
	ruff format --check .
	mypy

ui: $(READY) ## start the Prefect server (http://127.0.0.1:4200) and MLflow (http://127.0.0.1:5000); Ctrl-C stops both
	python -m flows.show_ui

server: $(READY) ## start a Prefect server that stays (http://127.0.0.1:4200), for deployments
	python -m flows.start_server

deploy: $(READY) ## offer the flows of prefect.yaml on the server: schedules, forms
	python -m prefect work-pool create merges --type process --overwrite
	python -m prefect --no-prompt deploy --all

worker: $(READY) ## run what the server has to do, one merge at a time on this machine
	python -m prefect worker start --pool merges --type process --limit 1

bench: $(READY) ## time the methods against plain baselines
	python -m benchmarks.balancing
	python -m benchmarks.order_statistics
	python -m benchmarks.merging
	python -m benchmarks.symmetry
	python -m benchmarks.mudsc

data: $(DATA_READY) ## make the shipped data set again, from the hub or from Debian's package dataset-fashion-mnist
	python -m flows.prepare_data

zoo: data ## train the shipped checkpoints again (minutes)
	python -m flows.train_zoo

text-zoo: $(DATA_READY) ## train the text models, fine-tunings of MiniLM (six CPU-minutes, once)
	python -m flows.train_text_zoo

text: text-zoo ## merge the text models (params/text.yaml)
	python -m flows.merge_and_evaluate --params params/text.yaml

clean-cache: $(READY) ## remove what no run has used for 30 days (CACHE="--keep 10GB": or for its size), and say what is left
	@python -m flows.clean_cache $(CACHE)

sync: $(READY) ## deliver to MLflow what it did not take while it was down
	@python -m flows.sync_tracking

clean: ## remove caches and intermediate artifacts; the published result and the environment stay
	@test -n "$(FORCE)" || test -z "$$(ls .store/registered 2>/dev/null)" || { echo "nothing removed: .store has weights that\
		registered models have nowhere else; make clean FORCE=1 removes these, too"; exit 1; }
	rm -rf .store .prefect .links .mypy_cache .ruff_cache .pytest_cache .hypothesis

# pip's own byte-compiling is skipped and done in parallel: imports need it, and it is faster this way.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "mergeline needs Python 3.11 or newer; install one or say make PYTHON=/path/to/python3"; exit 1; }
	@echo "setting up $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[test]"
	@python -m compileall -q -j2 $(VENV)/lib || true
	@touch $@

$(DATA_READY): $(READY)
	@python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[data]"
	@touch $@

.PHONY: help merge test fuzz chaos lint ui server deploy worker bench data zoo text-zoo text clean-cache sync clean
