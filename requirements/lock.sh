#!/usr/bin/env bash
# Resolves every lock anew: one set of versions for all platforms and Pythons. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { # lock NAME ARGUMENTS…
    uv pip compile pyproject.toml --universal --fork-strategy fewest --python-version 3.11 \
        --no-header --no-annotate --quiet --output-file "requirements/$1.txt" "${@:2}"
}

# PyTorch's CUDA libraries stay out: the parity tests run on the CPU, and its own metadata pins them.
cuda=$(printf -- '--no-emit-package %s ' triton cuda-{bindings,pathfinder,toolkit} \
    nvidia-{cublas,cuda-cupti,cuda-nvrtc,cuda-runtime,cudnn-cu13,cufft,cufile,curand,cusolver,cusparse,cusparselt-cu13,nccl-cu13,nvjitlink,nvshmem-cu13,nvtx})

lock cpu --extra cpu --extra digits
lock test --extra test --constraint requirements/cpu.txt
# shellcheck disable=SC2086  # a list of words
lock parity --extra test --extra parity --constraint requirements/test.txt $cuda
lock tpu --extra tpu --extra digits --extra gcs --constraint requirements/cpu.txt
lock cuda --extra cuda --extra digits --extra gcs --constraint requirements/cpu.txt
