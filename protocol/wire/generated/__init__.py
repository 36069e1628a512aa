"""Code generated from protocol/schemas by scripts/schemas.sh; do not edit."""
