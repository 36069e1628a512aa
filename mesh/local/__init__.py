"""The node's door for programs of its own user: a unix socket, and what goes over it."""
