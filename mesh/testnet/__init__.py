"""A mesh on one machine: real nodes, chosen distances."""
