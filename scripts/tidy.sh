#!/bin/sh
# Runs clang-tidy 14 with .clang-tidy over the sources of the libraries and the command, as
# build/compile_commands.json says they are compiled.
#
# usage: scripts/tidy.sh [BASE | FILE...]
#   BASE   a commit: only files that differ from it, and those that include such a header
#   FILE   these files only
# Exits 1 when it finds anything.
set -eu
cd "$(dirname "$0")/.."

if ! command -v clang-tidy-14 >/dev/null; then
  echo "tidy: clang-tidy-14 is missing; run scripts/setup.sh style" >&2
  exit 1
fi
if [ ! -f build/compile_commands.json ]; then
  echo "tidy: no build/compile_commands.json; configure first: cmake --preset check" >&2
  exit 1
fi

all=$(git ls-files '*.cc' | grep -v '^tests/')
if [ $# -eq 0 ]; then
  files=$all
elif git rev-parse -q --verify "$1^{commit}" >/dev/null 2>&1; then
  changed=$(git diff --name-only --diff-filter=d "$1" -- '*.cc' '*.h')
  files=
  for file in $changed; do
    case $file in
      *.h) files="$files
$(grep -l "#include \"$file\"" $all || true)" ;;
      tests/*) ;;
      *) files="$files
$file" ;;
    esac
  done
  files=$(echo "$files" | sort -u)
else
  files=$*
fi
if [ -z "$(echo $files)" ]; then
  echo "tidy: no file to look at"
  exit 0
fi

started=$(date +%s)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
bad=0
# clang does not know g++'s warnings.
echo $files | tr ' ' '\n' | xargs -P "$(nproc)" -I{} \
  clang-tidy-14 --quiet -p build --extra-arg=-Wno-unknown-warning-option \
  --extra-arg=-Wno-unknown-pragmas {} >"$log" 2>&1 || bad=1
grep -v -e '^[0-9]* warnings\{0,1\} .*generated' -e '^Suppressed ' -e '^Use -header-filter' "$log" ||
  true
echo "tidy: $(echo $files | wc -w) files in $(($(date +%s) - started)) s"
exit $bad
