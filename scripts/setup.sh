#!/bin/sh
# Installs the Debian packages that Cleave needs and that are missing; says nothing if none is.
# Debian 12 and Ubuntu 24.04 use the same names.
set -eu

usage() {
  cat <<'END'
usage: scripts/setup.sh [--no-apt] [--list] GROUP...

Installs missing packages as root or through sudo. Safe to run again.

  build    compiler, its cache, CMake and the libraries that Cleave links
  demo     a text to train on
  test     GoogleTest, and the CBC solver that checks the planner
  style    clang-format and clang-tidy
  fuzz     clang, with its sanitizers

  --no-apt  install nothing; only name what is missing
  --list    print the packages of the groups and stop
END
}

packages_of() {
  case $1 in
    build) echo "g++ cmake ninja-build libfmt-dev libboost-dev libcli11-dev nlohmann-json3-dev" \
                "libtomlplusplus-dev libopenblas-pthread-dev libxxhash-dev ccache" ;;
    demo) echo "bible-kjv bible-kjv-text" ;;
    test) echo "libgtest-dev coinor-libcbc-dev graphviz" ;;
    style) echo "clang-format-14 clang-tidy-14" ;;
    fuzz) echo "clang-14 libclang-rt-14-dev llvm-14" ;;
    *) echo "setup: unknown group '$1'; see scripts/setup.sh --help" >&2; exit 1 ;;
  esac
}

is_installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt=yes
list=no
wanted=
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    --no-apt) apt=no ;;
    --list) list=yes ;;
    -*) echo "setup: unknown option '$argument'; see scripts/setup.sh --help" >&2; exit 1 ;;
    *)
      group=$(packages_of "$argument")
      wanted="$wanted $group"
      ;;
  esac
done
if [ -z "$wanted" ]; then
  usage >&2
  exit 1
fi
if [ $list = yes ]; then
  echo $wanted
  exit 0
fi

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  if [ $apt = no ]; then
    exit 0
  fi
  echo "setup: this system has no apt-get; install the equivalents of these Debian packages" \
       "yourself and use --no-apt:$wanted" >&2
  exit 1
fi

missing=
for package in $wanted; do
  case " $missing " in *" $package "*) continue ;; esac
  is_installed "$package" || missing="$missing $package"
done
if [ -z "$missing" ]; then
  exit 0
fi
if [ $apt = no ]; then
  echo "setup: not installed (--no-apt):$missing"
  exit 0
fi

if [ "$(id -u)" = 0 ]; then
  as_root=
elif command -v sudo >/dev/null; then
  as_root=sudo
else
  echo "setup: neither root nor sudo; ask for: apt-get install$missing (or use --no-apt)" >&2
  exit 1
fi

echo "setup: installing$missing"
started=$(date +%s)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A third-party source may fail to update without harm: whether the install works decides.
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update >"$log" 2>&1 </dev/null || true
if ! $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y --no-install-recommends install $missing >>"$log" 2>&1 </dev/null; then
  tail -n 20 "$log" >&2
  echo "setup: apt-get install failed; its last lines are above" >&2
  exit 1
fi
echo "setup: installed in $(($(date +%s) - started)) s"
