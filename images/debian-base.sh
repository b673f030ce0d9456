#!/usr/bin/env bash
# Builds a base image from Debian's package archive, for machines that cannot reach a registry: images/debian-base.sh NAME:TAG
# Needs root, debootstrap and podman. Like docker.io/library/debian:bookworm-slim, it is a minimal Debian 12 without
# documentation.
set -euo pipefail
name=${1:?usage: images/debian-base.sh NAME:TAG}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase bookworm "$folder" "$mirror"
for suite in "$mirror bookworm" "$mirror bookworm-updates" "$mirror-security bookworm-security"; do
    echo "deb $suite main"
done >"$folder"/etc/apt/sources.list
rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/* "$folder"/var/log/* \
    "$folder"/usr/share/{doc,info,locale,man}/*
tar --directory "$folder" --create . | podman import --change 'CMD ["bash"]' - "$name"
