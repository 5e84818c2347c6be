# make lab        JupyterLab at lesson 1 (the first call makes .venv and installs the tested versions)
# make test       lint, types, every test, every notebook cell compared; the helpers again on transformers 4.57
# make real       bring the real model, SmolLM2-135M (95 MB once; make lab and make test do it too)
# make notebooks  run the notebooks and store clean outputs (one: make notebooks NB=notebooks/01_downstream_scaling.ipynb)
# make claims     the claims of the reports, judged on both models (on another one: make claims MODEL=gpt2)
# make measure    measure again what the lessons store (an hour; goes on where it was killed; one: make measure MODEL=smollm2)
# make newest     the helpers on the newest torch and transformers that the ranges allow (makes .venv-newest)
# make bench      sweeps and traces, in plain forward passes
# make gpu        the helpers' checks and the same tables on a GPU (PY=python3 for an environment of your own)
# make assignment nbgrader's source and release versions of the lessons, in dist/assignment (docs/grading.md)
# make grade      grade handed-in notebooks: make grade FOLDER=submissions writes submissions-graded/summary.html
# make page       the course's page for a browser, dist/page.html, which needs nothing else (needs Node.js)
# make messages   collect what the package says for translators, and compile each language (docs/translating.md)
# make hub        a server for a class on this machine, as root (deploy/, docs/teaching.md; needs Node.js)
# make screenshot take the README's picture from the real page (needs chromium)
# make format     let ruff tidy the code
# make clean      remove the environments and caches

PYTHON ?=
MODEL ?=
FOLDER ?=
NB ?= $(wildcard notebooks/*.ipynb)
LAB_ARGS ?=
# Where the page's links to the lessons lead: a folder beside it, or the address at which the notebooks can be read.
LESSONS ?= ../notebooks

comma := ,
PY := .venv/bin/python
OLD := .venv-4.57/bin/python
NEW := .venv-newest/bin/python
PINS := pyproject.toml constraints.txt
CODE := helpers tools tests deploy start.py
# What is about the course or its tools, not about the helpers, runs once, on the pinned transformers.
COURSE_TESTS := $(addprefix tests/,test_notebooks_rules.py test_guards.py test_browser.py test_package.py test_training.py test_evaluation.py test_measured.py test_messages.py test_readability.py test_translated.py test_start.py test_page.py test_page_export.py test_hub.py test_teaching.py test_assignment.py test_grading.py plots)
# What takes long and does not ask transformers either is left to the pinned and the newest.
SLOW_TESTS := $(addprefix tests/,test_bringing.py test_studies.py test_fingerprint.py test_claims_tool.py test_leaks.py course/test_panels.py course/test_rows.py course/test_two_models.py)
# Of a lesson's room the exercises (tests/course) and the claims are tried on transformers 4.57 too.
ROOM_TESTS := $(foreach part,language modes panel plots runs says steps study,--ignore-glob='*_$(part).py')
# What translators wrote is compiled before it is needed; English needs nothing.
CATALOGUES := $(patsubst %.po,%.mo,$(wildcard helpers/locale/*/LC_MESSAGES/helpers.po))
# Two workers; a notebook and its kernel stay with one of them. What takes longest is named first: one that starts last
# would keep the other worker waiting.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
LONGEST := $(addprefix tests/,test_families.py test_sweeps.py test_edits.py)

.PHONY: lab test real lint notebooks claims measure bench gpu messages page page-tested screenshot format constraints clean hub hub-ready newest assignment grade
.DELETE_ON_ERROR:

# Without a network the pocket model still opens every lesson, so a real model that cannot be brought stops nothing here.
# JupyterLab starts in this folder and not in notebooks/, whose lessons link to pages of docs/.
lab: .venv/.lab $(CATALOGUES)
	@$(PY) -m helpers.smollm2 || echo "Going on without the real model: the lessons' cells that use it will say so."
	exec $(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) notebooks/01_downstream_scaling.ipynb

