#!/bin/busybox sh
# The first and only program of the virtual machine: loads modules, makes two rails, runs every file of /scenarios, and
# switches off. What it tells `cargo xtask test-rdma` are lines that begin with @rdma-vm, on the second serial port; what
# scenarios print is on that port too. Kernel messages go to the first.

for folder in /proc /sys /dev /tmp /run /applets; do /bin/busybox mkdir -p $folder; done
/bin/busybox --install -s /applets
export PATH=/applets
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
exec </dev/null >/dev/ttyS1 2>&1

# Busybox has applets of these names, which know no rules and no RDMA.
ip=@IP@
rdma=@RDMA@

uptime() { cut -d ' ' -f 1 /proc/uptime; }
# A line of its own, whatever a program that was killed left of a line.
tell() { printf '\n@rdma-vm %s\n' "$*"; }
# Closing the port waits until everything has been sent.
off() { exec >/dev/null 2>&1; exec poweroff -f; }
need() { "$@" || { tell failed "$@"; off; }; }

tell booted "$(uptime)"
while read -r module; do need insmod "/modules/$module"; done </modules/order

# A rail is a pair of devices whose packets really travel: the rules keep the kernel from taking the short way between two
# addresses of one machine. Nothing joins the rails, as in a fabric where every NIC has a switch of its own.
rail() { # first device, second device, first address, second address, number of a routing table
    need $ip link add "$1" type veth peer name "$2"
    need $ip addr add "$3/24" dev "$1"
    need $ip addr add "$4/24" dev "$2"
    for device in "$1" "$2"; do
        need $ip link set "$device" up
        echo 1 >/proc/sys/net/ipv4/conf/$device/accept_local
        echo 0 >/proc/sys/net/ipv4/conf/$device/rp_filter
        need $ip rule add pref 5 iif "$device" lookup local
    done
    need $ip route add "$4" dev "$1" src "$3" table "$5"
    need $ip route add "$3" dev "$2" src "$4" table "$(($5 + 1))"
    need $ip rule add pref 10 from "$3" to "$4" lookup "$5"
    need $ip rule add pref 10 from "$4" to "$3" lookup "$(($5 + 1))"
}
need $ip link set lo up
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
rail a0 b0 10.8.0.1 10.8.0.2 100
rail a1 b1 10.8.1.1 10.8.1.2 110
need $ip rule add pref 100 lookup local
need $ip rule del pref 0
for device in a0 b0 a1 b1; do need $rdma link add rx$device type rxe netdev $device; done

# What the kernel shows where nvidia-peermem is loaded, for those that look there: its folder, beside everything else.
mkdir -p /sys-with-peermem/module/nvidia_peermem
for entry in /sys/*; do [ "$entry" = /sys/module ] || ln -s "$entry" /sys-with-peermem/; done

tell ready "$(uptime)"
ran=0
failed=0
for scenario in /scenarios/*; do
    name=${scenario#*.}
    read -r seconds <"/seconds/$name"
    tell begin "$name" "$(uptime)"
    timeout -s KILL "$seconds" sh "$scenario"
    code=$?
    # Whatever it started and left: everything but this program.
    kill -KILL -1 2>/dev/null
    tell end "$name" "$code" "$(uptime)"
    ran=$((ran + 1))
    [ "$code" = 0 ] || failed=$((failed + 1))
done
tell verdict "$ran" "$failed"
off
