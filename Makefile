# `make` builds the BPF object, `make demo` shows the balancer at work, `make test` checks everything.
# demo and test set up what they need: Debian packages (as root) and a virtual environment.

PYTHON ?= python3
VENV ?= .venv
CLANG_FORMAT ?= clang-format
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
CHAOS_ARGS ?=

BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
C_SOURCES := $(wildcard bpf/*.c bpf/*.h)

export PYTHON

.PHONY: all help bpf bpf-check deps deps-runtime venv demo bench chaos test test-kernels unit lint format clean distclean \
	need-root
# The steps of a target build on each other: set-up first, the test run last.
.NOTPARALLEL:

all: bpf

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

bpf: ## build the BPF object into the package (the default target; needs clang and libbpf-dev)
	$(MAKE) -C bpf

bpf-check: ## fail if the committed BPF object is not what the sources build
	$(MAKE) -C bpf check

deps: ## install the Debian packages that building and testing need
	@scripts/setup.sh runtime test

deps-runtime:
	@scripts/setup.sh runtime

venv: $(VENV)/.installed-dev ## the virtual environment with everything for development

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed-runtime

$(VENV)/.installed-runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

demo: deps-runtime $(VENV)/.installed-runtime ## backends, balancer and load on loopback, as root; DEMO_ARGS='--seconds 10'
	$(BIN)/sockmap-lb demo $(DEMO_ARGS)

bench: deps $(VENV)/.installed-runtime ## messages a second beside HAProxy, nginx and dnsdist, as root; BENCH_ARGS='--compare sizes'
	$(BIN)/python -m tests.bench.bench $(BENCH_ARGS)

chaos: need-root deps venv ## ten minutes of misbehaving clients and backends; CHAOS_ARGS='--seconds 60 --seed 1'
	$(BIN)/python -m tests.e2e.chaos $(CHAOS_ARGS)

test: need-root deps venv lint bpf-check ## everything: lint, the committed object, all tests (as root); a skip is a failure
	SOCKMAP_LB_REQUIRE_ALL=1 $(BIN)/python -m pytest tests/unit tests/bpf tests/e2e $(PYTEST_ARGS)

test-kernels: venv ## tests on Debian's kernels in virtual machines, without KVM; KERNELS='6.1 6.12'
	@scripts/setup.sh runtime test kernels
	VENV=$(VENV) scripts/test-kernels.sh

unit: venv ## the tests that need no root
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

lint: venv ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict lb tests
	$(CLANG_FORMAT) --dry-run -Werror $(C_SOURCES)

format: venv ## rewrite the sources in the one format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(CLANG_FORMAT) -i $(C_SOURCES)

clean: ## remove what builds and tests leave behind (not the committed BPF object)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find lb tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the virtual environment
	rm -rf $(VENV)

need-root:
	@test "$$(id -u)" = 0 || { \
		echo "make test loads BPF programs and makes network namespaces: run it as root (sudo make test)." >&2; \
		echo "Without root: make lint unit" >&2; exit 1; }
