"""The core of Isochrone: every decision a peer can observe, without sockets, clocks, tasks or luck of its own."""
