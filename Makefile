# `make help` lists the targets. VENV, PYTHON and REQUIRE are explained in install.sh.
SHELL := bash
VENV ?= .venv
export VENV

PYTHON_IN := $(VENV)/bin/python
PYTEST := $(PYTHON_IN) -m pytest
# One thread a process: with two cores, more threads than processes only wait for each other.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-test demo lint types test test-slurm test-long bench readme docs

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup:  ## make .venv with what the main job needs (a second call installs nothing)
	@./install.sh

setup-test:  ## add the development tools
	@./install.sh dev vision digits deepspeed export search docs

demo: setup  ## teacher -> assistant -> student on Fashion-MNIST, tracked in MLflow
	$(PYTHON_IN) launch/sweep.py configs/quickstart.yaml

lint: setup-test  ## format, lint and import layers
	$(PYTHON_IN) -m ruff format --check .
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -c "from importlinter.cli import lint_imports_command as lint; lint()" --no-cache

types: setup-test  ## mypy, strict
	$(PYTHON_IN) -m mypy

test: lint types  ## everything that CI runs
	$(PYTEST) -n logical --maxprocesses 4
	$(PYTEST) tests/distributed
	$(PYTEST) tests/e2e
	$(PYTEST) tests/slurm

test-slurm: setup-test  ## sweeps on a real SLURM of two nodes on this machine (needs root)
	$(PYTEST) tests/slurm

test-long: setup-test  ## the full fault matrices
	KDSCALE_LONG=1 $(PYTEST) tests/unit tests/distributed tests/e2e tests/slurm

bench: setup-test  ## ratios to bare loops, written to benchmarks/results
	$(PYTHON_IN) -m benchmarks.run

readme: setup-test  ## rewrite README's tables of pipelines and methods
	$(PYTHON_IN) docs/pipeline_table.py --write
	$(PYTHON_IN) docs/method_table.py --write

docs:  ## build the documentation, a site that is read without a network
	@./install.sh docs
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_IN) -m mkdocs build --strict --quiet
	@echo "site    $(CURDIR)/build/site/index.html"
