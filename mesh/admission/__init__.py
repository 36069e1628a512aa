"""Private networks in the shell: their files, the gate of a running node, and the commands of owners."""
