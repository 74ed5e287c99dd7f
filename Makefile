# catbreeds: `make` lists the targets.
VENV := .venv
BIN := $(VENV)/bin
CATBREEDS := $(BIN)/catbreeds
LOCK := requirements/dev.lock
SHIM := requirements/tfx_bsl_sql_shim
INSTALLED := $(VENV)/.installed
DEMO := runs/demo
# In as many processes as CI has cores; tests/conftest.py says which go together.
PYTEST := $(BIN)/pytest --ignore tests/cluster --numprocesses 2 --dist loadgroup --no-loadscope-reorder
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# Installs a package of Debian's, unless there is a command of its name.
DEBIAN = command -v $(1) || $(SUDO) apt-get install -y $(1) || { $(SUDO) apt-get update && $(SUDO) apt-get install -y $(1); }

# Variables that would change where and how packages are installed are those of other projects. Those that say where
# packages come from, and how to get there, are the machine's.
SOURCES := INDEX INDEX_% DEFAULT_INDEX EXTRA_INDEX_URL FIND_LINKS NO_INDEX TRUSTED_HOST INSECURE_HOST CERT CLIENT_CERT \
  PROXY KEYRING_PROVIDER CONFIG_FILE CACHE_DIR NO_CACHE OFFLINE NATIVE_TLS SYSTEM_CERTS TIMEOUT DEFAULT_TIMEOUT RETRIES \
  HTTP_% CONCURRENT_% LINK_MODE PYTHON_INSTALL_DIR PYTHON_INSTALL_MIRROR
FOREIGN := $(filter-out $(addprefix PIP_,$(SOURCES)) $(addprefix UV_,$(SOURCES)), \
  $(filter PIP_% UV_% PYTHON%,$(.VARIABLES)))
CLEAN := env $(addprefix -u ,$(FOREIGN))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-cluster coverage lint docs browser debootstrap buildah compile images deploy \
  promtool protos lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## install Python packages into .venv, as locked

$(VENV)/bin/uv:
	@$(CLEAN) sh requirements/environment.sh $(VENV)

$(INSTALLED): $(VENV)/bin/uv $(LOCK) setup.py $(wildcard $(SHIM)/*.py)
	$(CLEAN) $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r $(LOCK)
	$(CLEAN) $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --reinstall ./$(SHIM)
	$(CLEAN) $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## the whole pipeline in minutes: photos it draws itself, three backbones, a pushed model
	$(CATBREEDS) sample-data $(DEMO)/photos
	$(CATBREEDS) sample-data $(DEMO)/unseen --photos 1 --offset 1000
	$(CATBREEDS) run --profile demo --data $(DEMO)/photos --workdir $(DEMO)
	$(CATBREEDS) predict $(DEMO)/unseen/Emberling/*.jpg --workdir $(DEMO)
	@echo "Now serve it, and ask on a web page: $(CATBREEDS) up --workdir $(DEMO)"

test: setup ## all tests but the slow ones; SLOW=1: those too, in the same session, so that they share its runs
	$(PYTEST) $(if $(SLOW),,-m "not slow")

test-slow: setup ## the tests that take minutes each
	$(PYTEST) -m slow

test-cluster: setup ## the tests against the cluster that KUBECONFIG names; CONTRIBUTING.md says how to start one
	@test -n "$$KUBECONFIG" || { echo "set KUBECONFIG to the file that names the cluster" >&2; exit 2; }
	$(BIN)/pytest tests/cluster

coverage: setup ## the tests of `test`, and how much of the code they run: build/coverage.xml
	$(PYTEST) -m "not slow" --junitxml=build/tests.xml \
	  --cov=pipeline --cov=components --cov=serving --cov-report=term --cov-report=xml:build/coverage.xml

docs: setup ## write the references of settings and commands from the code
	$(BIN)/python docs/reference.py

lint: setup ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

browser: ## Debian's Chromium, which tests of the web page drive
	@$(call DEBIAN,chromium)

debootstrap: ## Debian's debootstrap, with which tests make a fresh machine and a base of images
	@$(call DEBIAN,debootstrap)

buildah: ## Debian's buildah, with which tests build the images
	@$(call DEBIAN,buildah)

compile: setup ## write kfp_specs: the pipeline for Kubeflow Pipelines and Vertex AI
	$(CATBREEDS) compile

# What was built is in build/images.json, so that exactly that is deployed.
images: ## build the images and push them: make images REGISTRY=europe-docker.pkg.dev/PROJECT/REPOSITORY
	@test -n "$(REGISTRY)" || { echo "say where to push them: make images REGISTRY=..." >&2; exit 2; }
	mkdir -p build
	skaffold build --profile gke --default-repo $(REGISTRY) --file-output build/images.json

deploy: ## deploy what `make images` built to kubectl's current cluster
	skaffold deploy --profile gke --build-artifacts build/images.json

promtool: $(BIN)/promtool ## Debian's checker of Prometheus rules, without the service; tests of the alerts use it

$(BIN)/promtool: | setup
	rm -rf build/prometheus && mkdir -p build/prometheus
	cd build/prometheus && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }
	dpkg-deb --extract build/prometheus/prometheus_*.deb build/prometheus
	cp build/prometheus/usr/bin/promtool $@

protos: setup ## generate serving/protos/*_pb2.py from their .proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. serving/protos/*.proto

# The images' environments hold the same versions as the one that was tested.
COMPILE := $(BIN)/uv pip compile --override requirements/overrides.txt --python-version 3.11 --generate-hashes \
  --no-emit-index-url --emit-build-options --custom-compile-command 'make lock' --quiet
lock: setup ## resolve requirements/*.in anew
	$(COMPILE) requirements/wheels.txt requirements/dev.in -o $(LOCK)
	for image in pipeline gateway page; do \
	  $(COMPILE) -c $(LOCK) --excludes requirements/unused.txt requirements/$$image.in -o requirements/$$image.lock \
	    || exit 1; done

clean: ## remove what was built and run, but not .venv
	rm -rf runs build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
