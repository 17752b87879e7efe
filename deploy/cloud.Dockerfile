# The cloud. From the top folder of a checkout:
#
#   docker build --file deploy/cloud.Dockerfile --build-arg REVISION="$(git rev-parse HEAD)" --tag edge-cloud-rac/cloud .
#
# TORCH_INDEX="" takes torch from the registry, with several GB of CUDA packages on x86.
FROM python:3.11.13-slim-bookworm AS build
ARG EXTRAS="cloud,openvino"
ARG REVISION=""
ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"
WORKDIR /src
COPY constraints.txt LICENSE pyproject.toml README.md ./
COPY configs ./configs
COPY nodes ./nodes
COPY pipeline ./pipeline
# The same pins for what builds the package as for what runs.
ENV PIP_CONSTRAINT=/src/constraints.txt
RUN if [ -n "$REVISION" ]; then echo "$REVISION" > nodes/revision.txt; fi \
    && python -m venv --without-pip /opt/rac \
    && python -m pip --python /opt/rac/bin/python install --no-cache-dir --no-compile \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch numpy \
    && python -m pip --python /opt/rac/bin/python install --no-cache-dir --no-compile \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[$EXTRAS]"

FROM python:3.11.13-slim-bookworm
RUN useradd --no-log-init --system --uid 10001 --user-group --home-dir /var/lib/rac --create-home rac \
    && install --directory --owner rac --group rac /var/cache/rac
COPY --from=build /opt/rac /opt/rac
COPY deploy/healthcheck.py /usr/local/lib/rac/healthcheck.py
COPY --chmod=0755 deploy/make-keys.sh /usr/local/bin/rac-make-keys
# The cache holds the graphs, which the first start makes, and the quarantine: name a volume there to keep them.
ENV PATH=/opt/rac/bin:$PATH PYTHONDONTWRITEBYTECODE=1 RAC_CACHE=/var/cache/rac
WORKDIR /var/lib/rac
USER 10001:10001
EXPOSE 5570 9580
# Before the graphs are made there is no answer: that takes a minute or two, once.
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s CMD ["python", "/usr/local/lib/rac/healthcheck.py", "9580"]
ENTRYPOINT ["rac-cloud"]
