# Set-up is part of every command: `make extract FILE=paper.txt` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
FORMAT ?= table

.PHONY: install extract test test-slow style quality

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,test]'
	touch $@

extract: install
	@test -n "$(FILE)" || { echo "Say which text: make extract FILE=paper.txt [FORMAT=json]"; exit 2; }
	@$(BIN)/python training/extract.py "$(FILE)" --format $(FORMAT)

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
