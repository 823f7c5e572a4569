#!/usr/bin/env bash
# Installs the Debian packages that are missing: setup.sh GROUP...   (groups: runtime, test, kernels)
# As root by apt-get; otherwise prints the command and fails if anything is missing.
set -euo pipefail

python=${PYTHON:-python3}

# ca-certificates: pip in a virtual environment of Debian's Python reads the system's certificates.
runtime_packages=(ca-certificates libbpf1)

test_packages=(
	clang llvm libbpf-dev libc6-dev # build the BPF object
	gcc                             # build the framing header for this machine
	clang-format                    # lint
	bpftool iproute2 libcap2-bin procps strace # network namespaces, capabilities, what the process does
	chromium fonts-dejavu-core      # the dashboard, as a browser shows it
	dnsperf knot-dnsutils nsd       # DNS load, kdig, DNS servers
	dnsdist                         # what the benchmark compares with
	haproxy nginx-light libnginx-mod-stream # that too, and proxies in front and behind
	ethtool                         # its network
	debootstrap podman runc         # the image, and containers of it
	catatonit docker-compose iptables netavark # all that docker-compose.yml starts
	prometheus                      # promtool
	libmemcached-tools memcached    # memccapable, memccat, memcslap
	rpcbind                         # a server of ONC RPC, and rpcinfo
	tshark                          # the bytes of a protocol, as Wireshark reads them
)

kernels_packages=(qemu-system-x86 busybox-static cpio kmod xz-utils) # scripts/test-kernels.sh

usage() {
	echo "usage: ${0##*/} {runtime|test|kernels}..." >&2
	exit 2
}

wanted=()
for group in "$@"; do
	case $group in
	runtime) wanted+=("${runtime_packages[@]}") ;;
	test) wanted+=("${test_packages[@]}") ;;
	kernels) wanted+=("${kernels_packages[@]}") ;;
	*) usage ;;
	esac
done
((${#wanted[@]})) || usage

# Python may be Debian's or another: only what it lacks is taken from Debian.
if ! command -v "$python" >/dev/null; then
	if [[ $python != python3 ]]; then
		echo "setup: there is no $python here (PYTHON=$python)" >&2
		exit 1
	fi
	wanted+=(python3 python3-venv)
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
	echo "setup: $("$python" --version) is too old, 3.11 is needed: make PYTHON=/path/to/python3.11" >&2
	exit 1
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
	wanted+=(python3-venv)
fi

if ! command -v apt-get >/dev/null; then
	echo "setup: no apt-get here; what these Debian packages hold must be installed: ${wanted[*]}" >&2
	exit 0
fi

missing=()
for package in "${wanted[@]}"; do
	status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
	[[ $status == ?i* ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

install=(apt-get install -y --no-install-recommends "${missing[@]}")
if ((EUID != 0)); then
	echo "setup: system packages are missing. Run:" >&2
	echo "  sudo apt-get update && sudo ${install[*]}" >&2
	exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# They are wanted as programs: Debian would also start servers as services of this machine.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	trap 'rm -f "$log" "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
wait_for_lock=(-o DPkg::Lock::Timeout=300)
echo "setup: installing ${missing[*]}"
apt-get update -qq "${wait_for_lock[@]}" ||
	echo "setup: apt-get update failed; going on with the package lists that are here" >&2
if ! "${install[@]}" "${wait_for_lock[@]}" -o Dpkg::Use-Pty=0 </dev/null >"$log" 2>&1; then
	cat "$log" >&2
	echo "setup: apt-get could not install ${missing[*]}" >&2
	exit 1
fi
