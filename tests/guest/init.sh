#!/bin/sh
# The first program of the virtual machine, in its initramfs: makes a root out of the host's, which is mounted read-only, and a
# layer of memory over it; then becomes the agent, which runs what the tests ask for. Ends in a panic, and so in a poweroff, where
# anything fails. The settings come from the host in the file `settings` of the folder that both share.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
exec </dev/null >/dev/console 2>&1
set -ex
while read -r module; do $b insmod "/modules/$module"; done </modules/order

$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /lower
$b mount -t tmpfs tmpfs /layer
$b mkdir /layer/upper /layer/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /new
for folder in proc sys dev; do
    $b mkdir -p /new/$folder
    $b mount --move /$folder /new/$folder
done
cd /new
$b mkdir -p dev/shm dev/pts
$b mount -t tmpfs tmpfs dev/shm
$b mount -t devpts devpts dev/pts
[ -e dev/fd ] || $b ln -s /proc/self/fd dev/fd
$b mount -t tmpfs tmpfs run
$b mkdir -p run/exchange run/home run/netns
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none exchange run/exchange
$b mount -t tmpfs tmpfs sys/fs/cgroup
$b mount -t bpf bpf sys/fs/bpf
$b mount -t tracefs tracefs sys/kernel/tracing

. run/exchange/settings # gives $modules, $python, $agent and $name
$b mkdir -p lib/modules
$b mount --bind "/new$modules" lib/modules
$b ip link set lo up
$b hostname "$name"
exec $b switch_root /new /bin/sh -c "$python -I -S $agent || true; echo o >/proc/sysrq-trigger; sleep 60"
