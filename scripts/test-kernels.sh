#!/usr/bin/env bash
# Runs tests on other kernels than this machine's: Debian's, in QEMU, without KVM. As root.
#
#   test-kernels.sh                                 the matrix: one line per kernel, 0 if all tests passed
#   test-kernels.sh --kernel 6.1                    one kernel of it
#   test-kernels.sh --kernel 6.1 --run 'COMMAND'    anything else, with bash; the exit code is the command's
#
# A kernel is a series (6.1: the newest of it that the package lists of this machine have) or `newest`. Its
# package is downloaded and unpacked, never installed, and kept in a cache. From the environment:
#
#   KERNELS       for the matrix, instead of "6.1 6.12 newest"
#   SOURCE        the checkout that is tested, instead of the one that this script is in
#   VENV          the virtual environment, instead of .venv of that checkout or of this one
#   LIMIT         seconds for each kernel, instead of 3600
#   PYTEST_ARGS   more arguments for pytest
#
# The virtual machine sees this machine's files by virtio-9p, read-only and at the same paths, below a layer in
# memory that takes what it writes. So no image is built; Python, libbpf, compilers and tests are the same
# inside and outside; a command may name any script of this machine; and a changed checkout is there at the next
# start. Only kernel and modules are Debian's. /dev, /proc, /run and /sys are the virtual machine's own.
#
# The matrix runs what tests/kernels/selection lists. The output of each kernel is kept in build/kernels.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source_tree=$(cd "${SOURCE:-$here}" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sockmap-lb/kernels
limit=${LIMIT:-3600}
boot_modules=(virtio_pci 9p 9pnet_virtio overlay)
patience=4 # times as long as on the machine itself, which QEMU shares with whatever else runs there

die() {
	echo "test-kernels: $*" >&2
	exit 2
}

