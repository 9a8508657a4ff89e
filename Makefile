# make help lists the targets.  Nothing is installed outside .venv; with `make PYTHON=python3 SETUP=0 ...` nothing at all.

PYTHON  ?= .venv/bin/python
SETUP   ?= 1
PYTHON3 ?=
LAUNCH  ?=
JOBS    ?=
BUDGET  ?=
SEEDS   ?=
METHODS ?=
DATA    ?=
DATA_DIR ?=
DEVICE  ?=
EXTRA   ?=
TESTS   ?=
ONLY    ?=
METHOD  ?=
DATASETS ?= cifar10

# The stamp's name holds the lock's checksum: an edited lock is installed again, an unchanged one never.
LOCK  := $(shell cksum < requirements.lock | tr -dc '0-9')
STAMP := .venv/.ready-$(LOCK)
READY := $(if $(filter-out 0 no false,$(SETUP)),$(STAMP))
# Python to try, in this order, where .venv is to be made; some are stubs that only say so, hence each is run.
PYTHONS = $(or $(PYTHON3),python3.12 python3.11 python3.13 python3)
# The rules need no package, so that `make -n` shows the commands before anything is set up.
PLANNER = $(or $(shell for python in $(PYTHON) $(PYTHONS); do \
  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done),$(PYTHON))
# A variable's text as the user typed it, for the shell: neither make nor the shell expands a $ or a blank in it.
quoted = '$(subst ','\'',$(value $(1)))'

# What `make leaderboard BUDGET=board` trains, PAPER/TARGET, for each of DATASETS; AdaRAT before what reads its limits.
BOARD_CIFAR10  := adarat/cifar10 dyart/cifar10 rpat/cifar10 rpat/cifar10-sotas brainreg/cifar10-rgb experiments/cifar10
BOARD_CIFAR100 := adarat/cifar100 rpat/cifar100 rpat/cifar100-sotas brainreg/cifar100-rgb experiments/cifar100

.PHONY: help setup download quick test test-slow test-all test-oldest lint fuzz bench bench-grow profile fast-vs-plain \
        spread chaos report leaderboard doctor clean-build \
        reproduce-adarat-cifar10 reproduce-adarat-cifar100 \
        reproduce-dyart-cifar10 reproduce-dyart-cifar10-extra reproduce-dyart-tiny-imagenet \
        reproduce-rpat-cifar10 reproduce-rpat-cifar100 reproduce-rpat-tiny-imagenet reproduce-rpat-l2 \
        reproduce-rpat-sotas \
        reproduce-brainreg-mnist reproduce-brainreg-fashion-mnist reproduce-brainreg-cifar10 reproduce-brainreg-cifar100
.DEFAULT_GOAL := help
.SUFFIXES:

help: ## List every target
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-33s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  Variables of reproduce-*: BUDGET=smoke|short|board|gpu|full (gpu with a CUDA device, else short)  SEEDS=1,2,3'
	@echo '    METHODS="PGD-AT TRADES"  DATA=npz:PATH  DATA_DIR=PATH  DEVICE=cuda:1'
	@echo "    DATA='npz:DIR/{}.npz' (of reproduce-brainreg-*: {} stands for the name of each data set)"
	@echo '    EXTRA=FILE.npz (additional images of reproduce-dyart-cifar10-extra; default: cifar10_ddpm.npz in data/)'
	@echo '    DATASETS="cifar10 cifar100" (of reproduce-rpat-l2 and -sotas; default: cifar10)'
	@echo '    LAUNCH="nice -n 10" (a command that each training and evaluation is started with); for several GPUs'
	@echo '    LAUNCH="torchrun --nproc-per-node 8" or LAUNCH="srun --ntasks 8 --gpus-per-task 1": docs/many-gpus.md'
	@echo '  Variables of all: PYTHON=python3 SETUP=0 (use that Python, install nothing)  PYTHON3=PATH (makes .venv)'

setup: $(READY) ## Make .venv and install the locked requirements in it (once)

