# maglevd in a container, for amd64 and arm64:
#
#   docker build --tag vpp-maglev .
#   docker run --cap-add NET_RAW --network host --group-add "$(stat -c %g /run/vpp/api.sock)" \
#       -v /etc/vpp-maglev:/etc/vpp-maglev:ro -v /run/vpp:/run/vpp -v vpp-maglev:/var/lib/vpp-maglev vpp-maglev
#
# Probes leave from the network that the container is in: the host's, as a rule.

FROM debian:bookworm-slim AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
COPY . .
# The suite of the base image is pinned, and its packages are Debian's stable ones.
# All Python modules, those that build included, are checked against the hashes in debian/*.lock.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates debian-archive-keyring dpkg-dev gcc git make python3 python3-venv xz-utils \
    && make pkg-build PKG_ARCHES="$(dpkg --print-architecture)" \
    && rm -rf /var/lib/apt/lists/*

FROM debian:bookworm-slim
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=bind,from=build,source=/src,target=/src \
    apt-get update \
    && /src/docker/install /src/build/vpp-maglev*.deb \
    && rm -rf /var/lib/apt/lists/*

# Everybody who reaches the container's port may look; operators use the socket: docker exec ... maglevc
ENV MAGLEV_GRPC_ADDR=:9090 \
    MAGLEV_METRICS_ADDR=:9091
EXPOSE 9090 9091
VOLUME ["/var/lib/vpp-maglev"]
# maglevd, by number: so that whoever runs it can see that it is not root.
USER 9090:9090
HEALTHCHECK --interval=10s --timeout=5s CMD ["maglevc", "show", "version"]
ENTRYPOINT ["/usr/lib/vpp-maglev/python3", "-IS", "/usr/sbin/maglevd"]
