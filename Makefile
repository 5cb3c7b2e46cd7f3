# make demo    answer questions about the world at large            make test    the whole suite
# The first run of either creates .venv and installs what it needs, at the versions of constraints.txt; later runs reuse
# it. Once the oracle of the tests is there, all else is installed beside it at the versions of constraints-oracle.txt.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
# Tests start a hundred processes: without bytecode each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
PINS    = $(shell test -e $(STAMPS)/oracle && echo constraints-oracle.txt || echo constraints.txt)

.PHONY: demo learn test test-long test-newest test-oldest test-kernels test-notebooks test-tf test-weights test-faults test-misuse test-soak soak test-threads test-page lint types format check-install lock notebooks \
    notebooks-run pictures bench bench-tiles bench-model bench-fast bench-train bench-scale verify-base train-demo machine-code ablation realm table-2 shipped tables docs \
    sdist clean

demo: $(STAMPS)/demo
	$(RUN) -m realm_min ask "$${Q:---examples}"

# A retriever that learns from masked words alone, against the same run without its gradient: learn.csv and learn.png.
learn: $(STAMPS)/demo $(STAMPS)/plot
	$(RUN) -m realm_min.app.learn --out benchmarks

# Four workers keep two cores busy, since many a test waits for processes; a file is one worker's, for its fixtures.
SUITE = -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(STAMPS)/test
	$(RUN) $(SUITE)

# The suite at length: four times the drawn cases, the whole Factbook, torchrun on whole commands.
test-long: $(STAMPS)/test
	LONG=1 $(RUN) $(SUITE)

# With the newest of everything, and with the oldest that setup.cfg allows, each in an environment of its own. The oracle
# fits neither: tests that call it are skipped. The oldest NumPy has no wheels beyond Python 3.10.
test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --upgrade --upgrade-strategy eager --editable ".[test]"
	.venv-newest/bin/pip list | grep -iE "^(torch|triton|numpy|tokenizers|safetensors|rich|filelock|hypothesis|pytest) "
	.venv-newest/bin/python $(SUITE)

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) .ci/constraints.py oldest > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install --constraint .venv-oldest/constraints.txt --editable ".[test]"
	.venv-oldest/bin/python $(SUITE)

# Every variant of the kernels, compiled for Ampere, Hopper and Blackwell without a GPU; the suite compiles for Hopper
# what is launched most.
test-kernels: $(STAMPS)/test
	ARCHITECTURES="80 90 120" $(RUN) -m pytest tests/kernels/test_kernels_compile.py

# What they compile to: machine-code.csv.
machine-code: $(STAMPS)/bench
	$(RUN) benchmarks/machine_code.py

# Every notebook runs, and prints and draws what is stored.
test-notebooks: $(STAMPS)/test
	$(RUN) -m pytest --numprocesses 2 tests/heavy/test_notebook_runs.py

# Against what TensorFlow writes, and on real trained weights: not in the suite, since both install much.
test-tf: $(STAMPS)/test $(STAMPS)/tf
	$(RUN) -m pytest tests/heavy/test_tf.py

# A thousand answers on eight threads; the suite asks for fewer.
test-threads: $(STAMPS)/test
	$(RUN) -m pytest tests/heavy/test_threads.py

# `realm-min page` in a headless Chromium, the system's: apt-get install chromium, or CHROMIUM=FILE. Screenshots of all
# views go to SHOTS, if it is set.
test-page: $(STAMPS)/test $(STAMPS)/browser
	$(RUN) -m pytest -s tests/heavy/test_page_browser.py

test-weights: $(STAMPS)/test $(STAMPS)/weights
	$(RUN) -m pytest -s tests/heavy/test_weights.py

# Drawn damage to every kind of file, ten times as much as in the suite.
MUTATIONS ?= 2000
test-faults: $(STAMPS)/test
	MUTATIONS=$(MUTATIONS) $(RUN) -m pytest tests/files/test_mutated_files.py

# Calls with drawn wrong arguments, ten times as many as in the suite.
MISUSED_CALLS ?= 5000
test-misuse: $(STAMPS)/test
	MISUSED_CALLS=$(MISUSED_CALLS) $(RUN) -m pytest tests/test_drawn_misuse.py

# Jobs that are stopped at random end as those that are not: soak.csv. It goes on where it was stopped itself.
MINUTES ?= 20
soak: $(STAMPS)/test
	$(RUN) benchmarks/soak.py --minutes $(MINUTES)

# A small piece of it.
test-soak: $(STAMPS)/test
	$(RUN) -m pytest tests/heavy/test_soak.py

notebooks: $(STAMPS)/notebooks
	$(VENV)/bin/jupyter lab notebooks

# Run them all anew and store what they print and draw, or some: make notebooks-run NOTEBOOKS=notebooks/03-retrieval.py
notebooks-run: $(STAMPS)/test
	$(RUN) notebooks/run_notebooks.py $(NOTEBOOKS)

# A site of README.md and docs/, in out/site; a link that leads nowhere is an error.
docs: $(STAMPS)/docs
	$(VENV)/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env -c docs . out/site
	@echo "Open out/site/README.html"

# The pictures of docs/pictures.md, from the code that they show.
pictures: $(STAMPS)/test
	$(RUN) docs/pictures/draw.py

lint: $(STAMPS)/test types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(STAMPS)/test
	$(VENV)/bin/pyright --pythonpath $(RUN)

# Whether what users and tests install can be had, for every supported Python and platform; and the files that say what.
check-install: $(STAMPS)/check
	$(RUN) .ci/constraints.py check

