#!/bin/sh
# Configures build/ with a CMake preset and builds a target there, with the time it took.
# usage: scripts/build.sh PRESET TARGET [cmake argument...]
set -eu
cd "$(dirname "$0")/.."
preset=$1
target=$2
shift 2

for tool in cmake ninja c++; do
  if ! command -v $tool >/dev/null; then
    echo "build: $tool is missing; run it without --no-apt, or install it" >&2
    exit 1
  fi
done
# Turning the tests off would delete their programs, and the next ./check build them again.
if [ "$preset" = release ] && grep -qs '^CLEAVE_TESTS:BOOL=ON' build/CMakeCache.txt; then
  preset=check
fi
# A build/ that came from another place or another generator cannot be used as it is.
fresh=
if [ -f build/CMakeCache.txt ]; then
  if ! grep -q "^CMAKE_HOME_DIRECTORY:INTERNAL=$(pwd -P)\$" build/CMakeCache.txt ||
    ! grep -q '^CMAKE_GENERATOR:INTERNAL=Ninja$' build/CMakeCache.txt; then
    fresh=--fresh
  fi
fi
started=$(date +%s)
cmake --preset "$preset" $fresh "$@"
cmake --build build --target "$target"
echo "build: $target built in $(($(date +%s) - started)) s"
