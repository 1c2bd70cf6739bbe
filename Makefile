# Each target does its own set-up; a fresh clone needs no step before it.
.DEFAULT_GOAL := help
.PHONY: help setup setup-demo setup-inference setup-dev demo test check lint types fuzz bench train train-arcgis package verify-package run lock screenshots clean

QGIS_PYTHON ?= /usr/bin/python3
TORCH_BACKEND ?=
DATA ?= ../shared/data/trees_neon
SECONDS ?= 60
SETUP = $(QGIS_PYTHON) -u tools/setup.py --qgis-python $(QGIS_PYTHON) $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND))
DEV = build/env/qgis/bin/python
INFERENCE = build/env/inference/bin/python

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install QGIS where it is missing, make the environments and the profile (TORCH_BACKEND=auto|cpu|cu128 picks a torch build)
	@bash tools/install_qgis.sh tests
	@$(SETUP)

setup-demo:
	@bash tools/install_qgis.sh
	@$(SETUP) inference profile

setup-inference:
	@$(SETUP) inference

setup-dev:
	@$(SETUP) dev

demo: setup-demo ## Detect trees in the aerial image that comes along, and draw what was found
	@$(QGIS_PYTHON) tools/demo.py

test: setup ## Run all tests
	@$(DEV) tools/run_tests.py

check: setup ## Run the quick tests (one to two minutes on two cores)
	@$(DEV) tools/run_tests.py --fast

lint: setup-dev ## Check style, allowed imports and the Qt 6 rules (needs no QGIS)
	@$(DEV) -m ruff check .
	@$(DEV) -m ruff format --check .
	@PYTHONPATH=build/plugins build/env/qgis/bin/lint-imports --no-cache
	@! grep -rnE '^\s*(from|import) kestrel' inference processing_provider ui __init__.py plugin.py --include='*.py' || { echo 'Relative imports inside the plugin'; false; }
	@# Qt 6 has neither; everything of Qt comes through qgis.PyQt.
	@! grep -rnE --include='*.py' --exclude-dir=build '^\s*(from|import) PyQt[56]|\.exec_\(' . || { echo 'Not allowed with Qt 6'; false; }

types: setup ## Check types: strictly in inference/, with QGIS's own stubs elsewhere
	@MYPYPATH=build/plugins $(DEV) -m mypy --strict --follow-imports=silent --cache-dir build/mypy/inference --python-executable $(INFERENCE) -p kestrel.inference
	@MYPYPATH=build/plugins $(DEV) -m mypy --follow-imports=silent --cache-dir build/mypy/qgis -m kestrel -m kestrel.plugin -p kestrel.processing_provider -p kestrel.ui

fuzz: setup-inference ## Throw mutated packages and weights at the readers (SECONDS=60; SEED=number repeats a run)
	@$(INFERENCE) tools/fuzz.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

bench: setup-inference ## Measure the speed of detection on this machine
	@$(INFERENCE) benchmarks/bench.py

train: setup-inference ## Train the demo model again (DATA=folder with the NEON plots; about 50 minutes)
	@OMP_WAIT_POLICY=PASSIVE $(INFERENCE) training/train.py --data $(DATA) --out build/training

train-arcgis: setup-inference ## Train two families of arcgis.learn, and judge their packages (DATA=..., about half an hour)
	@OMP_WAIT_POLICY=PASSIVE $(INFERENCE) training/arcgis_families.py --data $(DATA) --out build/training-arcgis

package: setup-dev ## Make the plugin's zip from the last commit
	@$(DEV) tools/package.py

verify-package: package ## Check that zip as the QGIS plugin site does
	@$(DEV) tools/verify_package.py

run: setup-demo ## Open QGIS with Kestrel, in a profile of its own
	@QGIS_CUSTOM_CONFIG_PATH=$(CURDIR)/build/profile qgis --noversioncheck --nologo

lock: ## Resolve requirements/*.in again, to the newest versions
	@$(SETUP) lock

screenshots: setup ## Make the pictures of the documentation again
	@$(DEV) tools/screenshots.py

clean: ## Remove everything that was made (build/)
	@rm -rf build
