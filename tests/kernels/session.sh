#!/bin/bash
# The first process of a machine of scripts/test-kernels.sh, once that has a root: mounts the rest, runs the
# command in the checkout, leaves its exit code and the kernel's complaints in the exchange, and ends the
# machine.
exchange=/run/exchange

mkdir -p /dev/shm /dev/pts /lib/modules
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
ln -sf /proc/self/fd /dev/fd
# shellcheck source=/dev/null
source "$exchange/environment"
mount --bind "$MODULES" /lib/modules
ip link set lo up
ulimit -n 1048576
echo 4194304 >/proc/sys/net/core/rmem_max # Debian's is too small for messages of 1 MiB, says `sockmap-lb doctor`
stty -opost

cd "$SOURCE" && setsid --wait bash "$exchange/command" </dev/null
echo "$?" >"$exchange/status"
dmesg --level=emerg,alert,crit,err,warn >"$exchange/dmesg"
sync
echo 0 >/proc/sys/kernel/printk # no line of the kernel's about the end below the command's output
busybox reboot -f
sleep 60
