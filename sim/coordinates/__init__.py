"""Methods that tell how far nodes are, tried over measured or made-up matrices of round trips, packet by packet."""
