"""The trio shell of Isochrone: sockets, files, engines and the gateway around the pure core in `protocol`."""
