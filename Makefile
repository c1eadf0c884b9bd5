# Set-up is part of every command: `make extract FILE=paper.txt` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
FORMAT ?= table
MODEL ?= papers

.PHONY: install extract demo test test-slow versions style quality bench bench-gliner bench-gliner2 learning-curve gpu fuzz

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv: a few minutes"
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,test]'
	touch $@

extract: install
	@test -n "$(FILE)" || { echo "Say which text: make extract FILE=paper.txt [MODEL=biomedical] [FORMAT=json]"; exit 2; }
	@$(BIN)/python training/extract.py "$(FILE)" --model "$(MODEL)" --format $(FORMAT)

# The page on http://127.0.0.1:7860 with the bundled models; SENER_MODEL=FOLDER for another one.
demo: install
	$(BIN)/python space/app.py

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --ignore tests/demo/test_demo_browser.py
	$(BIN)/python -m pytest tests/demo/test_demo_browser.py  # a browser beside other work is too slow for its waits

test-slow: .venv/.cluster .venv/.fuzz
	$(BIN)/python -m pytest -m slow

# Ray, which only training/predict_ray.py and its slow test need.
.venv/.cluster: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cluster]'
	touch $@

# Hostile texts for ten minutes: `make fuzz SECONDS=3600` for an hour, SEED=5 for the texts of another run again.
fuzz: .venv/.fuzz
	cd tests && ../$(BIN)/python -m fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

# Atheris, which only that needs.
.venv/.fuzz: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	touch $@

# Each supported pair of torch and transformers in an environment of its own: half an hour, 30 GB in outputs/versions/.
versions: install
	$(BIN)/python tests/tools/version_matrix.py

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Less than an hour on two cores. `make bench ONLY=forward` for one part, QUICK=1 to see that all of it works.
bench: install bench-gliner bench-gliner2
	cd tests && ../$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

bench-gliner: .venv-gliner/.installed
bench-gliner2: .venv-gliner2/.installed

# Environments of their own: GLiNER asks for an older transformers.
.venv-gliner/.installed:
	$(PYTHON) -m venv .venv-gliner
	.venv-gliner/bin/pip install --quiet --constraint constraints.txt torch
	.venv-gliner/bin/pip install --quiet gliner==0.2.29 transformers==5.16.1
	touch $@

.venv-gliner2/.installed:
	$(PYTHON) -m venv .venv-gliner2
	.venv-gliner2/bin/pip install --quiet --constraint constraints.txt torch
	.venv-gliner2/bin/pip install --quiet --constraint constraints.txt 'gliner2[local]==2.1.0'
	touch $@

# F1 by the number of annotated documents, beside the plain tagger: make learning-curve TRAIN=train.jsonl DEV=dev.jsonl
# DOCUMENTS="5 10 25 57"; ENCODER=FOLDER without a hub. An hour or two; a second call goes on.
ENCODER ?= sentence-transformers/all-MiniLM-L6-v2
learning-curve: install
	@test -n "$(TRAIN)" -a -n "$(DEV)" -a -n "$(DOCUMENTS)" || { \
		echo 'Say which data: make learning-curve TRAIN=train.jsonl DEV=dev.jsonl DOCUMENTS="5 10 25"'; exit 2; }
	PYTHONPATH=tests $(BIN)/python -m benchmarks.learning_curve --config training/configs/few_documents.yaml \
		--train_file $(TRAIN) --dev_file $(DEV) --documents $(DOCUMENTS) --tagger_backbone $(ENCODER) \
		--output_dir outputs/learning-curve/$(notdir $(basename $(TRAIN)))

# What needs an accelerator, in less than ten minutes: the exactness tests on it, then time and memory.
gpu: install
	@$(BIN)/python -c "import torch; torch.cuda.is_available() or exit('make gpu: torch finds no CUDA device')"
	$(BIN)/python -m pytest -m cuda
	cd tests && ../$(BIN)/python -m benchmarks --only accelerator
