FROM python:3.11-slim AS wheel
WORKDIR /source
RUN --mount=type=bind,source=requirements.lock,target=requirements.lock \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --root-user-action=ignore $(grep -E '^(setuptools|wheel)==' requirements.lock)
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .


FROM python:3.11-slim
# tensorflow-cpu is TensorFlow without its GPU kernels, at less than half the size; ARM has no wheel
# of it. For GPUs: --build-arg TENSORFLOW='tensorflow[and-cuda]'.
ARG TENSORFLOW=
# Versions are the lock file's, without its development tools: this large layer is rebuilt only
# when pyproject.toml or requirements.lock changes.
RUN --mount=type=bind,source=requirements.lock,target=/tmp/requirements.lock \
    --mount=type=bind,source=pyproject.toml,target=/tmp/pyproject.toml \
    --mount=type=cache,target=/root/.cache/pip <<'SCRIPT'
set -eu
cd /tmp
python - > /root/requirements.txt <<'PYTHON'
import os, platform, re, tomllib
with open("pyproject.toml", "rb") as file:
    needed = tomllib.load(file)["project"]["dependencies"]
with open("requirements.lock") as file:
    version = re.search("^tensorflow(==.*)$", file.read(), re.MULTILINE)[1]
small = "tensorflow-cpu" if platform.machine() == "x86_64" else "tensorflow"
print((os.environ.get("TENSORFLOW") or small) + version)
print(*(line for line in needed if not line.startswith("tensorflow")), sep="\n")
PYTHON
pip install --root-user-action=ignore --only-binary :all: \
    --requirement /root/requirements.txt --constraint requirements.lock
rm /root/requirements.txt
# 290 MB of C++ headers, for those who compile operations of their own.
rm -r "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tensorflow/include"
SCRIPT
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --root-user-action=ignore --no-cache-dir --no-deps /wheel/*.whl \
    && useradd --create-home --uid 1000 studyhall \
    && install --directory --owner studyhall /artifacts
ENV PYTHONUNBUFFERED=1
USER studyhall
# An objective of your own, mounted here, is on the import path.
WORKDIR /work
ENTRYPOINT ["studyhall"]
