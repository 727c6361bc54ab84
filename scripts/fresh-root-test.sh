#!/bin/sh
# The promise of the README, tested: in an empty Debian 12 root with nothing else, `git clone`,
# ./demo, then ./check, both exit 0; prints how long each took.
#
# usage: scripts/fresh-root-test.sh DIRECTORY [--suite NAME] [--mirror URL] [--keep]
#   DIRECTORY  where the root is made; must not exist. Needs about 2 GB.
#   --suite    the Debian suite (bookworm)
#   --mirror   where packages come from; otherwise the first one that this machine's apt uses
#   --keep     leave the root behind
# Runs as root, needs debootstrap, and tests the last commit, not the working tree.
set -eu
cd "$(dirname "$0")/.."

root=
suite=bookworm
mirror=
keep=no
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --suite) suite=$2; shift ;;
    --mirror) mirror=$2; shift ;;
    --keep) keep=yes ;;
    -*) echo "fresh-root-test: unknown option '$1'; see --help" >&2; exit 1 ;;
    *) root=$1 ;;
  esac
  shift
done
if [ -z "$root" ] || [ -e "$root" ]; then
  echo "fresh-root-test: give a directory that does not exist yet; see --help" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
  echo "fresh-root-test: needs to be root and debootstrap (apt-get install debootstrap)" >&2
  exit 1
fi
if [ -z "$mirror" ]; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
fi

mounted=no
clean_up() {
  status=$?
  if [ $mounted = yes ]; then
    umount "$root/proc" || exit 1  # never delete below a mount
  fi
  if [ $keep = no ]; then
    rm -rf --one-file-system "$root"
  fi
  exit $status
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# Runs a command line in the root with an environment of its own.
inside() {
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \
    chroot "$root" /bin/sh -ec "$1" </dev/null
}

# Runs a command line in the root, keeps its time, and stops the test when it fails.
times=
timed() {
  echo "== $1"
  started=$(date +%s)
  if ! inside "$2"; then
    echo "fresh-root-test: FAILED: $1, after $(($(date +%s) - started)) s" >&2
    exit 1
  fi
  times="$times
  $1: $(($(date +%s) - started)) s"
}

started=$(date +%s)
debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
  { tail -n 5 "$root.log" >&2; exit 1; }
rm -f "$root.log"
echo "== debootstrap $suite: $(($(date +%s) - started)) s"
mount -t proc proc "$root/proc"
mounted=yes
# How this machine reaches its packages: names, a proxy and its certificates, where it has them.
cp /etc/resolv.conf /etc/hosts "$root/etc/"
for file in /etc/apt/apt.conf.d/*proxy*; do
  if [ -f "$file" ]; then cp "$file" "$root/etc/apt/apt.conf.d/"; fi
done

git bundle create -q "$root/root/cleave.bundle" HEAD
timed "apt-get install git" \
  "apt-get -qq update; apt-get -qq -y --no-install-recommends install git >/dev/null 2>&1"
timed "git clone" "cd; git -c advice.detachedHead=false clone -q cleave.bundle cleave"
timed "./demo" "cd ~/cleave; ./demo"
timed "./check" "cd ~/cleave; ./check"
timed "./demo again" "cd ~/cleave; ./demo >/dev/null"
timed "build/bin/cleave" "cd ~/cleave; test -x build/bin/cleave; build/bin/cleave --help >/dev/null"
if [ -n "$(inside 'cd ~/cleave; git status --porcelain')" ]; then
  echo "fresh-root-test: FAILED: the clone is no longer clean" >&2
  inside "cd ~/cleave; git status --porcelain" >&2
  exit 1
fi
echo "== passed on $suite, commit $(git rev-parse --short HEAD), $(nproc) cores$times"
