# make demo    answer questions about the CIA World Factbook        make test    the whole suite
# The first run of either creates .venv and installs what it needs at the versions of constraints.txt; later runs reuse it.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
INSTALL = $(VENV)/bin/pip install --quiet --constraint constraints.txt

.PHONY: demo learn test test-tf test-weights lint format notebooks notebooks-run bench bench-model bench-train bench-scale \
    verify-base train-demo ablation clean

demo: $(STAMPS)/demo
	$(RUN) -m realm_min ask $${Q:+"$$Q"} </dev/null

# A retriever that learns from masked words alone, against the same run without its gradient: learn.csv and learn.png.
learn: $(STAMPS)/demo $(STAMPS)/plot
	$(RUN) -m realm_min.training.learn --out benchmarks

test: $(STAMPS)/test
	$(RUN) -m pytest --numprocesses 2 --dist worksteal

# Against what TensorFlow writes, and on real trained weights: not in the suite, since both install much.
test-tf: $(STAMPS)/test $(STAMPS)/tf
	$(RUN) -m pytest tests/heavy/test_tf.py

test-weights: $(STAMPS)/test $(STAMPS)/weights
	$(RUN) -m pytest -s tests/heavy/test_weights.py

notebooks: $(STAMPS)/notebooks
	$(VENV)/bin/jupyter lab notebooks

# Run them all anew and store what they print and draw, or some: make notebooks-run NOTEBOOKS=notebooks/03-retrieval.py
notebooks-run: $(STAMPS)/test
	$(RUN) notebooks/run_notebooks.py $(NOTEBOOKS)

lint: $(STAMPS)/test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(STAMPS)/test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMPS)/bench
	$(RUN) -m realm_min.kernels.bench

bench-model: $(STAMPS)/bench
	$(RUN) benchmarks/bench_model.py

bench-train: $(STAMPS)/bench
	$(RUN) benchmarks/bench_train.py

# Ranks of one thread each, and the constants of the cost model; the tables of docs/scaling.md and README.md are made anew.
bench-scale: $(STAMPS)/bench
	$(RUN) benchmarks/bench_scale.py

# A random checkpoint of each kind at BERT-base size: errors, time and memory of `realm-min verify`.
verify-base: $(STAMPS)/test
	$(RUN) benchmarks/verify_base.py

# The default model, from MiniLM, in two hours on two cores; a run that was stopped goes on. WEBQUESTIONS is a folder with
# webquestions.train.jsonl, webquestions.dev.jsonl and webquestions.devtest.jsonl; WORK is where the stages go.
WORK ?= train-demo
TRAIN = OMP_WAIT_POLICY=passive $(RUN)
train-demo: $(STAMPS)/ablation
	$(TRAIN) -m realm_min.training.demo --out $(WORK) $(if $(WEBQUESTIONS),\
	    --train $(WEBQUESTIONS)/webquestions.train.jsonl --dev $(WEBQUESTIONS)/webquestions.dev.jsonl)

# After it: what each stage brought.
ablation: $(STAMPS)/ablation
	$(if $(WEBQUESTIONS),,$(error WEBQUESTIONS is not set: make ablation WEBQUESTIONS=FOLDER, the folder of webquestions.dev.jsonl))
	$(TRAIN) benchmarks/ablation.py --work $(WORK) --training $(WEBQUESTIONS)/webquestions.train.jsonl \
	    --questions $(WEBQUESTIONS)/webquestions.dev.jsonl $(WEBQUESTIONS)/webquestions.devtest.jsonl

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/%: $(STAMPS)/venv setup.cfg constraints.txt
	$(INSTALL) --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
