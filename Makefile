# `make demo` and `make test` do all their own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint types docs wheel gpu standin rehearsals compare largest images fuzz mutate
.PHONY: tasks coverage clean .rehearsal

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs,hf,parquet]'
	touch $@

# The 7B model as specified does not fit a 16 GB card (exit code 1), with 8 KV heads it does; then a
# small model runs for real on the CPU.
demo: $(STAMP)
	$(BIN)/tritter-mem plan --config 7b || test $$? -eq 1
	$(BIN)/tritter-mem plan --config 7b-128k-gqa
	$(BIN)/tritter-mem profile --config tiny --device cpu --html out/tiny.html --output out/tiny.json
	@echo "The report of the real run: out/tiny.html"

# All tests, or those that MARKED names: MARKED="not covered".
test: $(STAMP)
	$(BIN)/pytest --numprocesses auto --dist worksteal $(if $(MARKED),-m "$(MARKED)")

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# The manual, in out/site: a page for each command is written from the code; a link that leads nowhere
# fails.
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q docs out/site

# The built wheel, in an environment that has nothing else and a folder that is not the checkout.
wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	rm -rf out/wheel && $(PYTHON) -m venv out/wheel
	out/wheel/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd / && $(CURDIR)/out/wheel/bin/tritter-mem plan --config 7b || test $$? -eq 1
	cd / && $(CURDIR)/out/wheel/bin/tritter-mem plan --config 7b-128k-gqa
	cd / && $(CURDIR)/out/wheel/bin/tritter-mem plan qwen3-0.6b
	cd / && TRITTER_MEM_HISTORY=off $(CURDIR)/out/wheel/bin/tritter-mem profile --config tiny --device cpu

# What needs a CUDA GPU, without a network and without installing anything: .venv where it is there.
# PARTS="smoke linears" runs some, OUT=folder takes the evidence, AGAIN=1 repeats what has figures.
gpu:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m benchmarks.gpu $(PARTS) \
		$(if $(OUT),--output $(OUT)) $(if $(AGAIN),--again)

# What is simulated, against PyTorch's own CUDA allocator without a GPU: docs/pytorch-allocator.md.
standin: $(STAMP)
	$(BIN)/python -m benchmarks.standin.install
	$(BIN)/python -m benchmarks.standin -m benchmarks.standin.check

# Commands over the stand-ins, beside what is known of them: reports/rehearsals.md. It resumes; ROWS="8B"
# runs those whose names have it, TORCH=2.14.0 those of a release.
rehearsals: $(STAMP)
	$(BIN)/python -m benchmarks.rehearsals $(if $(TORCH),--torch $(TORCH)) \
		$(if $(ROWS),--rows "$(ROWS)") $(if $(AGAIN),--again)

# What tests rehearse in, with PyTorch's CUDA build; they make it themselves where it is not there.
.rehearsal: $(STAMP)
	$(BIN)/python -m tests.rehearsal.environment

# What is planned of named models, beside what their simulated run takes: reports/named-models.md. It
# resumes.
compare: $(STAMP)
	$(BIN)/python -m benchmarks.named_models

# Whether what `plan --max` names holds when it is simulated: reports/largest.md. It resumes.
largest: $(STAMP)
	$(BIN)/python -m benchmarks.largest

# The pictures of the documents; needs Debian's chromium and chromium-driver.
images: $(STAMP)
	TRITTER_MEM_HISTORY=off $(BIN)/python -m tests.browser.screenshots

# Four tasks of somebody who has just cloned the repository, typed from README; minutes of installing.
tasks:
	$(PYTHON) -m tests.tasks

# Damaged and hostile files, for FUZZ_SECONDS; prints its seed, which FUZZ_SEED repeats. What goes
# wrong joins tests/fuzz/corpus.
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz

# Lines and branches that the quick tests of five packages reach; tests/coverage/unreached.toml lists
# the rest, with reasons.
coverage: $(STAMP)
	$(BIN)/python -m tests.coverage

# Whether tests notice small wrong changes of formulas: 500 of them, which takes up to an hour. Goes
# on where it was; prints what no test noticed, with the reason where there is one.
mutate: $(STAMP)
	$(BIN)/python -m tests.mutate

clean:
	rm -rf .venv .standin .rehearsal .rehearsal.lock out dist build