lock: $(STAMPS)/check
	$(RUN) .ci/constraints.py lock

format: $(STAMPS)/test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The kernels; options in BENCH, as in make bench BENCH="--quick". docs/benchmark.md says how to read what it writes.
bench: $(STAMPS)/bench
	$(RUN) -m realm_min.kernels.bench $(BENCH)

# On a GPU: the scan with other tiles, warps and stages, and which are the fastest.
bench-tiles: $(STAMPS)/bench
	$(RUN) -m realm_min.kernels.bench --sections sweep --queries 1,64 --k 5 --peers torch $(BENCH)

bench-model: $(STAMPS)/bench
	$(RUN) benchmarks/bench_model.py

# What each line of model/fast.py brings, beside the plain line that it replaces.
bench-fast: $(STAMPS)/bench
	$(RUN) benchmarks/bench_fast.py

bench-train: $(STAMPS)/bench
	$(RUN) benchmarks/bench_train.py

# Ranks of one thread each, and the constants of the cost model; the tables of docs/scaling.md and docs/processes.md are made anew.
bench-scale: $(STAMPS)/bench
	$(RUN) benchmarks/bench_scale.py

# A random checkpoint of each kind at BERT-base size: errors, time and memory of `realm-min verify`.
verify-base: $(STAMPS)/test
	$(RUN) benchmarks/verify_base.py

# The first default model, whose stages `make ablation` measures: from MiniLM, in two hours on two cores; a run that was stopped goes on. WEBQUESTIONS is a folder with
# webquestions.train.jsonl, webquestions.dev.jsonl and webquestions.devtest.jsonl; WORK is where the stages go.
WORK ?= train-demo
TRAIN = OMP_WAIT_POLICY=passive $(RUN)
train-demo: $(STAMPS)/ablation
	$(TRAIN) benchmarks/train_demo.py --out $(WORK) $(if $(WEBQUESTIONS),\
	    --train $(WEBQUESTIONS)/webquestions.train.jsonl --dev $(WEBQUESTIONS)/webquestions.dev.jsonl)

# After it: what each stage brought.
ablation: $(STAMPS)/ablation
	$(if $(WEBQUESTIONS),,$(error WEBQUESTIONS is not set: make ablation WEBQUESTIONS=FOLDER, the folder of webquestions.dev.jsonl))
	$(TRAIN) benchmarks/ablation.py --work $(WORK) --training $(WEBQUESTIONS)/webquestions.train.jsonl \
	    --questions $(WEBQUESTIONS)/webquestions.dev.jsonl $(WEBQUESTIONS)/webquestions.devtest.jsonl

# After make learn, ablation or shipped: the tables of README.md, MODEL_CARD.md and docs/evidence.md.
tables: $(STAMPS)/test
	$(RUN) benchmarks/evidence.py

# How the default model answers what its corpora hold, what it was asked in training and what it was not, and what nothing
# there answers: shipped.csv. LEAD_QUESTIONS is a folder with train.jsonl and dev.jsonl, WEBQUESTIONS one of its three files.
shipped: $(STAMPS)/test
	$(if $(LEAD_QUESTIONS),,$(error LEAD_QUESTIONS is not set: make shipped LEAD_QUESTIONS=FOLDER WEBQUESTIONS=FOLDER))
	$(if $(WEBQUESTIONS),,$(error WEBQUESTIONS is not set: make shipped LEAD_QUESTIONS=FOLDER WEBQUESTIONS=FOLDER))
	$(RUN) benchmarks/shipped.py --questions $(LEAD_QUESTIONS) --webquestions $(WEBQUESTIONS) $(SHIPPED)

# Does a retriever learn from masked words? REALM against its controls on Wikipedia leads: docs/masked-words.md. A run that
# is recorded in benchmarks/realm is not run again. LEAD_QUESTIONS is a folder with train.jsonl and dev.jsonl; further
# options in REALM, as in make realm REALM="--device cuda --processes 12".
realm: $(STAMPS)/realm
	$(if $(LEAD_QUESTIONS),,$(error LEAD_QUESTIONS is not set: make realm LEAD_QUESTIONS=FOLDER, of train.jsonl and dev.jsonl))
	$(TRAIN) benchmarks/realm.py --questions $(LEAD_QUESTIONS) $(REALM)

# The paper's table 2 by the same runs, and more of them: what is masked, halves of REALM fine-tuned, a stale index.
table-2: $(STAMPS)/realm
	$(if $(LEAD_QUESTIONS),,$(error LEAD_QUESTIONS is not set: make table-2 LEAD_QUESTIONS=FOLDER, of train.jsonl and dev.jsonl))
	$(TRAIN) benchmarks/realm.py --questions $(LEAD_QUESTIONS) --table-2 $(REALM)

sdist: $(STAMPS)/venv
	$(VENV)/bin/pip install --quiet build
	$(RUN) -m build --sdist

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/test $(STAMPS)/bench $(STAMPS)/weights $(STAMPS)/realm $(STAMPS)/ablation: $(STAMPS)/oracle

$(STAMPS)/oracle: $(STAMPS)/venv setup.cfg constraints-oracle.txt
	$(VENV)/bin/pip install --constraint constraints-oracle.txt --editable ".[oracle]"
	touch $@

$(STAMPS)/%: $(STAMPS)/venv setup.cfg constraints.txt
	@echo "Installing what \"make $*\" needs into $(VENV); torch is the large part: docs/install.md says how large."
	$(VENV)/bin/pip install --constraint $(PINS) --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
