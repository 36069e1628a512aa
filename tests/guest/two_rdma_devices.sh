#!/bin/bash
# Runs in a guest: two software RDMA devices, rxa and rxb (RoCE v2), on the two ends of a cable, 10.9.0.1 on va and 10.9.1.2 on vb.
#
# Both ends are in the machine's own network namespace, because as of Linux 6.12 such a device carries nothing in another one. A
# kernel would deliver between its own addresses without the cable: the rules below send what comes from one address to the other
# onto it, and take for local only what has come out of it.
set -euo pipefail
modprobe veth
modprobe rdma_rxe
modprobe ib_uverbs
ip link add va type veth peer name vb
ip addr add 10.9.0.1/16 dev va
ip addr add 10.9.1.2/16 dev vb
ip link set va up
ip link set vb up
for name in all va vb; do
    sysctl -qw "net.ipv4.conf.$name.rp_filter=0" "net.ipv4.conf.$name.accept_local=1"
done
ip rule add pref 10 iif va lookup local
ip rule add pref 10 iif vb lookup local
ip route add 10.9.1.2 dev va src 10.9.0.1 table 101
ip route add 10.9.0.1 dev vb src 10.9.1.2 table 102
ip rule add pref 20 from 10.9.0.1 to 10.9.1.2 lookup 101
ip rule add pref 20 from 10.9.1.2 to 10.9.0.1 lookup 102
ip rule add pref 100 lookup local
ip rule del pref 0
ip neigh replace 10.9.1.2 lladdr "$(cat /sys/class/net/vb/address)" dev va
ip neigh replace 10.9.0.1 lladdr "$(cat /sys/class/net/va/address)" dev vb
rdma link add rxa type rxe netdev va
rdma link add rxb type rxe netdev vb
