# Training on NVIDIA GPUs. PyTorch's wheels bring CUDA and the host brings the driver, so that the base stays slim; g++ is for torch.compile.
FROM python:3.11.11-slim-bookworm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG USER_ID=1000
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ git make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --no-log-init --create-home --uid "$USER_ID" zeromodel \
 && install --directory --owner zeromodel --group zeromodel /workspace/zeromodel
USER $USER_ID
WORKDIR /workspace/zeromodel
ENV PIP_NO_CACHE_DIR=1 PATH=/workspace/zeromodel/.venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# first what the install depends on, so that another line of code does not install again
COPY --chown=zeromodel:zeromodel Makefile pyproject.toml constraints.txt README.md ./
COPY --chown=zeromodel:zeromodel zeromodel/__init__.py zeromodel/
ARG PIP_EXTRA_INDEX_URL
RUN make .venv/bin/.installed

# DVC and the check of the benchmark want a repository; its history stays outside
COPY --chown=zeromodel:zeromodel . .
RUN git init --quiet && git add --all \
 && git -c user.name=zeromodel -c user.email=authors@zeromodel.invalid commit --quiet --message image \
 && mkdir -p data runs .dvc/cache ~/.cache/huggingface
CMD ["bash"]
