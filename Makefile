# All work goes through these targets; `make help` lists them. tools/bootstrap installs what they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Caches live in the checkout and disappear with it.
export RUFF_CACHE_DIR := $(CURDIR)/build/cache/ruff
export MYPY_CACHE_DIR := $(CURDIR)/build/cache/mypy

COMPILE := uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
  --custom-compile-command 'make lock'

.PHONY: help setup demo demo-down test lint unit molecule bench-deploy bench-density bench-edge bench-fly bench-gateway bench-ops bench-tiers bench-watchdog bench-zig-tool verify-host verify-image image-openclaw docs lock format zig-tool

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what all other targets need (Debian packages, .venv)
	@tools/bootstrap

demo: setup ## Boot a VPS in a container, deploy a bot on it, talk to it
	@$(PY) -m tests.demo up

demo-down: setup ## Remove everything the demo made
	@$(PY) -m tests.demo down

test: lint unit molecule ## Run everything: lint, unit tests, molecule

lint: setup ## Check style, types, playbooks and shell scripts
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	git ls-files -z ':!.collections' ':!*.j2' | xargs -0 awk 'FNR == 1 {if (/^#!.*[\/ ](ba)?sh$$/) print FILENAME; nextfile}' | xargs shellcheck
	ANSIBLE_INVENTORY=inventory/example ansible-lint --offline

format: setup ## Put Python files into the project's format
	ruff check --fix .
	ruff format .

unit: setup ## Run the unit tests and the checks of the repository itself
	@$(PY) -c "from tests import lab; lab.ensure_docker()"
	pytest -o cache_dir=build/cache/pytest tests/unit tests/house

molecule: setup ## Run the whole path on a VPS in a container
	@# OpenClaw's image takes two minutes to build: time in which the VPS is prepared.
	@$(PY) -m tests.openclaw_image & trap "kill $$! 2>/dev/null || :" EXIT; molecule test -s default

bench-deploy: setup ## Measure deploys; figures in build/bench/deploy.json
	@$(PY) -m tests.bench.deploy

bench-fly: setup ## Measure deploys to Fly.io against the simulator; figures in build/bench/fly.json
	@$(PY) -m tests.bench.fly

bench-edge: setup ## Measure the edge; figures in build/bench/edge.json
	@$(PY) -m tests.bench.edge

bench-density: setup ## Measure how many bots fit on 1 GB and one CPU; figures in build/bench/density.json
	@$(PY) -m tests.bench.density

bench-gateway: setup ## Measure the LLM gateway; figures in build/bench/gateway.json
	@$(PY) -m tests.bench.gateway

bench-tiers: setup ## Measure what each agent costs; figures in build/bench/tiers.json
	@$(PY) -m tests.bench.tiers

bench-watchdog: setup ## Measure the watchdog beside lawful bots, MINUTES=10; figures in build/bench/watchdog.json
	@$(PY) -m tests.bench.watchdog

bench-ops: setup ## Measure the kill switch; figures in build/bench/ops.json
	@$(PY) -m tests.bench.ops

verify-host: setup ## Look whether the hosts of the inventory are well, kernel's figures included
	@ansible-playbook playbooks/verify_host.yml

bench-zig-tool: setup ## Measure the native tool; figures in build/bench/zig_tool.json
	@$(PY) -m tests.bench.zig_tool

zig-tool: setup ## Build examples/zig-tool into build/zig-tool/table-stats, a static program
	@mkdir -p build/zig-tool
	@$(PY) tools/zig.py build-exe examples/zig-tool/src/main.zig --name table-stats -femit-bin=build/zig-tool/table-stats \
	  -target $$(uname -m)-linux-musl -O ReleaseFast -fstrip -fsingle-threaded

verify-image: setup ## Check an agent's image against its contract: make verify-image IMAGE=name:tag
	@$(PY) -m tests.verify_image $(or $(IMAGE),$(error set IMAGE, for example: make verify-image IMAGE=nullclaw:1.0))

image-openclaw: setup ## Build OpenClaw's image into build/images/openclaw.tar, for hosts that reach no registry
	@ansible-playbook playbooks/build_image.yml -e agent_image_agent=openclaw

docs: setup ## Write docs/roles.md anew from the roles' argument specs
	$(PY) tools/role_tables.py

lock: setup ## Resolve requirements/*.in into hash-locked *.txt
	$(COMPILE) --python-platform x86_64-unknown-linux-gnu -o requirements/vps.txt requirements/vps.in
	$(COMPILE) --universal -o requirements/controller.txt requirements/controller.in
	$(COMPILE) --universal -o requirements/dev.txt requirements/dev.in
	$(COMPILE) --universal -o requirements/litellm.txt requirements/litellm.in
	$(COMPILE) --universal -o requirements/zig.txt requirements/zig.in
