# `make demo` and `make test` set everything up by themselves; see `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
export PATH := $(abspath $(VENV))/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
# This checkout's own, whatever another project exports; `make dev DAGSTER_HOME=/a/folder` puts it elsewhere.
export DAGSTER_HOME := $(CURDIR)/.dagster
export DAGSTER_DISABLE_TELEMETRY := 1
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
AUDIT := $(VENV)/audit/bin/pip-audit
INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help setup setup-dev demo real given study study-full test coverage fuzz test-slow test-gpu check audit dev bench

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## install into .venv what a user needs, pinned by constraints.txt

setup-dev: $(DEV) ## install what tests and checks need as well

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found on PATH; install one, or call make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(INSTALL) -e '.[dicom,export]'
	@touch $@

$(DEV): $(STAMP)
	$(INSTALL) -e '.[dev]'
	@touch $@

demo: $(STAMP) ## the main job: phantom, shards, pretraining, evidence, report
	@python -m ace config check && dvc repro && python -m ace summary

# DATA and LABELS are read as "$$DATA" by the recipe's shell, so that a path may hold spaces and quotes.
EXAMPLE := for example: make real DATA=/path/to/images LABELS=/path/to/labels.csv
real: export BATCH ?= real-b000
real: export CONFIG ?= cxr_small
real: export SOURCE ?= folder
real: export ACE_ID_KEY_FILE := $(or $(ACE_ID_KEY_FILE),$(HOME)/ace-id.key)
real: given $(STAMP) ## the same on your own images alone: make real DATA=/folder [LABELS=/file.csv CONFIG=cxr_small]
	@test -e "$$ACE_ID_KEY_FILE" || test "$$ACE_ID_KEY_FILE" != "$$HOME/ace-id.key" || { python -m shards key new "$$ACE_ID_KEY_FILE" >/dev/null && \
	  echo "made $$ACE_ID_KEY_FILE, the secret behind patient pseudonyms and splits: keep a copy in a safe place, never commit it"; }
	@python -m ace config use "$$CONFIG"
	@python -m shards register "$$BATCH" "$$DATA" --source "$$SOURCE" $${LABELS:+--labels "$$LABELS"} \
	  $${PATIENT_FROM:+--patient-from "$$PATIENT_FROM"} $${SITE+--site "$$SITE"} --only
	@python -m ace config check && dvc repro && python -m ace summary

given: # what `real` is given, looked at before anything is installed
	@test -d "$$DATA" || { echo "error: DATA='$$DATA' is not a folder of images; $(EXAMPLE)" >&2; exit 2; }
	@test -z "$$LABELS" || test -f "$$LABELS" || { echo "error: LABELS='$$LABELS' is not a file; $(EXAMPLE)" >&2; exit 2; }

# A run of a study is a file studies/NAME/RUN.yaml; it works in studies/NAME/work/RUN and goes on there after any kill.
study: export NAME ?= phantom
study: export RUN ?= params
study: export BATCH ?= real-b000
study: export SOURCE ?= folder
study: $(STAMP) ## train, measure and record the encoders of a study: make study [NAME=phantom|nih|fundus DATA=… LABELS=…]
	@test -z "$$DATA" || test -d "$$DATA" || { echo "error: DATA='$$DATA' is not a folder of images" >&2; exit 2; }
	@test -d "studies/$$NAME" || { echo "error: studies/$$NAME: no such folder; there are: $$(cd studies && ls -d */ | tr -d /| xargs)" >&2; exit 2; }
	@mkdir -p "studies/$$NAME/work" && exec 9>"studies/$$NAME/work/$$RUN.lock" && { flock -w 10 9 || \
	    { echo "error: another make study is at work on studies/$$NAME/work/$$RUN; wait for it or end it" >&2; exit 2; }; } && \
	  work=$$(python -m ace study open "$$NAME" --run "$$RUN") && data=$${DATA:+$$(realpath "$$DATA")} && \
	  labels=$${LABELS:+$$(realpath "$$LABELS")} && \
	  { test -z "$$ACE_ID_KEY_FILE" || ACE_ID_KEY_FILE=$$(realpath "$$ACE_ID_KEY_FILE"); } && cd "$$work" && \
	  python -m ace config use "studies/$$NAME/$$RUN.yaml" >/dev/null && \
	  { test -z "$$data" || python -m shards register "$$BATCH" "$$data" --source "$$SOURCE" $${labels:+--labels "$$labels"} \
	    $${PATIENT_FROM:+--patient-from "$$PATIENT_FROM"} $${SITE+--site "$$SITE"} --only; } && \
	  python -m ace config check && dvc repro --keep-going && python -m ace summary && \
	  if [ -n "$$TASKS" ]; then shown=; while read -r task || [ -n "$$task" ]; do \
	    python -m ace finetune $$task </dev/null || exit 1; set -- $$task; shown="$$shown --task $$1"; done <"$$TASKS"; python -m ace report $$shown; fi
	@python -m ace study record "$$NAME" --run "$$RUN"

