# tritter-mem on the CPU: plans, simulations, replays and checks. Rehearsals need a machine of their own.
#
#   docker build --tag tritter-mem .
#   docker run --rm tritter-mem plan qwen3-8b --gpu rtx-4090
#   docker run --rm --volume "$PWD:/work" tritter-mem check
FROM python:3.11-slim AS build
ARG VERSION=0.0.0
WORKDIR /source
COPY . .
# Triton compiles kernels for a GPU, and is larger than all the rest but PyTorch.
RUN python -m venv /opt/tritter-mem \
    && /opt/tritter-mem/bin/pip install --no-cache-dir --constraint constraints.txt torch \
        --index-url https://download.pytorch.org/whl/cpu \
    && SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION" \
        /opt/tritter-mem/bin/pip install --no-cache-dir --constraint constraints.txt . \
    && /opt/tritter-mem/bin/pip uninstall --yes triton pip

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 user
COPY --from=build /opt/tritter-mem /opt/tritter-mem
ENV PATH=/opt/tritter-mem/bin:$PATH
USER 1000
WORKDIR /work
ENTRYPOINT ["tritter-mem"]
CMD ["--help"]
