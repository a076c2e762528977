# Training in a container, on the CPU or, with a base that has CUDA, on GPUs:
#   docker build -t kbnet .
#   docker build -t kbnet --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 \
#       --build-arg PIP_EXTRA_INDEX_URL=... .    (the index that PyTorch's installation page names for this CUDA)
#   docker run --rm -v "$PWD:/work" kbnet train -opt kbnet_quickstart
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" kbnet train -opt my.yml --auto_resume
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG PIP_EXTRA_INDEX_URL

RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv libgl1 libglib2.0-0t64 \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/kbnet/bin:$PATH KBNET_REQUIRE_NATIVE=1 PIP_NO_CACHE_DIR=1

WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv /opt/kbnet \
    && pip install -c constraints.txt --upgrade pip setuptools wheel \
    && pip install -c constraints.txt torch torchvision
COPY . .
RUN pip install -c constraints.txt --no-build-isolation ".[train]"

WORKDIR /work
ENTRYPOINT ["basicsr"]
CMD ["--help"]
