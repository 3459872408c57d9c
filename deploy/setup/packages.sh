#!/bin/sh
# Installs the Debian packages of packages.txt that are missing: with apt when root, else it names them and stops.
set -eu

wanted=$(sed 's/#.*//' "$(dirname "$0")/packages.txt")

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "setup: apt and dpkg are not here: set-up knows Debian 12 and its relatives" >&2
    exit 1
fi

missing=
for package in $wanted; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || status=none
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "setup: missing packages:$missing" >&2
    echo "setup: as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a word is a package
apt-get install -qq --yes --no-install-recommends $missing </dev/null >/dev/null
