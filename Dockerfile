# nrt in a container: docs/docker.md. By default torch's CPU build; for GPUs --build-arg TORCH_INDEX=https://pypi.org/simple
FROM python:3.11-slim

ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# On a GPU, torch.compile builds FlexAttention's kernels with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# torch first and by itself, as in the Makefile; it changes least.
# hadolint ignore=DL3013
RUN python -m pip install --index-url "$TORCH_INDEX" "$TORCH"

COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY src /src/src
RUN python -m pip install -c /src/constraints.txt '/src[data,eval,judge,lora,plots,report,trackers]'

# Runs and caches outlive the container: mount /nrt/runs, and /nrt/.cache for models and tokens.
RUN useradd --create-home --home-dir /nrt --uid 1000 nrt && install -d -o nrt -g nrt /nrt/runs /nrt/.cache
USER 1000
WORKDIR /nrt
VOLUME ["/nrt/runs", "/nrt/.cache"]

ENTRYPOINT ["nrt"]
CMD ["--help"]