# The name of the newest package of a series. The flavours cloud and rt have no 9p.
find_package() {
	local version='[0-9]+\.[0-9]+\.[0-9]+'
	[[ $1 == newest ]] || version=${1//./\\.}'\.[0-9]+'
	apt-cache pkgnames linux-image- |
		grep -E "^linux-image-$version(-[0-9]+|\+[a-z0-9.]+)?-amd64(-unsigned)?\$" | sort -V | tail -n 1
}

# Unpacks a version of a package into the cache, with the index that modprobe reads; prints where.
unpack() {
	local package=$1 version=$2 folder=$cache/${1}_$2 deb release
	if [[ ! -d $folder ]]; then
		rm -rf "$folder.new"
		mkdir -p "$folder.new"
		(cd "$folder.new" && apt-get -qq -o APT::Sandbox::User=root download "$package=$version") >&2
		deb=$(echo "$folder.new"/*.deb)
		dpkg-deb -x "$deb" "$folder.new"
		rm "$deb"
		release=$(ls "$folder.new/lib/modules")
		depmod -b "$folder.new" "$release"
		mv "$folder.new" "$folder"
	fi
	echo "$folder"
}

# Makes what a machine starts from: an initramfs that can do no more than mount the root, and the exchange, a
# folder that the machine and we both write to.
prepare() {
	local folder=$1 command=$2 work=$3 release path module
	local initramfs=$work/initramfs exchange=$work/exchange
	release=$(ls "$folder/lib/modules")
	mkdir -p "$initramfs"/{bin,dev,proc,host,layer,root,modules} "$exchange"
	cp "$(command -v busybox)" "$initramfs/bin/busybox"
	install -m 755 "$here/tests/kernels/init" "$initramfs/init"
	for module in "${boot_modules[@]}"; do
		modprobe -d "$folder" -S "$release" --show-depends "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' >"$work/modules"
	while read -r path; do
		module=$(basename "$path" .xz)
		if [[ $path == *.xz ]]; then
			xz -dc "$path" >"$initramfs/modules/$module"
		else
			cp "$path" "$initramfs/modules/$module"
		fi
		echo "$module" >>"$initramfs/modules/order"
	done <"$work/modules"
	(cd "$initramfs" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initramfs.gz"

	cp "$here/tests/kernels/session.sh" "$exchange/"
	printf '%s\n' "$command" >"$exchange/command"
	printf 'export %s=%q\n' \
		MODULES "$folder/lib/modules" SOURCE "$source_tree" VIRTUAL_ENV "$venv" HOME "$HOME" TERM dumb \
		PATH "$venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
		PYTHONPATH "$source_tree" PYTHONDONTWRITEBYTECODE 1 >"$exchange/environment"
}

# Starts a machine and waits for its end. Returns what its command returned; 124 if it took too long, 125 if
# the machine ended before its command did.
boot() {
	local folder=$1 work=$2 release code=0
	release=$(ls "$folder/lib/modules")
	timeout --foreground --kill-after=10 "$limit" qemu-system-x86_64 \
		-accel tcg,thread=multi -cpu max -smp 2 -m 3G -no-reboot \
		-nodefaults -display none -serial stdio \
		-kernel "$folder/boot/vmlinuz-$release" -initrd "$work/initramfs.gz" \
		-append "console=ttyS0 loglevel=3 oops=panic panic=-1 random.trust_cpu=on" \
		-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap \
		-device virtio-9p-pci,fsdev=host,mount_tag=host \
		-fsdev local,id=exchange,path="$work/exchange",security_model=none \
		-device virtio-9p-pci,fsdev=exchange,mount_tag=exchange </dev/null || code=$?
	if [[ -s $work/exchange/status ]]; then
		return "$(<"$work/exchange/status")"
	elif ((code == 124 || code == 137)); then
		echo "test-kernels: ended after $limit s" >&2
		return 124
	fi
	echo "test-kernels: the machine ended before its command did (QEMU returned $code)" >&2
	return 125
}

# The selection: what pytest is to run, each at a line. A file that is not there is found now, not after a boot.
select_tests() {
	local test
	mapfile -t selection < <(sed 's/#.*//; s/[[:space:]]*$//; /^$/d' "$here/tests/kernels/selection")
	for test in "${selection[@]}"; do
		[[ $test == -* ]] || (cd "$source_tree" && compgen -G "${test%%::*}" >/dev/null) ||
			die "tests/kernels/selection names ${test%%::*}, which $source_tree does not have"
	done
}

# The number before a word in pytest's last line.
count() {
	local number
	number=$(grep -E '^=+ .* in [0-9.]+s' "$1" | tail -n 1 | grep -oE "[0-9]+ $2\b" || true)
	echo "$((${number%% *} + 0))"
}

# Runs the selection on a kernel, prints its line and returns 0 if everything passed.
test_on() {
	local folder=$1 title=$2 log=$3 work=$4 start=$SECONDS code=0 failed warnings result=ok
	prepare "$folder" "SOCKMAP_LB_REQUIRE_ALL=1 SOCKMAP_LB_PATIENCE=$patience python -m pytest \
		-p no:cacheprovider --basetemp=/run/pytest --timeout=$((120 * patience)) --durations=10 \
		${selection[*]} ${PYTEST_ARGS:-}" "$work"
	boot "$folder" "$work" >"$log" 2>&1 || code=$?
	failed=$(($(count "$log" failed) + $(count "$log" 'errors?')))
	warnings=$(grep -cE 'WARNING: |BUG: |INFO: task .* blocked' "$work/exchange/dmesg" 2>/dev/null || true)
	((code == 0 && failed == 0 && ${warnings:-0} == 0)) || result=FAILED
	printf '%-36s %-7s %d passed, %d failed, %d xfailed, %d s\n' "$title" "$result" \
		"$(count "$log" passed)" "$failed" "$(count "$log" xfailed)" "$((SECONDS - start))"
	[[ $result == ok ]] && return
	grep -E '^(FAILED|ERROR) |^test-kernels:|Kernel panic' "$log" | sed 's/^/    /' || true
	if ((${warnings:-0})); then
		echo "    the kernel complained:"
		sed 's/^/    /' "$work/exchange/dmesg"
	fi
	echo "    the whole output: $log"
	return 1
}

kernels=()
selection=()
command=
while (($#)); do
	case $1:${2:+value} in
	--kernel:value) kernels+=("$2") ;;
	--run:value) command=$2 ;;
	*)
		sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
		exit 2
		;;
	esac
	shift 2
done
((${#kernels[@]})) || read -ra kernels <<<"${KERNELS:-6.1 6.12 newest}"

((EUID == 0)) || die "the machine sees this one's files with your rights, and the tests need root's: run it as root"
venv=
for folder in "${VENV:-$source_tree/.venv}" "$here/.venv"; do
	[[ -x $folder/bin/python ]] && venv=$(cd "$folder" && pwd) && break
done
[[ $venv ]] || die "there is no virtual environment: run make venv"
for program in qemu-system-x86_64 busybox cpio modprobe depmod xz; do
	command -v "$program" >/dev/null || die "$program is not installed: run scripts/setup.sh kernels"
done

[[ $command ]] || select_tests

top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
mkdir -p "$here/build/kernels"
worst=0
declare -A done_as
for kernel in "${kernels[@]}"; do
	package=$(find_package "$kernel") || die "no Linux $kernel among the packages of this machine: apt-get update?"
	version=$(apt-cache show --no-all-versions "$package" | sed -n 's/^Version: //p')
	release=${package#linux-image-}
	title="${release%-unsigned} ($version)"
	if [[ ${done_as[$package]:-} ]]; then
		echo "$kernel: the same as ${done_as[$package]}: $title"
		continue
	fi
	done_as[$package]=$kernel
	folder=$(unpack "$package" "$version")
	code=0
	if [[ $command ]]; then
		echo "test-kernels: $title" >&2
		prepare "$folder" "$command" "$top/$kernel"
		boot "$folder" "$top/$kernel" || code=$?
	else
		test_on "$folder" "$title" "$here/build/kernels/$kernel.log" "$top/$kernel" || code=$?
	fi
	((code == 0)) || worst=$code
done
exit "$worst"
