# make demo       set up .venv, then base -> LoRA -> base-vs-LoRA figures, offline on a CPU
# make serve      a page to try what make demo trained, at http://127.0.0.1:8000
# make install    only set up .venv
# make test       the same .venv with the dev extras: lint, types, fast tests
# make test-slow  the tests that take minutes
# make search     other and 20 times more examples for the property tests of make test
# make coverage   fails where a branch of runs/{checkpoint,durable}.py or batching/plan.py has no test
# make mutation   small changes of the same files that no test notices (an hour)
# make gpu        tests marked cuda, speed, memory and a profile of a T5-small's shape: one table
PYTHON ?= python3
BIN := .venv/bin
PACKAGE := $(CURDIR)/report2impression
WATCHED := $(PACKAGE)/runs/checkpoint.py,$(PACKAGE)/runs/durable.py,$(PACKAGE)/batching/plan.py
# The number is given only so that accelerate does not warn that it was not.
LAUNCH := $(BIN)/accelerate launch --config_file recipes/accelerate/cpu.yaml \
	--num_cpu_threads_per_process $(shell nproc)

.PHONY: install demo serve test test-slow search coverage mutation gpu lint tiny-base clean

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bnb,ct2,dev,serve,trackers]"
	touch $@

install: .venv/installed

demo: .venv/installed
	$(BIN)/python -m report2impression synthetic --output_dir runs/demo/data
	$(LAUNCH) train_loop.py --config recipes/demo.toml
	$(BIN)/python eval.py --cpu --adapter runs/demo/adapter --data.path runs/demo/data --n 1000 --show_text 3
	@echo "next, your own reports:  accelerate launch train_loop.py --data.path DIR --output_dir RUN"
	@echo "next, one more report:   python extract.py --adapter runs/demo/adapter < report.txt"

serve: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[serve]"
	$(BIN)/python -m report2impression serve --adapter runs/demo/adapter --cpu

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/python -m pytest

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

search: .venv/installed-dev
	HYPOTHESIS_PROFILE=search $(BIN)/python -m pytest -m "hypothesis and not slow"

coverage: .venv/installed-dev
	$(BIN)/python -m coverage run --branch --include=$(WATCHED) -m pytest \
		tests/test_plan.py tests/test_checkpoint.py tests/test_training_state.py \
		tests/test_resume.py tests/test_run_folder.py
	$(BIN)/python -m coverage report --show-missing --fail-under=100

mutation: .venv/installed-dev
	$(BIN)/python -m bench.reliability.mutation

# Random weights: a base of T5-small's shape needs no hub, and takes the same time.
GPU := runs/gpu

gpu: .venv/installed-dev
	test -e $(GPU)/data/test.jsonl || $(BIN)/python -m report2impression synthetic \
		--output_dir $(GPU)/data --n_train 2000
	test -e $(GPU)/base/config.json || $(BIN)/python -m report2impression new-base \
		--data.path $(GPU)/data --output_dir $(GPU)/base --d_model 512 --d_ff 2048 --n_heads 8 --n_layers 6
	$(BIN)/python -m bench.gpu --data.path $(GPU)/data --model.path $(GPU)/base

# Rebuilds assets/tiny_base from nothing; the same command again goes on where it was stopped
# (docs/tiny_base.md: how it was found, how long it takes).
BASE := runs/tiny_base
SYNTHETIC := $(BIN)/python -m report2impression synthetic --without_seeds '[0,1,2]'

tiny-base: .venv/installed
	test -e $(BASE)/words/test.jsonl || \
		$(SYNTHETIC) --output_dir $(BASE)/words --n_train 12000 --seed 1000
	test -e $(BASE)/data/test.jsonl || \
		$(SYNTHETIC) --output_dir $(BASE)/data --n_train 200000 --seed 1001
	test -e $(BASE)/untrained || $(BIN)/python -m report2impression new-base \
		--data.path $(BASE)/words --output_dir $(BASE)/untrained \
		--d_model 192 --d_ff 512 --d_kv 32 --n_heads 6 --n_layers 3 --vocab_size 1200
	$(LAUNCH) train_loop.py --config recipes/tiny_base.toml
	rm -rf assets/tiny_base && cp -r $(BASE)/run/model assets/tiny_base

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
