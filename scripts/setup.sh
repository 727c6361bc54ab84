#!/bin/sh
# Installs the Debian packages that Cleave needs and that are missing, and the headers with which it
# uses cuDNN; says nothing if none is.
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
  gpu      headers for attention by cuDNN, by pip, into the user's cache directory

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
    gpu) ;;  # see install_frontend
    *) echo "setup: unknown group '$1'; see scripts/setup.sh --help" >&2; exit 1 ;;
  esac
}

# The wheel of cuDNN's frontend, of which only the headers are used: cmake/dependencies.cmake looks
# for them here.
frontend=nvidia-cudnn-frontend==1.18.0
folder=${XDG_CACHE_HOME:-$HOME/.cache}/cleave/gpu
install_frontend() {
  if [ -f "$folder/include/cudnn_frontend.h" ]; then
    return
  fi
  if [ $apt = no ]; then
    echo "setup: not installed (--no-apt): $frontend"
    return
  fi
  echo "setup: installing $frontend"
  if ! PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" \
      $frontend; then
    echo "setup: pip could not install $frontend; without it attention on a GPU is slow" >&2
    exit 1
  fi
}

is_installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt=yes
list=no
gpu=no
wanted=
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    --no-apt) apt=no ;;
    --list) list=yes ;;
    -*) echo "setup: unknown option '$argument'; see scripts/setup.sh --help" >&2; exit 1 ;;
    *)
      group=$(packages_of "$argument")
      if [ "$argument" = gpu ]; then gpu=yes; fi
      wanted="$wanted $group"
      ;;
  esac
done
if [ -z "$wanted" ] && [ $gpu = no ]; then
  usage >&2
  exit 1
fi
if [ $list = yes ]; then
  echo $wanted
  exit 0
fi
if [ $gpu = yes ]; then
  install_frontend
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
