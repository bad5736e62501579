# `make demo` and `make test` set up everything on a machine that has Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The demo's clip: a generated sea, or yours (make demo CLIP=fire.mp4). RECIPE: st for textures that
# look alike everywhere, fc-s for those that move in a fixed scene.
CLIP ?=
OUT ?= demo-out
RECIPE ?= $(if $(CLIP),fc-s,st)
UPDATES ?=
SEED ?= 1
JOBS ?= 2

.PHONY: help demo test check audit docs setup setup-dev clean
help:
	@echo "make demo [CLIP=video] [OUT=folder] [RECIPE=name] [UPDATES=n]   clip -> model -> new video"
	@echo "make test                                          set up, check and test everything"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"error: $(PYTHON) is {v.major}.{v.minor}, stg needs Python 3.11 or newer; pass PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[cpu,train]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable '.[cpu,train,dev]'
	@touch $@

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# Exported and quoted: names may hold spaces and quotes.
export CLIP OUT RECIPE UPDATES SEED
demo: setup
	@mkdir -p "$$OUT"
	@test -n "$$CLIP" || $(BIN)/python -m stg_train.sea "$$OUT/clip.mp4" --frames 64 --size 64x64 --overwrite
	$(BIN)/stg-train "$${CLIP:-$$OUT/clip.mp4}" -o "$$OUT/run" --recipe "$$RECIPE" $(if $(UPDATES),--updates "$$UPDATES") --overwrite
	$(BIN)/stg-export "$$OUT/run" -o "$$OUT/model.onnx" --overwrite
	$(BIN)/stg-run synthesize "$$OUT/model.onnx" -o "$$OUT/synthesized.mp4" --seed "$$SEED" --overwrite
	$(BIN)/stg-run sheet "$$OUT/run/observed.npy" "$$OUT/synthesized.mp4" -o "$$OUT/sheet.png" --overwrite
	@echo
	@echo "video          $$OUT/synthesized.mp4"
	@echo "contact sheet  $$OUT/sheet.png"
	@echo "report         $$OUT/run/report.html"
	@echo "model          $$OUT/model.onnx"

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two workers: the tests' own threads fill what a small machine has. A file's tests stay together,
# for they share models that take a while to make. JOBS=0 runs one after the other.
test: check
	$(BIN)/pytest --numprocesses "$(JOBS)" --dist loadfile --no-loadscope-reorder

# Known vulnerabilities of the pinned packages; says so where it cannot ask.
audit: setup-dev
	$(BIN)/python bench/audit.py

docs: setup-dev
	$(BIN)/python -m stg_cli.reference docs/cli.md

clean:
	rm -rf $(VENV) build dist
