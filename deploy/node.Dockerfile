# A camera node: no torch, no compiler; amd64 and arm64. From the top folder of a checkout:
#
#   docker build --file deploy/node.Dockerfile --build-arg REVISION="$(git rev-parse HEAD)" --tag edge-cloud-rac/node .
#   docker buildx build --platform linux/arm64 --file deploy/node.Dockerfile --tag edge-cloud-rac/node .
#
# EXTRAS=demo adds the photographs of the camera test:.
FROM python:3.11.13-slim-bookworm AS build
ARG EXTRAS=""
ARG REVISION=""
WORKDIR /src
COPY constraints.txt LICENSE pyproject.toml README.md ./
COPY configs ./configs
COPY nodes ./nodes
COPY pipeline ./pipeline
# The same pins for what builds the package as for what runs.
ENV PIP_CONSTRAINT=/src/constraints.txt
RUN if [ -n "$REVISION" ]; then echo "$REVISION" > nodes/revision.txt; fi \
    && python -m venv --without-pip /opt/rac \
    && python -m pip --python /opt/rac/bin/python install --no-cache-dir --no-compile ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.11.13-slim-bookworm
RUN useradd --no-log-init --system --uid 10001 --user-group --home-dir /var/lib/rac --create-home rac \
    && install --directory --owner rac --group rac /var/cache/rac
COPY --from=build /opt/rac /opt/rac
COPY deploy/healthcheck.py /usr/local/lib/rac/healthcheck.py
# Writable are the home (a place for --spool) and the cache (bundles that were fetched): name volumes there to keep them.
ENV PATH=/opt/rac/bin:$PATH PYTHONDONTWRITEBYTECODE=1 RAC_CACHE=/var/cache/rac
WORKDIR /var/lib/rac
USER 10001:10001
EXPOSE 9570
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["python", "/usr/local/lib/rac/healthcheck.py", "9570"]
ENTRYPOINT ["rac-node"]
