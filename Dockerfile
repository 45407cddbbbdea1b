# For a GPU as it stands; --build-arg BASE=debian:12.12-slim gives the one for processors. docs/container.md has the rest.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
# hadolint ignore=DL3006
FROM ${BASE}

# Compiled layers and DeepSpeed compile at run time. Debian and Ubuntu keep only the newest versions of their packages.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's images bring a user who has the number that most people's files have on their own machine.
ARG UID=1000
RUN if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi \
    && useradd --create-home --uid "${UID}" --shell /bin/bash app \
    && install --directory --owner app /cache /cache/huggingface /app /app/data /app/outputs
USER ${UID}
WORKDIR /app

# Weights, encoded pictures and built models outlive a container, and no layer holds them.
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# What the packages depend on first, so that a change of the code installs nothing again.
COPY --chown=app Makefile constraints.txt setup.py README.md ./
COPY --chown=app histolab_sft/__init__.py histolab_sft/
RUN make install
COPY --chown=app . .

VOLUME ["/cache", "/app/data", "/app/outputs"]
CMD ["make", "help"]