real: .venv/.lab
	$(PY) -m helpers.smollm2

# mypy needs a minute on one core when it has nothing to go on from; the page is built beside it.
test: .venv/.test .venv-4.57/.test $(CATALOGUES)
	@$(MAKE) --no-print-directory -j2 lint real page-tested hub-ready
	@echo "== the helpers on transformers 4.57 =="
	$(OLD) -m pytest $(LONGEST) tests $(PARALLEL) -m 'not pinned' $(addprefix --ignore=,$(COURSE_TESTS) $(SLOW_TESTS)) $(ROOM_TESTS)
	@echo "== everything else, and every cell of every notebook, on the pinned versions =="
	$(PY) -m pytest tests/test_guards.py tests/test_browser.py tests/test_studies.py $(LONGEST) tests $(PARALLEL)

# What a release of tomorrow breaks is a red test today. The environment is made anew each time; a CPU build of torch comes
# with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
newest: | tools/find_python.sh
	rm -rf .venv-newest
	@python=$$(tools/find_python.sh $(PYTHON)) && $$python -m venv .venv-newest
	@echo "Installing the newest torch and transformers into .venv-newest."
	@$(NEW) -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[suite]'
	@$(NEW) -m pip freeze | grep -E '^(torch|transformers|tokenizers|safetensors|accelerate)=='
	$(NEW) -m pytest tests $(PARALLEL) $(addprefix --ignore=,$(COURSE_TESTS)) $(ROOM_TESTS)

lint: .venv/.test
	$(PY) -m ruff check $(CODE) notebooks
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy

notebooks: .venv/.test
	$(PY) -m jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
	    --ExecutePreprocessor.store_widget_state=False $(NB)

claims: .venv/.lab
	$(PY) tools/claims.py $(if $(MODEL),--model $(MODEL))

measure: .venv/.lab
	@for model in $(or $(MODEL),pocket smollm2); do $(PY) tools/measure.py --model $$model || exit 1; done

bench: .venv/.lab
	$(PY) tools/bench.py

# Without .venv as a need: a machine with a GPU has its own PyTorch.
gpu:
	$(PY) -m pytest tests/test_gpu.py
	$(PY) tools/bench.py --device cuda --rounds 5
	$(PY) tools/bench.py --device cuda --dtype bfloat16 --rounds 5

messages: .venv/.lab
	$(PY) tools/messages.py

%/LC_MESSAGES/helpers.mo: %/LC_MESSAGES/helpers.po | .venv/.lab
	$(PY) tools/messages.py --compile

assignment: .venv/.lab
	$(PY) tools/assignment.py

grade: .venv/.lab
	@test -n "$(FOLDER)" || { echo "Name the folder of what was handed in: make grade FOLDER=submissions"; exit 1; }
	$(PY) tools/grade.py "$(FOLDER)"

page: dist/page.html

# Without Node.js the page is neither built nor tested; in CI that is a failure.
page-tested: .venv/.test
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory page page/node_modules/.tested; \
	else echo "The page is left out: it needs Node.js 20 or newer, with npm."; test -z "$$CI"; fi

dist/page.html: dist/model.onnx page/node_modules/.installed $(shell find page -path page/node_modules -prune -o -type f -print)
	node page/build.mjs --lessons $(LESSONS)