# Compiled at once, as pip does: else each process compiles torch anew where PYTHONDONTWRITEBYTECODE is set or .venv is
# another user's, seconds each time.
$(STAMP):
	@set -e; \
	fits() { "$$@" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }; \
	if ! fits .venv/bin/python; then \
	  found=; \
	  for candidate in $(PYTHONS); do \
	    if fits "$$candidate"; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'error: no Python 3.11, 3.12 or 3.13 found: install one, or name it: make setup PYTHON3=/path/to/python3.12' >&2; \
	    exit 2; \
	  fi; \
	  echo "making .venv with $$found"; \
	  "$$found" -m venv --clear .venv || { \
	    echo "error: $$found cannot make a virtual environment: install its venv module (python3-venv on Debian)" >&2; \
	    exit 2; \
	  }; \
	fi; \
	echo 'installing requirements.lock into .venv: some minutes, once'; \
	index=$${PIP_INDEX_URL:-$$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}; \
	if [ -n "$$index" ] && [ -z "$$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
	if .venv/bin/python -m pip install --quiet --disable-pip-version-check uv \
	   && .venv/bin/python -m uv pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements.lock; \
	then :; \
	else \
	  echo 'uv could not do it: trying plain pip'; \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock || { \
	    echo 'error: requirements.lock could not be installed: see above; is there a network?' >&2; exit 2; }; \
	fi; \
	rm -f .venv/.ready-*; touch $@

download: $(READY) ## Fetch data sets: DATASETS="cifar10 mnist tiny-imagenet cifar-10-c" (DATA_DIR=PATH)
	$(PYTHON) -m scripts.download $(DATASETS) $(if $(DATA_DIR),--data_dir $(call quoted,DATA_DIR))

# Two torch processes with two threads each on two cores slow each other tenfold.
quick: BUDGET := quick
quick: JOBS := -j2
quick test test-slow test-all test-oldest: export OMP_NUM_THREADS := 1
quick test test-slow test-all test-oldest: export OMP_WAIT_POLICY := PASSIVE

quick: $(READY) ## Train, attack and tabulate PGD-AT and AdaRAT on the embedded digits: 3 minutes, no network
	$(call reproduce,adarat,digits)

test: $(READY) ## Check the style and run the fast tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pytest -m "not slow"

test-slow: $(READY) ## Run only the slow tests: end to end, kills, process groups (TESTS="common rpat": of these folders)
	$(PYTHON) -m pytest -m slow $(TESTS)

test-all: test ## Run the fast tests, then the slow ones
	$(MAKE) --no-print-directory test-slow

test-oldest: ## Run the fast tests on the oldest packages that are supported, in .venv-oldest (TESTS="common": some)
	$(or $(PYTHON3),python3.11) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-oldest.txt
	.venv-oldest/bin/python -m pytest -m "not slow" $(TESTS)

lint: $(READY) ## Check the style only
	$(PYTHON) -m ruff check .

fuzz: $(READY) ## Damage files and command lines for a minute: every reader refuses or accepts (ONLY="npz records": some)
	$(PYTHON) -m scripts.fuzz $(if $(ONLY),--only $(ONLY))

bench: $(READY) ## Measure every method against its original's way, in one run (ONLY="rpat pipeline": some)
	$(PYTHON) -m scripts.bench $(if $(ONLY),--only $(ONLY))

bench-grow: $(READY) ## Measure how a PGD-AT step's cost grows: batch, attack steps, width, image size, GPUs
	$(PYTHON) -m scripts.bench --grow

profile: $(READY) ## Say where a training step's time goes (METHOD=pgd-training: see scripts/profile_step.py)
	$(PYTHON) -m scripts.profile_step $(if $(METHOD),--method $(METHOD))

fast-vs-plain: $(READY) ## Five seeds trained in bf16 and in float32: do accuracies differ?  DATA=npz:FILE adds real images
	$(PYTHON) -m scripts.fast_vs_plain $(if $(DATA),--data $(call quoted,DATA)) $(if $(DEVICE),--device $(call quoted,DEVICE))

spread: $(READY) ## Train the same seed several times, with and without --deterministic: how far do the bits part?
	$(PYTHON) -m scripts.seed_spread $(if $(DEVICE),--device $(call quoted,DEVICE))

chaos: $(READY) ## Kill every kind of job at 20 random moments, fail disks, count losses; none begun after 10 minutes (ONLY="dyart faults")
	$(if $(ONLY),$(PYTHON) -m scripts.chaos --only $(ONLY) --out build/chaos.json,\
	  status=0; $(PYTHON) -m scripts.chaos || status=$$?; $(PYTHON) -m scripts.reliability; exit $$status)

reproduce-adarat-cifar10: $(READY) ## AdaRAT on CIFAR-10: teachers, all methods and variants, evaluation, table, figures
	$(call reproduce,adarat,cifar10)

reproduce-adarat-cifar100: $(READY) ## AdaRAT on CIFAR-100, likewise
	$(call reproduce,adarat,cifar100)

reproduce-dyart-cifar10: $(READY) ## DyART on CIFAR-10: burn-in, DyART, baselines, evaluation over eps, table, figures
	$(call reproduce,dyart,cifar10)

reproduce-dyart-cifar10-extra: $(READY) ## DyART on CIFAR-10 with additional images (EXTRA=FILE): burn-in, DyART, likewise
	$(call reproduce,dyart,cifar10-extra)

reproduce-dyart-tiny-imagenet: $(READY) ## DyART on Tiny-ImageNet, as on CIFAR-10
	$(call reproduce,dyart,tiny-imagenet)

reproduce-rpat-cifar10: $(READY) ## RPAT on CIFAR-10: four bases with and without it, evaluation, table, figures
	$(call reproduce,rpat,cifar10)

reproduce-rpat-cifar100: $(READY) ## RPAT on CIFAR-100, likewise
	$(call reproduce,rpat,cifar100)

reproduce-rpat-tiny-imagenet: $(READY) ## RPAT on Tiny-ImageNet, likewise
	$(call reproduce,rpat,tiny-imagenet)

reproduce-rpat-l2: $(READY) ## RPAT in L2, likewise, for each of DATASETS: cifar10 cifar100
	$(foreach one,$(DATASETS),$(call reproduce,rpat,$(one)-l2)$(newline))

reproduce-rpat-sotas: $(READY) ## ReBAT and RPAT++ for each of DATASETS: cifar10 cifar100 cifar10-l2 cifar100-l2 cifar10-wrn
	$(foreach one,$(DATASETS),$(call reproduce,rpat,$(one)-sotas)$(newline))

reproduce-brainreg-mnist: $(READY) ## Brain-inspired regulariser on MNIST: with and without it, evaluation, table, figures
	$(call reproduce,brainreg,mnist)

reproduce-brainreg-fashion-mnist: $(READY) ## Brain-inspired regulariser on Fashion-MNIST, likewise
	$(call reproduce,brainreg,fashion-mnist)

reproduce-brainreg-cifar10: $(READY) ## Brain-inspired regulariser on CIFAR-10, likewise
	$(call reproduce,brainreg,cifar10)

reproduce-brainreg-cifar100: $(READY) ## Brain-inspired regulariser on CIFAR-100, likewise
	$(call reproduce,brainreg,cifar100)

define newline


endef

# `+`: also under `make -n`, which then shows the commands; writing the rules starts nothing.
define reproduce
+@$(PLANNER) -m scripts.make_rules $(1) $(2) --budget $(call quoted,BUDGET) --seeds $(call quoted,SEEDS) \
  --methods $(call quoted,METHODS) --data $(call quoted,DATA) --data-dir $(call quoted,DATA_DIR) \
  --device $(call quoted,DEVICE) --extra $(call quoted,EXTRA)
+@$(MAKE) $(JOBS) --no-print-directory -f build/rules-$(1)-$(2).mk PYTHON=$(call quoted,PYTHON) \
  LAUNCH=$(call quoted,LAUNCH) all
endef

report: $(READY) ## Make every table and figure again from results/ alone: no torch, no training
	$(PYTHON) -m scripts.report

leaderboard: $(READY) ## One table, figure and page of all papers; BUDGET=board first trains what is missing, in one shape
	$(if $(filter board,$(BUDGET)),$(foreach one,$(DATASETS),$(foreach pair,$(call board,$(one)),\
	  $(call reproduce,$(firstword $(subst /, ,$(pair))),$(lastword $(subst /, ,$(pair))))$(newline))))
	$(PYTHON) -m scripts.leaderboard

define board
$(or $(BOARD_$(subst cifar,CIFAR,$(1))),$(error DATASETS=$(1): the leaderboard has a common shape for cifar10, cifar100))
endef

doctor: ## Check Python, packages, GPU, disk, data (DATA=...) and run folders, and say what to type; sets nothing up
	@command -v $(PLANNER) > /dev/null || { \
	  echo 'error: no Python 3.11, 3.12 or 3.13 found: install one, then type: make setup' >&2; exit 2; }
	@$(PLANNER) -m scripts.doctor $(if $(DATA),--data $(call quoted,DATA)) \
	  $(if $(DATA_DIR),--data-dir $(call quoted,DATA_DIR))

clean-build: ## Remove build/ (rules and specs); records and weights stay
	rm -rf build
