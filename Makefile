PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install test test-slow quickstart quickstart-video quickstart-spatial lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -q -m slow

quickstart: install
	$(BIN)/grpo-mm train configs/quickstart/flow.yaml

quickstart-video: install
	$(BIN)/grpo-mm train configs/quickstart/video.yaml

quickstart-spatial: install
	$(BIN)/grpo-mm train configs/quickstart/spatial.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs build *.egg-info