dist/model.onnx: tools/export_page.py $(wildcard helpers/pocket/*) | .venv/.page
	@echo "Exporting the pocket model for the page: half a minute."
	@$(PY) tools/export_page.py $@

page/node_modules/.installed: page/package.json page/package-lock.json
	@command -v npm >/dev/null || { echo "make page needs Node.js 20 or newer, with npm: nodejs.org, or your system's packages nodejs and npm."; exit 1; }
	@npm ci --silent --prefix page
	@touch $@

page/node_modules/.tested: page/node_modules/.installed $(shell find page -path page/node_modules -prune -o -type f -print)
	@npm --silent --prefix page run lint
	@npm --silent --prefix page test
	@touch $@

# The hub's folder is COURSE_HUB_FOLDER; what all students' kernels map is prepared in it once.
hub: .venv/.hub deploy/node_modules/.installed
	@CAUSAL_INTERVENTIONS_CACHE=$${COURSE_HUB_FOLDER:-/srv/course-hub}/models $(PY) -m helpers.classroom \
	    || echo "Going on without the real model: the lessons' cells that use it will say so."
	exec $(PY) -m jupyterhub -f deploy/jupyterhub_config.py

# Without Node.js the hub is not tested; in CI that is a failure.
hub-ready: .venv/.test
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory deploy/node_modules/.installed; \
	else echo "The hub is left out: it needs Node.js 20 or newer, with npm."; test -z "$$CI"; fi

deploy/node_modules/.installed: deploy/package.json deploy/package-lock.json
	@command -v npm >/dev/null || { echo "make hub needs Node.js 20 or newer, with npm: nodejs.org, or your system's packages nodejs and npm."; exit 1; }
	@npm ci --silent --prefix deploy
	@touch $@

screenshot: .venv/.test
	SCREENSHOTS=.cache/screenshots CI=true $(PY) -m pytest tests/test_browser.py -k 01_
	cp .cache/screenshots/01_downstream_scaling-light.png docs/lesson1.png

format: .venv/.test
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)
	@if [ -d page/node_modules ]; then npm --silent --prefix page run format; fi

# The stamps: an environment is renewed when the package's needs or the pins have changed, and only then.
.venv/.python: | tools/find_python.sh
	@python=$$(tools/find_python.sh $(PYTHON)) && $$python -m venv .venv
	@touch $@

.venv/.lab: .venv/.python $(PINS) tools/lab-overrides.json tools/ipython_config.py
	@echo "Installing the tested versions into .venv: minutes the first time, seconds later."
	@$(PY) -m pip install --quiet -c constraints.txt -e '.[lab]'
	@mkdir -p .venv/share/jupyter/lab/settings
	@cp tools/lab-overrides.json .venv/share/jupyter/lab/settings/overrides.json
	@mkdir -p .venv/etc/ipython
	@cp tools/ipython_config.py .venv/etc/ipython/
	@touch $@

.venv/.page: .venv/.lab
	@$(PY) -m pip install --quiet -c constraints.txt -e '.[page]'
	@touch $@

.venv/.hub: .venv/.lab
	@$(PY) -m pip install --quiet -c constraints.txt -e '.[hub]'
	@touch $@

.venv/.test: .venv/.lab
	@$(PY) -m pip install --quiet -c constraints.txt -e '.[test$(if $(CI),$(comma)classroom)]'
	@touch $@ .venv/.page .venv/.hub

# Only what differs is installed here; all else is found in .venv, whose folder comes second.
.venv-4.57/.test: .venv/.test constraints-4.57.txt
	@rm -rf .venv-4.57
	@$(PY) -m venv .venv-4.57
	@pinned=$$($(PY) -c "import site; print(site.getsitepackages()[0])") && own=$$($(OLD) -c "import site; print(site.getsitepackages()[0])") \
	    && echo "import site; site.addsitedir('$$pinned')" > "$$own/pinned.pth"
	@awk -F== 'NR == FNR { old[$$1] = 1; print; next } !($$1 in old)' constraints-4.57.txt constraints.txt > .venv-4.57/constraints.txt
	@echo "Installing transformers 4.57 into .venv-4.57, for the second run of the helper suite."
	@$(OLD) -m pip install --quiet -c .venv-4.57/constraints.txt -e '.[suite]'
	@touch $@

constraints: .venv/.test
	@sed -n '/^#/p' constraints.txt > constraints.new
	$(PY) -m pip freeze --all --exclude-editable | sed -E '/^pip==/d; s/\+cpu$$//' >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv .venv-4.57 .pytest_cache .mypy_cache .ruff_cache .hypothesis dist page/node_modules deploy/node_modules .venv-newest
