"""The parts of the native client; `mesh.client` is its face."""
