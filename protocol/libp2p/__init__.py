"""The libp2p protocols a node speaks with any libp2p peer: multistream-select, ping, identify and signed peer records."""
