# Checked by a linter (hadolint), but not built on the machine that wrote it, where no container engine runs.
#
# The base is Debian's slim Python and not NVIDIA's CUDA runtime image: the wheels of torch contain the CUDA libraries that they use, so
# the libraries of that image would be a second copy of several gigabytes. The driver comes from the host (NVIDIA Container Toolkit).
FROM python:3.12.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/opt/vlroute/bin:$PATH
WORKDIR /build
# torch is in a layer of its own, so that a change of the package does not download several gigabytes again.
RUN python -m venv /opt/vlroute && pip install 'torch>=2.6' 'torchvision>=0.21'
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY src src
COPY models models
RUN pip install 'vlroute[ui,video,train,otel] @ file:///build'

FROM python:3.12.11-slim-bookworm
LABEL org.opencontainers.image.title="vlroute" \
      org.opencontainers.image.description="Adaptive router for Qwen3-VL: Instruct answers, Thinking reasons first" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 vlroute \
 && useradd --uid 10001 --gid vlroute --create-home --shell /usr/sbin/nologin vlroute \
 && install --directory --owner vlroute --group vlroute /data /data/hub
COPY --from=build /opt/vlroute /opt/vlroute
# The home folder is not writable if the root file system is read-only: caches are in /tmp, checkpoints in /data.
ENV PATH=/opt/vlroute/bin:$PATH \
    HF_HOME=/data/hub \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000
# Not ready while the checkpoints are downloaded (about 9 GB, once) and loaded: failures count only after that time.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# The server requires API keys on every address except the loopback: -e VLROUTE_API_KEYS=$(openssl rand -hex 32)
ENTRYPOINT ["vlroute"]
CMD ["serve", "--host", "0.0.0.0", "--model", "Qwen/Qwen3-VL-2B", "--store", "/data/answers.db"]
