# cloudimg.factory: «make help» lists the targets; docs/development.md says more.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
IMAGE ?= debian-12
ARGS ?=
# Processes for the tests; the whole build takes one of them for itself.
WORKERS ?= 2
PYTEST = pytest --numprocesses $(WORKERS) --dist loadgroup
export IMAGE

SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
BECOME = $(if $(SUDO),$(shell sudo -n true 2>/dev/null || echo --ask-become-pass))

# Whatever is made for this checkout carries its path's digest, so that a checkout that moved is set up anew.
ID := $(shell pwd | sha256sum | cut -c1-12)
DATA := $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/cloudimg.factory
COLLECTIONS := $(DATA)/$(ID)
LINK := $(COLLECTIONS)/ansible_collections/cloudimg/factory
VENV := .venv/ready-$(ID)
BUILDER := .venv/builder-$(ID)
TARBALL := .venv/build/cloudimg-factory-$(shell sed -n 's/^version: *//p' galaxy.yml).tar.gz

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export LC_ALL := C.UTF-8
export ANSIBLE_COLLECTIONS_PATH := $(COLLECTIONS)
export MOLECULE_GLOB := molecule/*/molecule.yml
export MYPYPATH := $(COLLECTIONS)

.PHONY: help image test test-all checks lint sanity unit integration molecule collection clean clean-cache

help: ## list the targets
	@echo 'Usage: make <target> [IMAGE=name] [WORKERS=2] [ARGS="more arguments for pytest"]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

image: $(BUILDER) ## build, check and publish an image (IMAGE=debian-12)
	@ansible-playbook -i inventories/example playbooks/build.yml -l "$$IMAGE" -e "image_workspace='$(CURDIR)/workspace'" $(BECOME)

test: checks $(BUILDER) ## everything that must pass, one full build included
	@$(PYTEST) -m 'not slow' $(ARGS)

test-all: checks molecule ## the same, the slow tests and molecule
	@$(PYTEST) $(ARGS)

# Neither of them keeps two cores busy.
checks: ## lint and sanity, side by side
	@$(MAKE) --jobs=2 --output-sync=target lint sanity

lint: $(VENV) $(LINK) collection ## all the linters, and whether the collection builds
	ruff check .
	ruff format --check .
	mypy -p ansible_collections.cloudimg.factory.plugins.module_utils \
	  -p ansible_collections.cloudimg.factory.plugins.plugin_utils
	yamllint --strict .
	ansible-lint
	antsibull-changelog lint

sanity: $(VENV) collection ## ansible-test sanity
	python tests/tools/sanity.py $(TARBALL) $(DATA)/sanity

unit: $(BUILDER) ## the unit tests
	@$(PYTEST) tests/unit $(ARGS)

integration: $(BUILDER) ## the tests with real tools, one full build included
	@$(PYTEST) tests/integration -m 'not slow' $(ARGS)

molecule: $(BUILDER) ## the molecule scenarios
	molecule test --all

collection: $(VENV)
	@ansible-galaxy collection build --force --output-path .venv/build >/dev/null

clean: ## remove the virtual environment and the caches of the tools, but nothing of workspace/
	rm -rf .venv .ansible .hypothesis .mypy_cache .pytest_cache .ruff_cache tests/output '$(COLLECTIONS)'

clean-cache: ## remove the cached media and layers of workspace/, but no build
	rm -rf workspace/cache

$(VENV): requirements.txt
	@echo 'Setting up .venv'
	@python=$$($(PYTHON) -c 'import sys; print(sys._base_executable)'); \
	$$python -c 'import ensurepip, venv' 2>/dev/null || { \
	  $(SUDO) apt-get -qq update && $(SUDO) apt-get -qqy install --no-install-recommends python3-venv >/dev/null; }; \
	$$python -m venv --clear .venv
	@python -m pip install -qq --disable-pip-version-check --requirement requirements.txt
	@touch $@

$(LINK):
	@mkdir -p '$(@D)'
	@ln -sfn '$(CURDIR)' '$@'

$(BUILDER): playbooks/builder.yml $(shell find roles/builder inventories/example/group_vars/builders.yml -type f) | $(VENV) $(LINK)
	@ansible-playbook -i inventories/example playbooks/builder.yml $(BECOME)
	@touch $@
