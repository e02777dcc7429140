# Images of the bundle, for batch inference and for a MONAI Label server; docs/guides/docker.md says how to run them.
#
#   docker build --target inference --tag sam-sp .
#   docker build --target inference --build-arg DEVICE=cuda --tag sam-sp:cuda .
#   docker build --target label --tag sam-sp-label .
#
# DEVICE: cpu, or cuda for NVIDIA GPUs, whose PyTorch brings CUDA's libraries.
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
WORKDIR /opt/sam-sp
# Nobody needs to write here: the root of a container may be read-only, with a tmpfs at /tmp.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin sam-sp

FROM base AS torch-cpu
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt torch torchvision

FROM base AS torch-cuda
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch torchvision

# Masks of a folder: mount images at /input, a folder that user 10001 may write at /output.
# hadolint ignore=DL3006
FROM torch-${DEVICE} AS inference
WORKDIR /opt/sam-sp
COPY pyproject.toml README.md LICENSE NOTICE ./
RUN pip install --no-cache-dir --constraint constraints.txt ".[volumes]"
COPY bundle bundle
COPY configs configs
COPY scripts scripts
COPY models models
USER 10001
VOLUME /output
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "monai.bundle", "run"]
CMD ["inferring", "--config_file", "configs/inference.json", "--dataset_dir", "/input", "--output_dir", "/output"]

# A MONAI Label server: mount the studies at /studies, which keep the labels, and a folder for its app at /app.
# hadolint ignore=DL3006
FROM torch-${DEVICE} AS label
WORKDIR /opt/sam-sp
COPY constraints-label.txt requirements-label.txt requirements-label-nodeps.txt ./
RUN pip install --no-cache-dir --constraint constraints-label.txt --requirement requirements-label.txt \
    && pip install --no-cache-dir --constraint constraints-label.txt --no-deps --requirement requirements-label-nodeps.txt
COPY bundle bundle
COPY configs configs
COPY scripts scripts
COPY models models
USER 10001
VOLUME /studies /app
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=30s --timeout=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/info/', timeout=8)"]
ENTRYPOINT ["python", "-m", "scripts.label", "--studies", "/studies", "--app", "/app", "--host", "0.0.0.0"]
