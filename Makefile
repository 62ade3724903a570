PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
SHARED := -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test thorough fuzz fast check dist cpp sdk fmt clean

# Install, then turn the built-in checkpoint into an FP16 bundle and print the comparison.
demo: $(VENV)/.installed
	$(BIN)/save-export --res 256 --fp16 -o out/save_vit_t_256_fp16 --force

# Install with the test tools, then lint, type-check and run the tests that this machine can run, two
# at a time (one with large models needs up to 8 GB).
test: $(VENV)/.installed-test
	$(MAKE) check
	$(BIN)/python -m pytest $(SHARED) --durations 25

# What takes long: interrupted exports, fresh environments, C++ under sanitizers. CI runs it
# after `make test`.
thorough: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(SHARED) --durations 25 -m thorough

# Damaged files for every reader of a stranger's file, SECONDS each (atheris, and clang for C++).
SECONDS ?= 600
fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

# The tests for daily work: no exported bundle, no C++, no datasets that have to be installed.
fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(SHARED) -m "not (slow or heavy or stamps or long or thorough)"

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/typed && $(BIN)/pip install --quiet --no-deps --target $(VENV)/typed .
	cd $(VENV)/typed && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p save_deploy

# Wheels and sdist of save-deploy and of its built-in checkpoint, in dist/.
dist: $(VENV)/.installed-test
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist save_deploy/assets

# Build and test the C++ runtime in build/cpp; BUNDLE=DIR also runs what wants a bundle. OpenVINO comes
# from OpenVINO_DIR (the folder of OpenVINOConfig.cmake) or into .venv, which gets nothing else. In CI
# (which sets CI) warnings are errors: a compiler nobody tried must not fail a user's build.
cpp: build/cpp/CMakeCache.txt
	cmake --build build/cpp -j 2
	SAVE_TEST_BUNDLE=$(if $(BUNDLE),$(abspath $(BUNDLE))) ctest --test-dir build/cpp --output-on-failure

# The C++ runtime for developers without this repository: dist/save_runtime-VERSION-SYSTEM.tar.gz.
sdk: build/cpp/CMakeCache.txt
	cmake --build build/cpp -j 2 --target save_runtime save_media save-infer
	cpack --config build/cpp/CPackConfig.cmake -B dist
	rm -rf dist/_CPack_Packages

OPENVINO_CMAKE = $(or $(OpenVINO_DIR),$$($(BIN)/python -c "import openvino.utils as u; print(u.get_cmake_path())"))
.PHONY: build/cpp/CMakeCache.txt
build/cpp/CMakeCache.txt: $(if $(OpenVINO_DIR),,$(VENV)/.installed-openvino)
	@for tool in cmake c++; do command -v $$tool >/dev/null || \
		{ echo "$$tool is missing: apt-get install cmake g++"; exit 3; }; done
	cmake -S runtime/cpp --preset $(if $(CI),ci,release) -DOpenVINO_DIR=$(OPENVINO_CMAKE)

fmt: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out build dist *.egg-info

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet -e ".[export]"
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

# in the range of the extra "openvino"
$(VENV)/.installed-openvino: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/python -c "import openvino" 2>/dev/null || \
		$(BIN)/pip install --quiet "$$(sed -n 's/^openvino = \["\(.*\)"\]/\1/p' pyproject.toml)"
	touch $@
