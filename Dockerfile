# Image of the pipeline's tasks and the command line:
#   docker build --build-arg SOURCE_COMMIT=$(git rev-parse HEAD) -t catbreeds-pipeline:0.1.0 .
# To include ImageNet weights in /weights: --build-context weights=FOLDER. Otherwise, tasks read them from a volume or
# download them. The image is for CPUs: it has no CUDA libraries.
ARG PYTHON=python:3.11.14-slim-bookworm
# May be older than the TensorFlow that trains: ServingCheck verifies that it can serve the trained model.
ARG TENSORFLOW_SERVING=tensorflow/serving:2.20.0

FROM ${TENSORFLOW_SERVING} AS model-server

# An empty folder; a build context of the same name replaces it.
FROM scratch AS weights
WORKDIR /none

FROM ${PYTHON} AS packages
ARG UV=0.13.9
RUN pip install --no-cache-dir uv==${UV} \
 && python -m venv --without-pip /venv
ENV UV_PYTHON=/venv/bin/python \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy
COPY requirements/pipeline.lock /build/
# Wheels stay in the builder's cache instead of a layer. Headers and tests of packages are not needed in a container.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --require-hashes -r /build/pipeline.lock \
 && rm -r /venv/lib/python*/site-packages/tensorflow/include \
 && find /venv -type d -name tests -prune -exec rm -r {} +
COPY requirements/tfx_bsl_sql_shim /build/tfx_bsl_sql_shim
WORKDIR /app
COPY setup.py pyproject.toml ./
COPY components components
COPY pipeline pipeline
COPY schemas schemas
COPY serving serving
# Editable install: the code stays in /app, also in the last stage.
RUN uv pip install --no-deps --no-build-isolation /build/tfx_bsl_sql_shim --editable /app

FROM ${PYTHON}
# The model server needs only the C and C++ libraries of the Python image; the next step fails if that changes.
COPY --from=model-server /usr/bin/tensorflow_model_server /usr/local/bin/
RUN tensorflow_model_server --version
COPY --from=weights / /weights/
COPY --from=packages /venv /venv
WORKDIR /app
COPY schemas schemas
COPY components components
COPY pipeline pipeline
COPY serving serving
ARG SOURCE_COMMIT
# Keras and Matplotlib write to the home directory, and Kubernetes may run the container as any user. pipeline/huge_pages.py
# explains GLIBC_TUNABLES.
ENV PATH=/venv/bin:$PATH \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    SOURCE_COMMIT=${SOURCE_COMMIT}
RUN python -m compileall -q . \
 && catbreeds --help > /dev/null
USER 10001:10001
# Compiled pipelines set their own command.
ENTRYPOINT ["catbreeds"]
