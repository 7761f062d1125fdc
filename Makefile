# One command each. `make help` lists them; .ci/run runs the same ones.
PYTHON ?= python3
WORKERS ?= 2
THREADS ?= 1,all
BIN := .venv/bin
STAMP := .venv/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo test check check-native check-extension check-arm accuracy zoo calibrate browser soak bench \
        bench-quick wheels wheel-arm lab docs clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup: $(STAMP) ## make .venv with everything in it; does nothing when it is up to date

# The stamp comes last, so an install that failed half-way is tried again. timm, for the tests, comes without what it
# asks for: torchvision, whose wheel would bring another torch.
$(STAMP): pyproject.toml CMakeLists.txt constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps timm
	@touch $@

demo: setup ## see it work
	$(BIN)/python -m homeostat.demo

test: setup ## run every test
	$(BIN)/python -m pytest -n $(WORKERS)

check: setup ## lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

# tools/check.cpp, once per sanitizer and instruction set: build/check/address-v3 and so on. Only the kernels are
# instrumented, with threads of C++'s own for the thread sanitizer, which does not see into OpenMP's.
X86 := $(filter x86_64,$(shell uname -m))
CHECKS ?= $(addprefix address-,base $(if $(X86),v2 v3 v4 v4b)) $(addprefix thread-,$(if $(X86),v2 v3 v4,base))
DRAWS ?= 500
$(foreach set,v2 v3 v4,$(eval MARCH_$(set) := -march=x86-64-$(set)))
MARCH_v4b := -march=x86-64-v4 -mavx512bf16
UNSAFE := -fsanitize=address,undefined -fno-sanitize-recover=all
SANITIZE_address := -O1 -g1 -fopenmp $(UNSAFE)
SANITIZE_thread := -O1 -g1 -DHOMEOSTAT_STD_THREADS -fsanitize=thread
SANITIZE_plain := -O3 -fopenmp

check-native: ## run the kernels alone under the address, undefined-behaviour and thread sanitizers
	@$(MAKE) --no-print-directory -j $(WORKERS) $(CHECKS:%=build/check/%)
	@for check in $(CHECKS:%=build/check/%); do \
		echo $$check && TSAN_OPTIONS=halt_on_error=1 $(RUN) $$check $(DRAWS) || exit 1; done

check-arm: ## the same cross-compiled for ARM and emulated, without sanitizers (g++-aarch64-linux-gnu and qemu-user)
	@$(MAKE) --no-print-directory check-native CHECKS=plain-arm CXX=aarch64-linux-gnu-g++ \
		RUN="qemu-aarch64 -L /usr/aarch64-linux-gnu"

check-extension: ## the same sanitizers on the compiled part under the tests that need it, in Python (minutes)
	$(PYTHON) -m venv build/extension
	CXXFLAGS="-g1 $(UNSAFE)" LDFLAGS="$(UNSAFE)" build/extension/bin/pip install --quiet --disable-pip-version-check \
		-C install.strip=false -c constraints.txt ".[torch]" pytest
	export LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" && \
		export ASAN_OPTIONS=detect_leaks=0 && cd build/extension && \
		bin/python -c "import homeostat; told = homeostat.kernels.info(); assert told['native'], told" && \
		bin/python -m pytest -p no:cacheprovider ../../tests/test_native.py ../../tests/test_kernels.py

DRIVER := build/check/driver-$(notdir $(CXX)).o
$(DRIVER): tools/check.cpp csrc/norm.hpp csrc/way.hpp
	@mkdir -p $(@D)
	@$(CXX) -std=c++17 -O2 -Wall -Wextra -Icsrc -c tools/check.cpp -o $@

build/check/%: how = $(SANITIZE_$(word 1,$(subst -, ,$*)))
build/check/%: set = $(subst arm,base,$(word 2,$(subst -, ,$*)))
build/check/%: $(DRIVER) csrc/kernels.cpp $(wildcard csrc/*.hpp)
	@echo "building $@"
	@$(CXX) -std=c++17 $(how) $(MARCH_$(set)) -DISA=$(set) -w -c csrc/kernels.cpp \
		-ffp-contract=fast -fno-math-errno -fno-trapping-math -o $@.o
	@$(CXX) $(how) $@.o $(DRIVER) -Wl,--defsym=kernels_checked=kernels_$(set) -o $@

accuracy: setup ## print the largest errors against float64, torch.nn beside homeostat
	$(BIN)/python bench/accuracy.py

bench: setup ## measure speed, torch and JAX beside homeostat, and rewrite docs/performance.md
	$(BIN)/python -m bench.speed --threads $(THREADS) $(ARGS)

bench-quick: setup ## the same in a minute, a few cells of few samples, into a folder of its own: does it run?
	$(BIN)/python -m bench.speed --quick --into "$$(mktemp -d)" $(ARGS)

zoo: setup ## the doctor's rules on sick, healthy and fixed models, 20 seeds each, and rewrite docs/doctor/zoo.json
	$(BIN)/python -m bench.zoo docs/doctor $(ARGS)

calibrate: setup ## how often the doctor's rules speak of 500 healthy networks, and rewrite docs/doctor/calibration.json
	$(BIN)/python -m bench.calibrate docs/doctor $(ARGS)

browser: setup ## the doctor's page in a headless Chromium, installed (Debian, as root) where it is not; pictures in build/browser
	@command -v chromium > /dev/null || { apt-get update -qq && apt-get install -yqq --no-install-recommends chromium; }
	@test -d build/browser/axe || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target build/browser/axe axe-core-python==0.1.0
	AXE=build/browser/axe/axe_core_python/axe.min.js SCREENSHOTS=build/browser $(BIN)/python -m pytest tests/test_browser.py

soak: setup ## train on four processes, kill one, twenty times: does every other raise, does the checkpoint load?
	$(BIN)/python -m bench.soak $(ARGS)

PYTHONS ?= 3.11 3.12 3.13
wheels: ## build manylinux wheels into dist/ for every Python of PYTHONS that is here, and try each without a compiler
	$(PYTHON) tools/wheels.py dist $(PYTHONS)

wheel-arm: ## cross-compile the aarch64 wheel and try it under an emulator: see tools/arm_wheel.sh for what that needs
	tools/arm_wheel.sh dist

lab: ## reproduce experiments
	@echo "There is no lab yet."

docs: setup ## write docs/catalogue.md, composing.md and choosing.md from the code
	$(BIN)/python tools/pages.py

clean: ## remove what the commands above made
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/homeostat/_native.*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
