# Requires Python 3.11 or newer and make. `make demo` and `make test` set up the environments that they need, once.
#
#   make demo          run the quickstart on the bundled demo model
#   make test          run all tests with the newest packages, and the TGI tests again with older packages
#   make test-full     the same, with full counts (e.g., kill -9 twenty times, a million rows)
#   make test-servers  generate 300 rows on each real server that is installed (vLLM, llama.cpp, `transformers serve`)
#   make test-trainers download axolotl and LLaMA-Factory and record again what their converters read from exports
#   make lint          check style and types (`make style` fixes what can be fixed)
#   make bench         run the benchmarks and write benchmarks/RESULTS.md
#   make wheel-test    build the wheel, install it into another environment, run it
#   make docs          generate the reference pages and the table of recipes
#   make cards         generate the dataset cards of all recipes on the demo model
#   make clean         remove environments, caches and build outputs

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
TGI_VENV := .venv-tgi
BIN := $(VENV)/bin
TGI_BIN := $(TGI_VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# Number of processes that run test files in parallel; each file runs in one process, long files first (tests/conftest.py).
# One more process runs the TGI tests at the same time, because tests spend much of their time waiting.
WORKERS ?= 2
TGI_WORKERS ?= 1
IN_PARALLEL = --dist loadfile --no-loadscope-reorder
TGI_OUTPUT = $(TGI_VENV)/test-output.txt
PYTEST_ARGS ?=

# The second environment: text-generation requires huggingface_hub below 1.0, which limits the other packages.
TGI_PACKAGES := "text-generation>=0.7,<0.8" "huggingface_hub>=0.36,<1.0" "transformers>=4.57,<5" "datasets>=5.0,<5.1" \
	"tokenizers<0.23" aiohttp fastapi hypothesis jinja2 mistral-common pytest pytest-timeout pytest-xdist pyyaml safetensors tqdm uvicorn
# With mistral-common installed, transformers loads some tokenizers with another class: test_template_load.py runs here too.
TGI_TESTS = tests/servers/test_tgi_server.py tests/hub/test_push.py tests/test_template_load.py \
	$(wildcard tests/engines/test_tgi*.py tests/engines/test_transport*.py tests/end_to_end/test_tgi*.py)

.PHONY: setup setup-tgi demo test test-full test-servers test-trainers lint quality style bench docs cards wheel-test constraints clean
.DEFAULT_GOAL := demo

setup: $(VENV)/.ready
setup-tgi: $(TGI_VENV)/.ready

# The stamp file is written last, so an interrupted setup is repeated; so is one whose inputs have changed.
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is required; set it with make PYTHON=…"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt hatchling -e ".[dev,serve]"
	@touch $@

$(TGI_VENV)/.ready: pyproject.toml constraints-text-generation.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is required; set it with make PYTHON=…"; exit 1; }
	@echo "Setting up $(TGI_VENV) with the packages that text-generation requires (a few minutes, once)"
	@$(PYTHON) -m venv $(TGI_VENV)
	@$(TGI_BIN)/python $(PIP_INSTALL) "$$(grep '^torch==' constraints-text-generation.txt)"
	@$(TGI_BIN)/python $(PIP_INSTALL) -c constraints-text-generation.txt $(TGI_PACKAGES)
	@$(TGI_BIN)/python $(PIP_INSTALL) --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/magpie-hf run quickstart

test: setup setup-tgi
	@echo "Running all tests and, at the same time, the TGI tests with older packages (their output follows at the end)"
	@$(TGI_BIN)/python -m pytest -n $(TGI_WORKERS) $(IN_PARALLEL) $(TGI_TESTS) $(PYTEST_ARGS) >$(TGI_OUTPUT) 2>&1 & tgi=$$!; \
	$(BIN)/python -m pytest -n $(WORKERS) $(IN_PARALLEL) $(PYTEST_ARGS); all=$$?; \
	wait $$tgi; tgi=$$?; \
	echo "The TGI tests with text-generation and the packages that it requires:"; cat $(TGI_OUTPUT); \
	echo "Exit codes: all tests $$all, TGI tests $$tgi"; test $$all -eq 0 && test $$tgi -eq 0

test-full:
	$(MAKE) test PYTEST_ARGS="--full $(PYTEST_ARGS)"

test-servers: setup
	$(BIN)/python -m pytest tests/servers/test_real_servers.py --servers -rs $(PYTEST_ARGS)

# The wheels are not installed: they pin other versions of most packages.
test-trainers: setup
	@rm -rf .cache/trainers
	$(BIN)/python -m pip download --quiet --no-deps -d .cache/trainers axolotl==0.19.0 llamafactory==0.9.5
	$(BIN)/python -m tests.exports.trainers .cache/trainers
	$(BIN)/python -m pytest tests/exports $(PYTEST_ARGS)

lint quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/build_reference.py --check

style: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks

docs: setup
	$(BIN)/python docs/build_reference.py

cards: setup
	$(BIN)/python docs/build_cards.py

wheel-test: setup
	$(BIN)/python -m pytest tests/end_to_end/test_wheel.py $(PYTEST_ARGS)

# Freezes the installed versions, without hosts, paths, this package, and packages that only some machines need.
constraints: setup setup-tgi
	$(BIN)/python -m pip freeze --exclude-editable | sed -e '/ @ /d' -e 's/+cpu$$//' -e '/^nvidia-/d' -e '/^triton==/d' > constraints.txt
	$(TGI_BIN)/python -m pip freeze --exclude-editable | sed -e '/ @ /d' -e 's/+cpu$$//' -e '/^nvidia-/d' -e '/^triton==/d' > constraints-text-generation.txt
	@touch $(VENV)/.ready $(TGI_VENV)/.ready

clean:
	rm -rf $(VENV) $(TGI_VENV) build dist .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