study-full: ## a study with every seed (studies/NAME/*.yaml) and task (tasks.txt): make study-full [NAME=… as for study]
	@cd "studies/$${NAME:-phantom}" && tasks=$$(test ! -e tasks.txt || realpath tasks.txt) && runs=$$(ls *.yaml) && cd - >/dev/null && \
	  for run in $$runs; do $(MAKE) study RUN="$${run%.yaml}" TASKS="$$tasks" || exit 1; done

test: $(DEV) ## the tests (everything not marked slow), in a process for each core, at most eight
	@python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

coverage: $(DEV) ## which lines the tests run, for information; processes that tests start are not counted
	@python -m pytest --cov=ace --cov=shards --cov=pipelines --cov-report=term:skip-covered

fuzz: export SEED := $(or $(SEED),$(shell date +%s))
fuzz: $(DEV) ## property tests on random examples, three times as many: make fuzz [SEED=1 SECONDS=180 FILES=tests/shards]
	@echo "random examples of seed $$SEED; the same again: make fuzz SEED=$$SEED$(if $(FILES), FILES='$(FILES)')"
	@python -m pytest -m 'hypothesis and not gpu and not network' --hypothesis-profile=fuzz --hypothesis-seed="$$SEED" \
	  $(if $(SECONDS),--seconds=$(SECONDS)) -rs $(FILES)

test-slow: $(DEV) ## the slow tests, and why any was skipped
	@python -m pytest -m 'slow and not gpu' -rs

test-gpu: $(DEV) ## the tests that need an accelerator, on a machine that has one
	@python -m pytest -m 'gpu and not network' -rs

check: $(DEV) ## ruff, mypy --strict, import-linter
	@ruff check . && ruff format --check . && mypy && lint-imports

audit: $(AUDIT) ## known vulnerabilities of the pinned packages, asked of PyPI; a package that is not known there ends it
	@$(AUDIT) --strict --no-deps --disable-pip -r constraints.txt

$(AUDIT): $(STAMP)
	@$(VENV)/bin/python -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1

dev: $(STAMP) ## Dagster on http://127.0.0.1:3000
	@mkdir -p "$$DAGSTER_HOME" && { test -e "$$DAGSTER_HOME/dagster.yaml" || cp pipelines/dagster.yaml "$$DAGSTER_HOME"; }
	@cmp -s pipelines/dagster.yaml "$$DAGSTER_HOME/dagster.yaml" || echo "$$DAGSTER_HOME/dagster.yaml differs from pipelines/dagster.yaml and is left as it is"
	@dagster dev --host 127.0.0.1 --port 3000

bench: $(STAMP) ## the benchmarks; each prints one JSON object as its last line
	@for script in benchmarks/[a-z]*.py; do python $$script || exit 1; done
