# make demo    install if needed, restore photographs for every task with the bundled weights
# make demo-train  train a small denoiser from scratch, test it, draw before and after
# make test    install if needed, run the tests
# make results recompute the scores in RESULTS.md; those on CBSD68 and Set11 with DATA=their folder
# make bench   measure speed and memory; bench-full: every model and size
# make fuzz    broken and odd inputs for FUZZ_MINUTES=10
# make web     build the page that restores photographs in the browser (Node), serve it at PORT=8000
# make web-test test it in Chromium, at CHROMIUM=/usr/bin/chromium
# make lint    formatting, static checks, types, directions of imports
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := demo_output
FUZZ_MINUTES ?= 10
PORT ?= 8000
PHOTOS := astronaut,hubble_deep_field,ihc,motorcycle_left,motorcycle_right
TEST_PHOTOS := chelsea,coffee,rocket

.PHONY: demo demo-train test results bench bench-full fuzz web web-build web-test lint clean

$(VENV)/installed: pyproject.toml requirements.txt pytorch-gradual-warmup-lr/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

# On one thread: several wait for each other where the machine has other work to do.
demo demo-train: export OMP_NUM_THREADS = 1
demo: $(VENV)/installed
	$(BIN)/python -m dgunet.tools.showcase --output $(RUN)

demo-train: $(VENV)/installed
	rm -rf $(addprefix $(RUN)/,train test checkpoints results)
	$(BIN)/python -m dgunet.tools.synthesize gaussian25 --images $(PHOTOS) --patch_size 128 --output $(RUN)/train
	$(BIN)/python -m dgunet.tools.synthesize gaussian25 --images $(TEST_PHOTOS) --output $(RUN)/test
	$(BIN)/python Denoising/train.py --config Denoising/demo.yml --opts \
		TRAINING.TRAIN_DIR $(RUN)/train TRAINING.VAL_DIR $(RUN)/test TRAINING.SAVE_DIR $(RUN)/checkpoints
	$(BIN)/python Denoising/test.py --weights $(RUN)/checkpoints/Denoising/models/demo/model_latest.pth \
		--input_dir $(RUN)/test --result_dir $(RUN)/results
	$(BIN)/python -m dgunet.tools.figure $(RUN)/before_after.png \
		degraded=$(RUN)/test/input restored=$(RUN)/results/test target=$(RUN)/test/target

test: export OMP_NUM_THREADS = 1
test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

results: export OMP_NUM_THREADS = 1
results: $(VENV)/installed
	$(BIN)/python benchmarks/results.py $(if $(DATA),--data "$(DATA)")

bench: $(VENV)/installed
	$(BIN)/python benchmarks/bench.py

bench-full: $(VENV)/installed
	$(BIN)/python benchmarks/bench.py --full --compile --device auto

fuzz: $(VENV)/installed
	PYTHONPATH=tests $(BIN)/python -W ignore tests/tools/test_fuzz.py --minutes $(FUZZ_MINUTES)

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

clean:
	rm -rf $(RUN) .pytest_cache .ruff_cache

web/node_modules/installed: web/package-lock.json $(VENV)/installed
	cd web && npm ci --no-progress
	touch $@

web-build: export OMP_NUM_THREADS = 1
web-build: web/node_modules/installed
	$(BIN)/python web/build.py build/web

web: web-build
	$(BIN)/python web/serve.py build/web --port $(PORT) --open

web-test: web-build
	PYTHON=$(CURDIR)/$(BIN)/python node --test tests/web/
