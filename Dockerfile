# A box that plans, and builds engines, ONNX files and bundles, on a CPU: that takes no GPU.
#
#   docker build -t todo-compile .
#   docker run --rm -v "$PWD:/work" todo-compile --model ./my-model --res 2048 --out engine.plan
#
# What PyPI has as torch for Linux is the CUDA build: it does all of this too, and takes gigabytes.
# An index that has the CPU build is given with --build-arg PIP_EXTRA_INDEX_URL=…
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL=""
ARG EXTRAS=all,onnx
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# AOTInductor packages (--out FILE.pt2) are compiled by a C++ compiler; nothing else needs it.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY todo_compile ./todo_compile
RUN pip install -c constraints.txt ".[${EXTRAS}]" && rm -rf /src/*

RUN useradd --create-home builder
USER builder
WORKDIR /work
ENTRYPOINT ["todo-compile"]
CMD ["--help"]
