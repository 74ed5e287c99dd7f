# `make` lists the targets.
VENV := .venv
BIN := $(VENV)/bin
CATBREEDS := $(BIN)/catbreeds
LOCK := requirements/dev.lock
SHIM := requirements/tfx_bsl_sql_shim
INSTALLED := $(VENV)/.installed
DEMO := runs/demo
# One process per core of the CI machine; tests/conftest.py groups tests that share a run.
PYTEST := $(BIN)/pytest --ignore tests/cluster --numprocesses 2 --dist loadgroup --no-loadscope-reorder
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# Installs a Debian package, unless a command with its name exists.
DEBIAN = command -v $(1) || $(SUDO) apt-get install -y $(1) || { $(SUDO) apt-get update && $(SUDO) apt-get install -y $(1); }

# Variables of pip, uv and Python that change how or where packages are installed usually belong to other projects, so
# setup unsets them. It keeps those that configure package indexes, proxies and caches.
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

setup: $(INSTALLED) ## install the locked Python packages into .venv

$(VENV)/bin/uv:
	@$(CLEAN) sh requirements/environment.sh $(VENV)

$(INSTALLED): $(VENV)/bin/uv $(LOCK) setup.py $(wildcard $(SHIM)/*.py)
	$(CLEAN) $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r $(LOCK)
	$(CLEAN) $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --reinstall ./$(SHIM)
	$(CLEAN) $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## run the whole pipeline in minutes: synthetic photos, three backbones, a pushed model
	$(CATBREEDS) sample-data $(DEMO)/photos
	$(CATBREEDS) sample-data $(DEMO)/unseen --photos 1 --offset 1000
	$(CATBREEDS) run --profile demo --data $(DEMO)/photos --workdir $(DEMO)
	$(CATBREEDS) predict $(DEMO)/unseen/Emberling/*.jpg --workdir $(DEMO)
	@echo "To serve the model with a web page, run: $(CATBREEDS) up --workdir $(DEMO)"

test: setup ## run all tests except the slow ones; SLOW=1 includes them
	$(PYTEST) $(if $(SLOW),,-m "not slow")

test-slow: setup ## run the slow tests, which take minutes each
	$(PYTEST) -m slow

test-cluster: setup ## run the tests that need the cluster in KUBECONFIG; see CONTRIBUTING.md
	@test -n "$$KUBECONFIG" || { echo "KUBECONFIG is not set; set it to the kubeconfig file of the cluster" >&2; exit 2; }
	$(BIN)/pytest tests/cluster

coverage: setup ## run the tests of `test` and write their coverage to build/coverage.xml
	$(PYTEST) -m "not slow" --junitxml=build/tests.xml \
	  --cov=pipeline --cov=components --cov=serving --cov-report=term --cov-report=xml:build/coverage.xml

docs: setup ## generate the references of settings and commands from the code
	$(BIN)/python docs/generate_reference.py

lint: setup ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

browser: ## install Chromium from Debian, for tests of the web page
	@$(call DEBIAN,chromium)

debootstrap: ## install debootstrap from Debian, for tests on a fresh machine and of images
	@$(call DEBIAN,debootstrap)

buildah: ## install buildah from Debian, for tests that build the images
	@$(call DEBIAN,buildah)

compile: setup ## compile the pipeline for Kubeflow Pipelines and Vertex AI to kfp_specs
	$(CATBREEDS) compile

# build/images.json records the built images, so that `make deploy` deploys exactly these.
images: ## build the images and push them: make images REGISTRY=europe-docker.pkg.dev/PROJECT/REPOSITORY
	@test -n "$(REGISTRY)" || { echo "REGISTRY is not set; pass the registry: make images REGISTRY=..." >&2; exit 2; }
	mkdir -p build
	skaffold build --profile gke --default-repo $(REGISTRY) --file-output build/images.json

deploy: ## deploy the images built by `make images` to kubectl's current cluster
	skaffold deploy --profile gke --build-artifacts build/images.json

promtool: $(BIN)/promtool ## install promtool from Debian into .venv, for tests of the alerts

$(BIN)/promtool: | setup
	rm -rf build/prometheus && mkdir -p build/prometheus
	cd build/prometheus && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }
	dpkg-deb --extract build/prometheus/prometheus_*.deb build/prometheus
	cp build/prometheus/usr/bin/promtool $@

protos: setup ## generate serving/protos/*_pb2.py from their .proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. serving/protos/*.proto

# The images have the same package versions as the tested environment.
COMPILE := $(BIN)/uv pip compile --override requirements/overrides.txt --python-version 3.11 --generate-hashes \
  --no-emit-index-url --emit-build-options --custom-compile-command 'make lock' --quiet
lock: setup ## resolve requirements/*.in and write the lock files
	$(COMPILE) requirements/wheels.txt requirements/dev.in -o $(LOCK)
	for image in pipeline gateway page; do \
	  $(COMPILE) -c $(LOCK) --excludes requirements/unused.txt requirements/$$image.in -o requirements/$$image.lock \
	    || exit 1; done

clean: ## remove runs, builds and caches, but not .venv
	rm -rf runs build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
