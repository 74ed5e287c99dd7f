# The image of the pipeline's tasks, and of the command line:
#   docker build --build-arg SOURCE_COMMIT=$(git rev-parse HEAD) -t catbreeds-pipeline:0.1.0 .
# ImageNet weights can go in, to /weights: --build-context weights=FOLDER. Without, a volume holds them, or tasks
# download them. For CPUs: TensorFlow finds no CUDA here.
ARG PYTHON=python:3.11.14-slim-bookworm
# May be older than the TensorFlow that trains: ServingCheck sees whether it serves what was trained.
ARG TENSORFLOW_SERVING=tensorflow/serving:2.20.0

FROM ${TENSORFLOW_SERVING} AS model-server

# An empty folder, unless a build context of this name takes its place.
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
# Wheels stay in the builder's cache, not in a layer. Headers and the packages' own tests are of no use in a container.
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
# Editable: the code itself is in /app, in the last stage too.
RUN uv pip install --no-deps --no-build-isolation /build/tfx_bsl_sql_shim --editable /app

FROM ${PYTHON}
# Needs no libraries but those of C and C++, which Python's image has; were it otherwise, the build would end here.
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
# Keras and Matplotlib write to their home; Kubernetes may have any user run this.
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    SOURCE_COMMIT=${SOURCE_COMMIT}
RUN python -m compileall -q . \
 && catbreeds --help > /dev/null
USER 10001:10001
# A compiled pipeline names its own command instead.
ENTRYPOINT ["catbreeds"]
