#!/bin/bash
# Runs in a guest: 200 messages each way between the RDMA devices rxa and rxb over a reliable connection.
#
# GID 1 is the RoCE v2 one of the IPv4 address. Who dials waits until the other listens.
set -euo pipefail
ibv_rc_pingpong -d rxb -g 1 -n 200 -s 65536 >/tmp/pong 2>&1 &
listener=$!
until [ -n "$(ss -Hltn 'sport = :18515')" ]; do sleep 0.2; done
ibv_rc_pingpong -d rxa -g 1 -n 200 -s 65536 127.0.0.1
wait "$listener"
cat /tmp/pong
