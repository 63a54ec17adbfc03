#!/usr/bin/env bash
# usage: scripts/fetch_onnxruntime_headers.sh FOLDER
# Puts ONNX Runtime's C and C++ headers into FOLDER, from Debian's package libonnxruntime-dev, without installing it.
# Debian 12 has no such package: the one of Debian 13 is taken, from the mirror that this machine uses. The headers are
# of an older version than the wheel's library, which is allowed: a newer library serves every older interface.
set -euo pipefail
folder=$1
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "apt-get and dpkg-deb are not here" >&2; exit 3; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/archives/partial"
sources=/etc/apt/sources.list.d/debian.sources
[ -f "$sources" ] || { echo "$sources is not here: this is no Debian 12 or newer" >&2; exit 3; }
sed 's/bookworm/trixie/g' "$sources" >"$work/newer.sources"
options=(-o "Dir::Etc::SourceList=$work/newer.sources" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -qq)
cd "$work"
apt-get "${options[@]}" update
apt-get "${options[@]}" download libonnxruntime-dev
dpkg-deb -x libonnxruntime-dev_*.deb unpacked
mkdir -p "$folder"
cp unpacked/usr/include/onnxruntime/*.h "$folder"
