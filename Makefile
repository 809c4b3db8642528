# Octavo: everything a developer or a newcomer runs. `make` alone lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO_MODEL := demo://smollm2-135m-instruct
SOURCES := worker/src operator/src
NATIVE := $(wildcard worker/src/octavo/kernels/cpu/csrc/*.c worker/src/octavo/kernels/cpu/csrc/*.h)

.DEFAULT_GOAL := help
.PHONY: help run serve test check format test-gpu e2e bench images clean

help: ## List what there is
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | awk -F':.*?## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: $(VENV)/run.stamp ## Serve the demo model from examples/smollm2.yaml on 127.0.0.1:8000
	@$(BIN)/octavo fetch $(DEMO_MODEL)
	@$(BIN)/octavo-operator local -f examples/smollm2.yaml

JOBS ?= 2
# Files go to whichever process is free, in the order they have: what takes long comes first.
test: $(VENV)/dev.stamp ## Every test that needs no GPU and no cluster, JOBS=2 at a time (TESTS=... for some)
	@$(BIN)/octavo fetch $(DEMO_MODEL)
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	$(BIN)/python -m pytest -p no:cacheprovider -n $(JOBS) --dist loadfile --no-loadscope-reorder tests
endif

check: $(VENV)/dev.stamp ## Formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES) benchmarks
	$(BIN)/lint-imports --config .importlinter

format: $(VENV)/dev.stamp ## Rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

GPU_TESTS := -c tests/gpu/pytest.ini -p no:cacheprovider tests/gpu
test-gpu: export OMP_NUM_THREADS := 1
test-gpu: ## Tests and parity checks on a CUDA device, with the Python that is active
	$(PYTHON) -m pytest $(GPU_TESTS) -m "gpu and not alone" $$($(PYTHON) -c 'from importlib.util \
		import find_spec as f; print("-n 14 --dist worksteal" * bool(f("xdist")))')
	$(PYTHON) -m pytest $(GPU_TESTS) -m alone

e2e: $(VENV)/dev.stamp ## User stories on the cluster that OCTAVO_E2E_CONTEXT names (e2e/README.md)
	$(BIN)/python -m pytest -c e2e/pytest.ini e2e

bench: $(VENV)/run.stamp ## Offline throughput of the demo model on this machine
	$(BIN)/python benchmarks/offline.py --model $(DEMO_MODEL)

images: ## Build both container images (needs docker)
	docker build -f Dockerfile.worker -t octavo/worker:dev .
	docker build -f Dockerfile.operator -t octavo/operator:dev .

clean: ## Remove the virtual environment and everything built
	rm -rf $(VENV) build dist worker/build worker/src/octavo/kernels/cpu/*.so
	find . -name '__pycache__' -type d -prune -exec rm -rf {} +

$(VENV)/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "octavo: no $(PYTHON) here; install Python 3.11 or newer, or run: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "octavo: $(PYTHON) is older than Python 3.11; run: make PYTHON=/path/to/python3.11"; exit 1; }
	@command -v $${CC:-cc} >/dev/null || { echo "octavo: no C compiler ($${CC:-cc}) here; install one (Debian: apt-get install gcc; Fedora: dnf install gcc), then run make again"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: $(VENV)/bin/pip constraints.txt worker/pyproject.toml worker/setup.py operator/pyproject.toml $(NATIVE)
	@echo "Installing Octavo into $(VENV) (a minute or two the first time)"
	@$(PIP) 'torch>=2.11,<2.14' 'setuptools>=77' wheel
	@$(PIP) --no-build-isolation --editable worker --editable operator
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.txt requirements-clients.txt
	@echo "Installing what the tests need"
	@$(PIP) --requirement requirements-dev.txt
	@$(PIP) --no-deps --requirement requirements-clients.txt
	@touch $@
